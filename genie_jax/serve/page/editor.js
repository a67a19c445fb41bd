// An editor for a small picture, with mouse, finger or keyboard.

const COLOURS = [
  "#000000", "#ffffff", "#7f8c8d", "#34495e", "#c0392b", "#e67e22", "#f1c40f",
  "#27ae60", "#145a32", "#5dade2", "#1f618d", "#8e44ad", "#f5b7b1", "#784212",
  "#a9cce3", "#d5d8dc"];
const NAMES = [
  "black", "white", "grey", "slate", "red", "orange", "yellow", "green",
  "dark green", "sky blue", "blue", "purple", "pink", "brown", "pale blue",
  "light grey"];
const MOST_UNDO = 30;
const SIDE = 384;  // Largest side of the canvas on the screen.

export class Editor {
  constructor(dialog) {
    const find = (id) => document.getElementById(id);
    this.dialog = dialog;
    this.canvas = find("editor");
    this.context = this.canvas.getContext("2d", {willReadFrequently: true});
    this.tool = find("editor-tool");
    this.colour = COLOURS[0];
    this.undone = [];
    this.cursor = null;
    this.picture = null;  // Without the cursor of the keyboard.
    this.makePalette(find("palette"));
    find("editor-colour").oninput = (event) => this.choose(event.target.value);
    find("editor-undo").onclick = () => this.undo();
    find("editor-clear").onclick = () => this.fillAll(this.colour);
    this.canvas.onpointerdown = (event) => this.press(event);
    this.canvas.onpointermove = (event) => this.drag(event);
    this.canvas.onkeydown = (event) => this.key(event);
    this.canvas.onblur = () => this.moveCursor(null);
  }

  open(width, height) {
    if (this.canvas.width !== width || this.canvas.height !== height
        || !this.picture) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.context.fillStyle = "#5dade2";
      this.context.fillRect(0, 0, width, height);
      this.picture = this.context.getImageData(0, 0, width, height);
    }
    const most = Math.min(SIDE, innerWidth - 96, innerHeight - 260);
    const scale = Math.max(2, Math.floor(most / Math.max(width, height)));
    this.canvas.style.width = `${width * scale}px`;
    this.canvas.style.height = `${height * scale}px`;
    this.dialog.showModal();
    this.canvas.focus();
  }

  makePalette(palette) {
    this.swatches = COLOURS.map((colour, i) => {
      const swatch = document.createElement("button");
      swatch.type = "button";
      swatch.role = "radio";
      swatch.ariaLabel = NAMES[i];
      swatch.style.background = colour;
      swatch.onclick = () => this.choose(colour);
      palette.append(swatch);
      return swatch;
    });
    this.choose(COLOURS[0]);
  }

  choose(colour) {
    this.colour = colour;
    this.swatches.forEach((swatch, i) => {
      swatch.ariaChecked = String(COLOURS[i] === colour);
    });
  }

  // Draws with `change`; with `remember`, it can be undone.
  edit(change, remember = true) {
    if (remember) {
      this.undone.push(this.picture);
      if (this.undone.length > MOST_UNDO) this.undone.shift();
    }
    this.context.putImageData(this.picture, 0, 0);
    this.context.fillStyle = this.colour;
    change(this.context);
    this.keep();
  }

  keep() {
    this.picture = this.context.getImageData(
      0, 0, this.canvas.width, this.canvas.height);
    this.moveCursor(this.cursor);
  }

  undo() {
    const last = this.undone.pop();
    if (!last) return;
    this.picture = last;
    this.moveCursor(this.cursor);
  }

  fillAll(colour) {
    this.edit((context) => {
      context.fillStyle = colour;
      context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    });
  }

  copy(source) {
    this.edit((context) => context.drawImage(source, 0, 0));
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [
      Math.floor((event.clientX - box.left) / box.width * this.canvas.width),
      Math.floor((event.clientY - box.top) / box.height * this.canvas.height)];
  }

  press(event) {
    if (event.button !== 0) return;
    this.moveCursor(null);
    this.canvas.setPointerCapture(event.pointerId);
    this.last = this.place(event);
    this.paint(this.last, this.last, true);
  }

  drag(event) {
    if (!this.canvas.hasPointerCapture(event.pointerId)) return;
    if (this.tool.value === "fill") return;
    const next = this.place(event);
    this.paint(this.last, next, false);
    this.last = next;
  }

  // Draws a line of squares, without gaps at any speed of the pointer.
  paint(from, to, remember) {
    if (this.tool.value === "fill") {
      this.edit(() => this.flood(...to), remember);
      return;
    }
    const size = Number(this.tool.value);
    const steps = Math.max(
      1, Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]));
    this.edit((context) => {
      for (let i = 0; i <= steps; i += 1) {
        const at = (axis) => Math.round(
          from[axis] + (to[axis] - from[axis]) * i / steps)
          - Math.floor(size / 2);
        context.fillRect(at(0), at(1), size, size);
      }
    }, remember);
  }

  flood(x, y) {
    const {width, height} = this.canvas;
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    const pixels = new Uint32Array(this.picture.data.buffer.slice(0));
    const old = pixels[y * width + x];
    const seen = new Uint8Array(width * height);
    const stack = [[x, y]];
    while (stack.length) {
      const [column, row] = stack.pop();
      const at = row * width + column;
      if (column < 0 || row < 0 || column >= width || row >= height
          || seen[at] || pixels[at] !== old) continue;
      seen[at] = 1;
      this.context.fillRect(column, row, 1, 1);
      stack.push([column + 1, row], [column - 1, row],
        [column, row + 1], [column, row - 1]);
    }
  }

  key(event) {
    const moves = {
      ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1]};
    const {width, height} = this.canvas;
    const [x, y] = this.cursor ?? [width >> 1, height >> 1];
    if (moves[event.key]) {
      const [dx, dy] = moves[event.key];
      const far = event.shiftKey ? 8 : 1;
      this.moveCursor([
        Math.max(0, Math.min(width - 1, x + dx * far)),
        Math.max(0, Math.min(height - 1, y + dy * far))]);
    } else if (event.key === " " || event.key === "Enter") {
      this.cursor = [x, y];
      this.paint([x, y], [x, y], true);
    } else {
      return;
    }
    event.preventDefault();
  }

  moveCursor(cursor) {
    this.cursor = cursor;
    if (!this.picture) return;
    this.context.putImageData(this.picture, 0, 0);
    if (!cursor) return;
    this.context.strokeStyle = "#ff00ff";
    this.context.lineWidth = 1;
    this.context.strokeRect(cursor[0] - 1.5, cursor[1] - 1.5, 4, 4);
  }

  blob() {
    this.moveCursor(null);
    return new Promise((done) => this.canvas.toBlob(done, "image/png"));
  }
}
