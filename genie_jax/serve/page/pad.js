// Presses the buttons of a world by keys and pointers, and repeats them while
// they are held.

import {Keys} from "./keys.js";

const MOST_IN_FLIGHT = 2;  // One is drawn, one is on its way.
const MOST_TAPS = 8;
const HOLD_MS = 200;  // Buttons held for less than this are one press.

export class Pad {
  // `send(action, seq)` sends an action and returns whether it was sent.
  constructor(box, names, send) {
    this.names = names;
    this.keys = new Keys(box, (button, action) => this.listen(button, action));
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

  draw() {
    this.keys.draw(this.names);
    this.mark();
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

  keyDown(event) {
    if (!this.names.world || document.querySelector("dialog[open]")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches("input:not([type=range]), select, textarea")) return;
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) {
      return;
    }
    let action = this.names.actionOf(event.key);
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
    this.keys.light(new Set(this.held.values()));
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
}
