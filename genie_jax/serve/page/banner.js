// Says what each button of the world was measured to do, until it is closed.

import {measured} from "./names.js";

export class Banner {
  constructor(box) {
    this.box = box;
    [this.intro, this.list] = box.querySelectorAll("p, ul");
    box.querySelector("button").onclick = () => this.close();
  }

  setWorld(world) {
    this.store = `genie-banner-${world.fingerprint}`;
    this.intro.textContent = intro(world);
    const lines = measured(world) ? world.buttons.map(line) : [];
    this.list.replaceChildren(...lines.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
    this.list.hidden = !lines.length;
    // A closed banner returns if the world was measured again since.
    this.text = [this.intro.textContent, ...lines].join("\n");
    this.box.hidden = localStorage.getItem(this.store) === this.text;
  }

  close() {
    localStorage.setItem(this.store, this.text);
    this.box.hidden = true;
    document.getElementById("stage").focus();
  }
}

function intro(world) {
  if (!measured(world)) {
    return "This world has no measured names for its buttons: they are shown "
      + `as numbers, 0 to ${world.num_actions - 1}.`;
  }
  return world.buttons.some(({source}) => source === "clips")
    ? "Measured in recorded clips; the world may not follow them."
    : "Measured while this world was played.";
}

function line({name, number, share}) {
  return name
    ? `Button ${number}: ${name}, in ${Math.round(100 * share)} % of moments`
    : `Button ${number}: unclear`;
}
