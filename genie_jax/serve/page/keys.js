// Draws the buttons of a world as the keys of a keyboard.

import {sign} from "./names.js";

// In the order of Tab; play.css puts them where a keyboard has them.
const CLUSTER = ["ArrowLeft", "ArrowUp", "ArrowDown", "ArrowRight"];

export class Keys {
  // `listen(button, action)` connects the events of a key that was drawn.
  constructor(box, listen) {
    this.box = box;
    this.listen = listen;
    this.buttons = [];
  }

  // Draws the arrow keys as a cluster if a button has one, and a row of all
  // other keys.
  draw(names) {
    this.buttons = Array.from(
      {length: names.count}, (_, action) => this.key(names, action));
    const arrows = CLUSTER.map((key) => names.keys.indexOf(key));
    const row = group("row", this.buttons.filter(
      (_, action) => !arrows.includes(action)));
    const cluster = group("arrows", CLUSTER.map((key, i) => {
      const place = this.buttons[arrows[i]] ?? blank(key);
      place.dataset.key = key;
      return place;
    }));
    const some = arrows.some((action) => action >= 0);
    this.box.replaceChildren(...(some ? [cluster] : []),
      ...(row.children.length ? [row] : []));
  }

  key(names, action) {
    const button = document.createElement("button");
    const digit = names.digit(action);
    const key = names.keys[action];
    const [top, effect, number] = ["kbd", "b", "small"].map(
      (tag) => document.createElement(tag));
    top.textContent = sign(key) || String(action);
    effect.textContent = names.effect(action);
    if (key && key !== digit) number.textContent = action;
    button.append(top, effect, number);
    button.dataset.action = action;
    button.className = key || digit ? "key" : "key keyless";
    button.ariaPressed = "false";
    const pressed = [key, digit].filter(Boolean).join(" or ");
    button.ariaLabel = [names.effect(action), `button ${action}`,
      pressed && `key ${pressed}`].filter(Boolean).join(", ");
    this.listen(button, action);
    return button;
  }

  // Lights the keys of the buttons that are pressed.
  light(actions) {
    this.buttons.forEach((button, action) => {
      button.ariaPressed = String(actions.has(action));
    });
  }
}

function group(name, keys) {
  const box = document.createElement("div");
  box.className = name;
  box.append(...keys);
  return box;
}

// Returns an arrow key that presses nothing.
function blank(key) {
  const box = document.createElement("span");
  box.className = "key blank";
  box.ariaHidden = "true";
  box.textContent = sign(key);
  return box;
}
