// What the buttons of a world are called and which keys press them. The player
// can change both in a dialog; this browser stores them for the world.

const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
// The keys of buttons that were measured to do this.
const KEYS = {
  left: "ArrowLeft", right: "ArrowRight", jump: "ArrowUp", fall: "ArrowDown"};
const SIGNS = {
  ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "space"};
const DIGITS = "0123456789";  // Digit k presses button k.

// Returns what is printed on a key of a keyboard.
export function sign(key) {
  return SIGNS[key] ?? key;
}

// Returns whether the world knows what at least one of its buttons does. A
// button without a name is then one whose effect is unclear.
export function measured(world) {
  return world.buttons.some(({name}) => name);
}

export class Names {
  // `rows` is the part of the dialog with one row per button; `changed` is
  // called after a name or a key has changed.
  constructor(rows, changed) {
    this.rows = rows;
    this.changed = changed;
  }

  // Names and keys are those that this browser stored, otherwise the world's.
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
      return typeof key === "string" ? key : kept ? "" : own[i];
    });
    this.changed();
  }

  get count() { return this.names.length; }

  // Returns the words for a button in a sentence.
  name(action) {
    return this.names[action] || `Button ${action}`;
  }

  // Returns what a button does, as shown on its key; "" if nothing is known.
  effect(action) {
    const unclear = measured(this.world) && !this.world.buttons[action].name;
    return this.names[action] || (unclear ? "unclear" : "");
  }

  // Returns the digit that presses a button, "" if it has none.
  digit(action) {
    return DIGITS[action] ?? "";
  }

  // Returns the button that a key presses, null if there is none.
  actionOf(key) {
    const own = this.keys.indexOf(key);
    if (own >= 0) return own;
    const digit = DIGITS.indexOf(key);
    // Without measured names, the arrow keys press the first four buttons. They
    // are not shown, as an arrow would claim a direction.
    const found = digit < 0 && !measured(this.world)
      ? ARROWS.indexOf(key) : digit;
    return found >= 0 && found < this.count ? found : null;
  }

  // Fills the dialog.
  edit() {
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
      row.append(number, input, this.keyButton(action));
      return row;
    }));
  }

  // Returns a button that assigns the next key that is pressed.
  keyButton(action) {
    const button = document.createElement("button");
    button.type = "button";
    const show = () => {
      button.textContent = this.keys[action]
        ? `Key ${sign(this.keys[action])}` : "Set a key";
      button.ariaLabel = `${button.textContent}, for button ${action}`;
    };
    show();
    button.onclick = () => {
      button.textContent = "Press a key";
      button.onkeydown = (event) => {
        if (event.key === "Tab") return;
        event.preventDefault();
        event.stopPropagation();
        button.onkeydown = null;
        if (event.key !== "Escape") this.assign(action, event.key);
        this.edit();
        this.rows.children[action].lastChild.focus();
      };
      button.onblur = () => {
        button.onkeydown = null;
        show();
      };
    };
    return button;
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
    this.changed();
  }

  forget() {
    localStorage.removeItem(this.store);
    this.setWorld(this.world);
    this.edit();
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
  return buttons.map(({name, number, share}) => {
    const better = (other) => other.name === name && (other.share > share
      || (other.share === share && other.number < number));
    return buttons.some(better) ? "" : KEYS[name] ?? "";
  });
}
