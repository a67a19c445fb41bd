// The buttons of a world: keys, pointers, names, and repetition while held.

const DIGITS = "0123456789";  // Digit k presses button k.
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
// The keys of buttons that were measured to do this.
const KEYS = {
  left: "ArrowLeft", right: "ArrowRight", jump: "ArrowUp", fall: "ArrowDown"};
const SIGNS = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space"};
const MOST_IN_FLIGHT = 2;  // One is drawn, one is on its way.
const MOST_TAPS = 8;
const HOLD_MS = 200;  // Buttons held for less than this are one press.

export class Pad {
  // `send(action, seq)` sends an action and returns whether it was sent.
  constructor(box, rows, send) {
    this.box = box;
    this.rows = rows;
    this.send = send;
    this.held = new Map();  // Key or pointer that holds a button -> action.
    this.taps = [];  // Presses that are not sent yet.
    this.flight = new Map();  // Sequence number -> time of the press.
    this.seq = 0;
    this.gap = 0;  // Minimum time between two actions in ms.
    this.next = 0;
    this.repeat = 0;  // Time when a held button begins to repeat.
    this.timer = null;
    document.addEventListener("keydown", (event) => this.keyDown(event));
    document.addEventListener("keyup", (event) => this.release(event.code));
    addEventListener("blur", () => this.releaseAll());
    document.addEventListener("visibilitychange", () => this.releaseAll());
  }

  // Creates the buttons of a world. Names and keys are those that this browser
  // stored, otherwise those of the world, otherwise the arrow keys in order.
  setWorld(world) {
    this.world = world;
    this.store = `genie-buttons-${world.fingerprint}`;
    const kept = read(this.store);
    const count = world.num_actions;
    this.names = Array.from({length: count}, (_, i) => {
      const name = kept?.names?.[i];
      return typeof name === "string"
        ? name.slice(0, 24) : world.buttons[i].name;
    });
    const own = defaultKeys(world.buttons);
    this.keys = Array.from({length: count}, (_, i) => {
      const key = kept?.keys?.[i];
      return typeof key === "string" ? key : kept ? "" : own[i] ?? "";
    });
    this.draw();
  }

  draw() {
    const count = this.names.length;
    this.box.replaceChildren(...this.names.map((_, action) => {
      const button = document.createElement("button");
      button.append(
        document.createElement("b"), document.createElement("small"));
      button.dataset.action = action;
      button.ariaPressed = "false";
      this.listen(button, action);
      return button;
    }));
    document.getElementById("last-key").textContent =
      DIGITS[Math.min(count, DIGITS.length) - 1];
    this.label();
  }

  label() {
    [...this.box.children].forEach((button, action) => {
      const [name, keys] = button.children;
      const digit = DIGITS[action] ?? "";
      const key = this.keys[action];
      name.textContent = this.name(action);
      keys.textContent = [digit, SIGNS[key] ?? key].filter(Boolean).join(" · ");
      button.ariaLabel = `${this.name(action)}, button ${action}`
        + (key ? `, key ${key}` : "");
    });
  }

  name(action) {
    return this.names[action] || `Button ${action}`;
  }

  listen(button, action) {
    button.onpointerdown = (event) => {
      if (event.button !== 0) return;
      button.setPointerCapture(event.pointerId);
      this.press(`pointer ${event.pointerId}`, action, event.timeStamp);
    };
    const up = (event) => this.release(`pointer ${event.pointerId}`);
    button.onpointerup = up;
    button.onpointercancel = up;
    button.onlostpointercapture = up;
    button.oncontextmenu = (event) => event.preventDefault();
    // A click without a pointer comes from a screen reader.
    button.onclick = (event) => {
      if (event.detail === 0 && event.pointerType === "") {
        this.tap(action, event.timeStamp);
      }
    };
  }

  // Returns the action of a key, null if it has none.
  actionOf(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return null;
    const own = this.keys?.indexOf(event.key) ?? -1;
    if (own >= 0) return own;
    const digit = DIGITS.indexOf(event.key);
    return digit >= 0 && digit < this.names.length ? digit : null;
  }

  keyDown(event) {
    if (!this.world || document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target.matches("input:not([type=range]), select, textarea")) return;
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) {
      return;
    }
    let action = this.actionOf(event);
    const focused = target.closest("#buttons button");
    if (focused && (event.key === " " || event.key === "Enter")) {
      action = Number(focused.dataset.action);
    }
    if (action === null) return;
    event.preventDefault();
    if (!event.repeat) this.press(event.code, action, event.timeStamp);
  }

  press(by, action, time) {
    this.held.delete(by);
    this.held.set(by, action);
    this.repeat = performance.now() + HOLD_MS;
    this.mark();
    this.tap(action, time);
  }

  tap(action, time) {
    if (this.taps.length < MOST_TAPS) this.taps.push([action, time]);
    this.pump();
  }

  release(by) {
    if (this.held.delete(by)) this.mark();
  }

  releaseAll() {
    this.held.clear();
    this.mark();
  }

  mark() {
    const active = new Set(this.held.values());
    [...this.box.children].forEach((button, action) => {
      button.ariaPressed = String(active.has(action));
    });
  }

  // Sends the next press, or the last button that is held, at the chosen speed.
  pump() {
    clearTimeout(this.timer);
    if (this.flight.size >= MOST_IN_FLIGHT) return;
    if (!this.taps.length && !this.held.size) return;
    const now = performance.now();
    const due = this.taps.length
      ? this.next : Math.max(this.next, this.repeat);
    if (now < due) {
      this.timer = setTimeout(() => this.pump(), due - now);
      return;
    }
    const [action, time] = this.taps.shift()
      ?? [[...this.held.values()].at(-1), now];
    if (!this.send(action, this.seq + 1)) {
      this.taps.length = 0;
      return;
    }
    this.seq += 1;
    this.flight.set(this.seq, time);
    // A slightly late action does not delay the next one.
    this.next = Math.max(this.next + this.gap, now + this.gap / 2);
    this.pump();
  }

  // Records the arrival of a frame; returns when its button was pressed.
  arrived(seq) {
    const time = this.flight.get(seq) ?? null;
    this.flight.delete(seq);
    // Deferred, so that the page can paint before the next action is sent.
    setTimeout(() => this.pump());
    return time;
  }

  // A new run: actions up to `seq`, of the run before, give no more frames.
  moved(seq) {
    this.forgetFlight((sent) => sent <= seq);
    this.seq = Math.max(this.seq, seq);
  }

  // A new connection: actions that the server did not receive are lost.
  resumed(seq, same) {
    this.forgetFlight((sent) => !same || sent > seq);
    this.seq = Math.max(this.seq, seq);
  }

  forgetFlight(lost) {
    for (const sent of [...this.flight.keys()]) {
      if (lost(sent)) this.flight.delete(sent);
    }
    setTimeout(() => this.pump());
  }

  // Fills the dialog that edits names and keys.
  editNames() {
    this.rows.replaceChildren(...this.names.map((name, action) => {
      const row = document.createElement("div");
      row.className = "name-row";
      const number = document.createElement("span");
      number.textContent = action;
      const input = document.createElement("input");
      input.maxLength = 24;
      input.value = name;
      input.placeholder = `Button ${action}`;
      input.ariaLabel = `Name of button ${action}`;
      input.oninput = () => {
        this.names[action] = input.value.trim();
        this.save();
      };
      const key = document.createElement("button");
      key.type = "button";
      const show = () => {
        key.textContent = this.keys[action]
          ? `Key ${SIGNS[this.keys[action]] ?? this.keys[action]}` : "Set a key";
        key.ariaLabel = `${key.textContent}, for button ${action}`;
      };
      show();
      key.onclick = () => {
        key.textContent = "Press a key";
        key.onkeydown = (event) => {
          if (event.key === "Tab") return;
          event.preventDefault();
          event.stopPropagation();
          key.onkeydown = null;
          if (event.key !== "Escape") this.assign(action, event.key);
          this.editNames();
          this.rows.children[action].lastChild.focus();
        };
        key.onblur = () => {
          key.onkeydown = null;
          show();
        };
      };
      row.append(number, input, key);
      return row;
    }));
  }

  assign(action, key) {
    const clear = key === "Backspace" || key === "Delete";
    this.keys = this.keys.map((old, i) =>
      i === action ? (clear ? "" : key) : old === key ? "" : old);
    this.save();
  }

  save() {
    localStorage.setItem(
      this.store, JSON.stringify({names: this.names, keys: this.keys}));
    this.label();
  }

  forget() {
    localStorage.removeItem(this.store);
    this.setWorld(this.world);
    this.editNames();
  }
}

function read(store) {
  try {
    return JSON.parse(localStorage.getItem(store));
  } catch {
    return null;  // Not a value of this page, or none.
  }
}

// Returns the key of each button. If several do the same, the one that does it
// most often gets the key.
function defaultKeys(buttons) {
  if (!buttons.some(({name}) => name)) return ARROWS;
  return buttons.map(({name, number, share}) => {
    const better = (other) => other.name === name && (other.share > share
      || (other.share === share && other.number < number));
    return buttons.some(better) ? "" : KEYS[name] ?? "";
  });
}
