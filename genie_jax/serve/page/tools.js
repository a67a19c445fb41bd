// Dialogs of the page: compare the buttons, record a video, share a run.

import {toFile, toLink, fromFile} from "./run.js";
import {decode} from "./view.js";

const find = (id) => document.getElementById(id);
const COMPARED_MS = 180;  // Duration of a frame of a comparison.
const REST = 4;  // Extra durations of the last frame.

// Opens a dialog; its [data-close] buttons close it.
export function open(id) {
  find(id).showModal();
}

export function wireDialogs() {
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
}

// Shows the effect of each action from one frame, side by side.
export class Compare {
  constructor(game) {
    this.game = game;
    this.strips = [];
    this.timer = null;
    find("compare").onclick = () => {
      open("compare-dialog");
      this.ask();
    };
    find("compare-again").onclick = () => this.ask();
    find("compare-count").onchange = () => this.ask();
    find("compare-dialog").onclose = () => clearInterval(this.timer);
  }

  ask() {
    const {game} = this;
    if (game.newest < 0) return;
    const {width, height, num_actions: count} = game.world;
    find("compare-frame").textContent = game.shown;
    this.strips = Array.from({length: count}, () => []);
    this.canvases = this.strips.map((_, action) => {
      const figure = document.createElement("figure");
      const canvas = document.createElement("canvas");
      canvas.width = width;
      canvas.height = height;
      canvas.role = "img";
      canvas.ariaLabel = `What ${game.names.name(action)} does`;
      // Two columns on a phone; a whole number of device pixels per pixel.
      const ratio = devicePixelRatio || 1;
      const scale = Math.max(1, Math.floor(
        ratio * Math.min(192, (innerWidth - 120) / 2)
          / Math.max(width, height))) / ratio;
      canvas.style.width = `${width * scale}px`;
      canvas.style.height = `${height * scale}px`;
      const caption = document.createElement("figcaption");
      caption.textContent = game.names.name(action);
      figure.append(canvas, caption);
      return {figure, canvas};
    });
    find("compared").replaceChildren(
      ...this.canvases.map(({figure}) => figure));
    game.link.send({
      type: "compare", frame: game.shown,
      frames: Number(find("compare-count").value)});
    clearInterval(this.timer);
    this.tick = 0;
    this.timer = setInterval(() => this.draw(), COMPARED_MS);
  }

  async take(header, png) {
    const strip = this.strips[header.action];
    if (!strip) return;
    const picture = await decode(png.slice());
    strip[header.frame - 1] = picture;
    if (header.frame === 1) this.paint(header.action, picture);
  }

  // Shows the same frame of all strips, up to the shortest strip.
  draw() {
    const there = Math.min(...this.strips.map((strip) => strip.length));
    if (!there) return;
    this.tick = (this.tick + 1) % (there + REST);
    const at = Math.min(this.tick, there - 1);
    this.strips.forEach((strip, action) => {
      if (strip[at]) this.paint(action, strip[at]);
    });
  }

  paint(action, picture) {
    this.canvases[action].canvas.getContext("2d").drawImage(picture, 0, 0);
  }
}

// Saves a video of some frames, which the server makes.
export class Record {
  constructor(game) {
    this.game = game;
    find("record").onclick = () => {
      find("record-first").value = game.first;
      find("record-last").value = game.newest;
      for (const name of ["first", "last"]) {
        find(`record-${name}`).min = game.first;
        find(`record-${name}`).max = game.newest;
      }
      open("record-dialog");
    };
    find("record-form").onsubmit = (event) => {
      event.preventDefault();
      const sent = game.link.send({
        type: "record", format: find("record-format").value,
        first: Number(find("record-first").value),
        last: Number(find("record-last").value),
        scale: Number(find("record-scale").value)});
      this.wait(sent);
    };
  }

  wait(waiting) {
    const button = find("record-save");
    button.disabled = waiting;
    button.textContent = waiting ? "Making it …" : "Save";
  }

  // A video that is ready while the connection is lost is not sent again.
  lost() {
    if (!find("record-save").disabled) return;
    this.wait(false);
    this.game.say("The connection was lost; save the video again.", true);
  }

  take(header, bytes) {
    const ending = header.action ? "mp4" : "gif";
    const type = header.action ? "video/mp4" : "image/gif";
    this.wait(false);
    find("record-dialog").close();
    save(new Blob([bytes], {type}), `${this.game.fileName()}.${ending}`);
    this.game.say("The video was saved.");
  }
}

// Shares the run as a link or a file.
export class Share {
  constructor(game) {
    this.game = game;
    find("share").onclick = () => this.show();
    find("share-copy").onclick = () => this.copy();
    find("share-save").onclick = () =>
      save(toFile(game.recipe()), `${game.fileName()}.json`);
    find("share-open").onclick = () => find("share-file").click();
    find("share-file").onchange = async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (!file) return;
      find("share-dialog").close();
      game.openRun(() => file.text().then(fromFile));
    };
  }

  show() {
    const {game} = this;
    const recipe = game.recipe();
    const link = recipe.prompt === null ? null : toLink(recipe);
    find("share-frame").textContent = game.shown;
    find("share-link").value = link ?? "";
    find("share-link").disabled = link === null;
    find("share-copy").disabled = link === null;
    find("share-why").hidden = link !== null;
    find("share-why").textContent = recipe.prompt === null
      ? "It starts from your own picture, which does not fit into a link; "
        + "save a file."
      : "It is too long for a link; save a file.";
    open("share-dialog");
  }

  async copy() {
    const input = find("share-link");
    input.select();
    try {
      await navigator.clipboard.writeText(input.value);
      this.game.say("The link was copied.", true);
    } catch {
      this.game.say("Copy the selected link with Ctrl+C.", true);
    }
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
