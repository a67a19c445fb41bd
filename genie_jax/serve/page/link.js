// The WebSocket connection: implements docs/play.md and reconnects by itself.

export const VERSION = 1;
export const FRAME = 1;
export const COMPARED = 2;
export const FILM = 3;
const NO_ACTION = 0xffff;
const HEADER_BYTES = 16;
const PING_MS = 1000;
const SILENCE_MS = 8000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 8000;
// Close codes after which the page must not reconnect.
const FINAL = {
  4001: "The game continues in another window. Reload to take it back.",
  4002: "The session was idle for too long. Reload to start again.",
  4003: "The game was ended.",
};
// Of each world that this server has.
const TOKEN = `genie-token:${location.pathname}`;

export class Link {
  // `on` has open(message), lost(reason, final), text(message) and
  // binary(header, bytes); `known()` returns {run, have}.
  constructor(on, known) {
    this.on = on;
    this.known = known;
    this.open = false;
    this.wait = FIRST_WAIT_MS;
    this.roundTrip = null;
    setInterval(() => this.ping(), PING_MS);
    this.connect();
  }

  // Identifies the session, also in uploads; empty before the first welcome.
  get token() { return sessionStorage.getItem(TOKEN) ?? ""; }

  connect() {
    const address = new URL("play", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    const socket = new WebSocket(address);
    this.socket = socket;
    this.heard = performance.now();
    socket.binaryType = "arraybuffer";
    socket.onopen = () => socket.send(JSON.stringify({
      type: "hello", version: VERSION,
      token: this.token, ...this.known(),
    }));
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.heard = performance.now();
      if (typeof event.data === "string") this.take(JSON.parse(event.data));
      else this.takeBinary(event.data);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.closed(event.code);
    };
  }

  take(message) {
    if (message.type === "welcome") {
      sessionStorage.setItem(TOKEN, message.token);
      this.open = true;
      this.wait = FIRST_WAIT_MS;
      this.on.open(message);
    } else if (message.type === "pong") {
      this.roundTrip = performance.now() - message.time;
    } else {
      this.on.text(message);
    }
  }

  takeBinary(data) {
    const view = new DataView(data);
    const action = view.getUint16(2, true);
    this.on.binary({
      kind: view.getUint8(1),
      action: action === NO_ACTION ? null : action,
      run: view.getUint32(4, true),
      frame: view.getUint32(8, true),
      seq: view.getUint32(12, true),
    }, new Uint8Array(data, HEADER_BYTES));
  }

  closed(code) {
    this.open = false;
    const final = FINAL[code];
    if (final) {
      sessionStorage.removeItem(TOKEN);
      this.on.lost(final, true);
      return;
    }
    // Random, so that many pages do not reconnect at the same time.
    const wait = this.wait * (0.75 + Math.random() / 2);
    this.wait = Math.min(2 * this.wait, LONGEST_WAIT_MS);
    this.on.lost(code === 4000 ? "All places are taken" : "Reconnecting",
      false);
    setTimeout(() => this.connect(), wait);
  }

  ping() {
    if (!this.open) return;
    if (performance.now() - this.heard > SILENCE_MS) {
      // A lost network does not always close the socket.
      const socket = this.socket;
      this.socket = null;
      socket.close();
      this.closed(0);
      return;
    }
    this.send({type: "ping", time: performance.now()});
  }

  send(message) {
    if (this.open) this.socket.send(JSON.stringify(message));
    return this.open;
  }
}
