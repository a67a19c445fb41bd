// The game: handles server messages, the timeline and the controls.

import {Banner} from "./banner.js";
import {Editor} from "./editor.js";
import {COMPARED, FILM, FRAME, Link} from "./link.js";
import {Names} from "./names.js";
import {Pad} from "./pad.js";
import {fromHash} from "./run.js";
import {Compare, open, Record, Share, wireDialogs} from "./tools.js";
import {Screen} from "./view.js";

const find = (id) => document.getElementById(id);
const NOTICE_MS = 5000;
const SIDE = 1024;  // Maximum side of pictures that this page converts.

class Game {
  constructor() {
    this.world = null;
    this.lines = new Map();  // Number -> {frames, actions, seed, prompt, ...}.
    this.line = null;
    this.run = 0;
    this.looking = null;  // Number of the frame shown; null for the newest.
    this.screen = new Screen(
      find("frame"), find("screen"), find("stage"), (fps, latency) => {
        find("fps").textContent = fps || "–";
        find("latency").textContent =
          latency === null ? "–" : `${Math.round(latency)} ms`;
      });
    this.names = new Names(find("name-rows"), () => this.pad.draw());
    this.pad = new Pad(find("buttons"), this.names, (action, seq) =>
      this.act(action, seq));
    this.banner = new Banner(find("banner"));
    this.compare = new Compare(this);
    this.record = new Record(this);
    this.share = new Share(this);
    this.editor = new Editor(find("editor-dialog"));
    wireDialogs();
    this.wireTimeline();
    this.wireStart();
    this.wireTools();
    this.link = new Link({
      open: (message) => this.welcome(message),
      lost: (reason, final) => this.lost(reason, final),
      text: (message) => this.take(message),
      binary: (header, bytes) => this.takeBinary(header, bytes),
    }, () => ({run: this.run, have: this.newest}));
  }

  get newest() { return this.line ? this.line.frames.length - 1 : -1; }
  get first() { return this.line?.first ?? 0; }
  get shown() { return this.looking ?? Math.max(this.newest, 0); }

  // Tells a screen reader; with `aloud`, also shows a notice on the page.
  say(text, aloud = false) {
    find("said").textContent = text;
    if (!aloud) return;
    find("notice").textContent = text;
    find("notice").hidden = false;
    clearTimeout(this.noticeTimer);
    this.noticeTimer = setTimeout(() => {
      find("notice").hidden = true;
    }, NOTICE_MS);
  }

  welcome(message) {
    const known = this.world !== null;
    if (known && message.world.replay !== this.world.replay) {
      location.reload();  // Another world is served now.
      return;
    }
    this.state("open", "connected");
    this.limits = message.limits;
    if (!known) this.setWorld(message);
    if (!message.resumed) {
      this.run = 0;
      this.pad.resumed(0, false);
    }
    const asked = this.openHash();
    // A running game is described by the next message; others begin here.
    if (!asked && !message.playing) {
      if (this.line) this.restore();
      else if (message.prompts) this.begin({prompt: 0});
    }
  }

  setWorld({world, worlds, prompts}) {
    this.world = world;
    this.setWorlds(worlds);
    document.title = `${world.name} · genie play`;
    find("world").textContent = world.name;
    this.screen.resize(world.width, world.height);
    this.names.setWorld(world);
    this.banner.setWorld(world);
    this.pace();
    this.roll();
    find("gallery").replaceChildren(...Array.from({length: prompts}, (_, i) => {
      const button = document.createElement("button");
      const picture = document.createElement("img");
      picture.src = `prompts/${i}.png`;
      picture.alt = "";
      picture.width = world.width;
      picture.height = world.height;
      button.ariaLabel = `Picture ${i + 1}`;
      button.append(picture);
      button.onclick = () => this.begin({prompt: i});
      return button;
    }));
  }

  // Offers the other worlds of this server.
  setWorlds(worlds) {
    find("others").hidden = worlds.length < 2;
    find("worlds").replaceChildren(...worlds.map(({name, path}) => {
      const option = document.createElement("option");
      option.textContent = name;
      option.value = path;
      option.selected = path === location.pathname;
      return option;
    }));
    find("worlds").onchange = () => location.assign(find("worlds").value);
  }

  lost(reason, final) {
    this.state("lost", final ? "ended" : reason);
    this.pad.releaseAll();
    this.record.lost();
    if (final) this.say(reason, true);
  }

  state(name, text) {
    const pill = find("connection");
    pill.dataset.state = name;
    pill.textContent = text;
  }

  // Starts from a prompt's number or an uploaded picture's name.
  begin({prompt = null, picture = null, seed = this.seed(), actions = []}) {
    this.link.send(prompt === null
      ? {type: "start", picture, seed, actions}
      : {type: "start", prompt, seed, actions});
  }

  // Replays the game after its session has expired on the server.
  restore() {
    const recipe = this.recipe(this.newest);
    this.lines.clear();
    this.line = null;
    this.openRun(async () => recipe);
  }

  act(action, seq) {
    if (!this.line) return false;
    const back = this.looking !== null && this.looking < this.newest;
    if (!back && this.newest >= this.limits.frames) {
      // Checked here too, as a held button would send requests forever.
      this.say(`This run has ${this.limits.frames} frames, the maximum; play `
        + "from an earlier frame, or start again.", true);
      return false;
    }
    if (back) {
      this.link.send({type: "rewind", frame: this.looking});
      // Later presses must not rewind again.
      this.looking = null;
    }
    return this.link.send({type: "act", action, seq});
  }

  take(message) {
    if (message.type === "line") this.takeLine(message);
    else if (message.type === "likeness") this.takeLikeness(message);
    else if (message.type === "error") {
      if (message.seq) this.pad.arrived(message.seq);
      this.record.wait(false);
      this.say(message.error, true);
    }
  }

  takeLine(message) {
    const before = this.line;
    const same = message.reason === "resumed" && message.run === this.run;
    const old = this.lines.get(message.line);
    let frames = [];
    if (same || message.reason === "switched") frames = old?.frames ?? [];
    else if (["rewound", "branched"].includes(message.reason)) {
      frames = before.frames.slice(0, message.end + 1);
    }
    this.line = {
      number: message.line, frames, first: message.first,
      actions: message.actions.slice(0, Math.max(message.end, 0)),
      seed: message.seed, prompt: message.prompt,
      picture: message.picture ?? null};
    this.run = message.run;
    const kept = new Set(message.lines.map((line) => line.line));
    for (const number of this.lines.keys()) {
      if (!kept.has(number)) this.lines.delete(number);
    }
    this.lines.set(message.line, this.line);
    this.looking = null;
    if (message.reason === "started") find("unlike").hidden = true;
    if (message.reason === "resumed") this.pad.resumed(message.seq, same);
    else this.pad.moved(message.seq);
    find("seed").value = message.seed;
    [...find("gallery").children].forEach((button, i) => {
      button.ariaPressed = String(i === message.prompt);
    });
    this.drawLines(message.lines);
    this.screen.clear();
    if (this.newest >= 0) this.screen.show(frames[this.newest]);
    this.timeline();
    const words = {
      started: "A new game.", branched: `Branched at frame ${message.end}.`,
      rewound: `Back at frame ${message.end}.`, resumed: "Connected again.",
      switched: `Line ${message.line + 1}.`};
    this.say(words[message.reason]);
  }

  // Says in one line if the player's own picture is unlike those of the world.
  takeLikeness({run, unlike, psnr, least}) {
    if (run !== this.run) return;
    const line = find("unlike");
    line.hidden = !unlike;
    if (!unlike) return;
    line.textContent = "This picture is unlike those that the world knows, so "
      + "it may be drawn poorly.";
    line.title = `The world shows it at ${psnr.toFixed(1)} dB, and its own `
      + `pictures at ${least.toFixed(1)} dB or more.`;
    this.say(line.textContent, true);
  }

  takeBinary(header, bytes) {
    if (header.kind === COMPARED) this.compare.take(header, bytes);
    else if (header.kind === FILM) this.record.take(header, bytes);
    else if (header.kind === FRAME && header.run === this.run) {
      const png = bytes.slice();
      this.line.frames[header.frame] = png;
      this.trim();
      if (header.frame > 0) {
        this.line.actions[header.frame - 1] = header.action;
      }
      const pressed = header.seq ? this.pad.arrived(header.seq) : null;
      if (this.looking === null) {
        this.screen.show(png, pressed, {
          frame: header.frame, seq: header.seq, action: header.action});
      }
      this.timeline();
    }
  }

  // Keeps the same number of frames as the server.
  trim() {
    while (this.newest - this.first >= this.limits.kept) {
      delete this.line.frames[this.line.first];
      this.line.first += 1;
    }
    if (this.looking !== null) {
      this.looking = Math.max(this.looking, this.first);
    }
  }

  timeline() {
    const slider = find("slider");
    slider.min = this.first;
    slider.max = Math.max(this.newest, 0);
    slider.value = this.shown;
    find("shown").textContent = this.shown;
    find("newest").textContent = Math.max(this.newest, 0);
    const past = this.looking !== null && this.looking < this.newest;
    find("rewind").disabled = !past;
    find("branch").disabled = this.newest < 0;
    find("back").disabled = this.shown <= this.first;
    find("forth").disabled = !past;
  }

  look(frame) {
    const at = Math.min(Math.max(frame, this.first), this.newest);
    this.looking = at === this.newest ? null : at;
    const png = this.line?.frames[at];
    if (png) this.screen.show(png);
    this.timeline();
  }

  drawLines(lines) {
    const select = find("lines");
    select.replaceChildren(...lines.map(({line}) => new Option(
      `${line + 1}`, line, false, line === this.line.number)));
    select.parentElement.hidden = lines.length < 2;
  }

  wireTimeline() {
    find("slider").oninput = (event) => this.look(Number(event.target.value));
    find("back").onclick = () => this.look(this.shown - 1);
    find("forth").onclick = () => this.look(this.shown + 1);
    find("rewind").onclick = () =>
      this.link.send({type: "rewind", frame: this.shown});
    find("branch").onclick = () =>
      this.link.send({type: "branch", frame: this.shown});
    find("lines").onchange = (event) => {
      const line = Number(event.target.value);
      this.link.send({
        type: "switch", line,
        have: (this.lines.get(line)?.frames.length ?? 0) - 1});
    };
    document.addEventListener("keydown", (event) => {
      if (document.querySelector("dialog[open]")
          || event.target.matches("input:not([type=range]), select")
          || event.defaultPrevented) return;
      if (event.key === ",") this.look(this.shown - 1);
      else if (event.key === ".") this.look(this.shown + 1);
    });
  }

  wireStart() {
    const upload = (file) => file && this.upload(file);
    find("choose").onclick = () => find("file").click();
    find("file").onchange = (event) => {
      upload(event.target.files[0]);
      event.target.value = "";
    };
    find("draw").onclick = () =>
      this.editor.open(this.world.width, this.world.height);
    find("editor-frame").onclick = () => this.editor.copy(find("frame"));
    find("editor-use").onclick = async () => {
      upload(await this.editor.blob());
      find("editor-dialog").close();
    };
    document.addEventListener("paste", (event) => upload(
      [...event.clipboardData.files].find((f) => f.type.startsWith("image/"))));
    const dragging = (on) => document.body.classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      dragging(true);
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) dragging(false);
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      dragging(false);
      upload(event.dataTransfer.files[0]);
    });
    find("dice").onclick = () => this.roll();
    find("again").onclick = () => {
      if (!this.line) return;
      const recipe = {...this.recipe(0), seed: this.seed()};
      this.openRun(async () => recipe);
    };
  }

  wireTools() {
    find("names").onclick = () => {
      this.names.edit();
      open("names-dialog");
    };
    find("names-reset").onclick = () => this.names.forget();
    find("speed").onchange = () => this.pace();
    addEventListener("hashchange", () => this.openHash());
  }

  pace() {
    const chosen = find("speed").value;
    const fps = chosen === "world" ? this.world.fps : Number(chosen);
    this.pad.gap = fps ? 1000 / fps : 0;
  }

  seed() {
    const seed = Math.floor(Number(find("seed").value));
    return seed >= 0 && seed < 2 ** 32 ? seed : 0;
  }

  roll() {
    find("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1e6;
  }

  // Sends a picture and starts from it. If the server cannot read it, or it is
  // too large, this browser converts it to PNG and sends it again.
  async upload(file) {
    let answer = null;
    if (file.size <= this.limits.upload_bytes) {
      answer = await this.post(file);
    }
    if (!answer || answer.status === 415) {
      const small = await shrink(file);
      if (small) answer = await this.post(small);
    }
    if (answer?.ok) {
      this.begin({picture: answer.headers.get("x-picture")});
    } else {
      const reason = answer ? (await answer.json()).error : null;
      this.say(reason ?? "This picture cannot be read.", true);
    }
  }

  async post(blob) {
    try {
      return await fetch("pictures", {
        method: "POST", body: blob, headers: {"x-session": this.link.token}});
    } catch {
      return new Response(
        JSON.stringify({error: "The picture could not be sent."}),
        {status: 503});
    }
  }

  // Returns what is needed to play up to a frame again.
  recipe(frame = this.shown) {
    const {seed, prompt, picture, actions} = this.line;
    return {
      world: this.world.name, replay: this.world.replay, seed, prompt,
      picture, actions: actions.slice(0, frame)};
  }

  fileName() {
    return `${this.world.name}-${this.line.seed}`.replace(/[^\w-]+/g, "-");
  }

  openHash() {
    if (!location.hash.includes("run=")) return false;
    const hash = location.hash;
    history.replaceState(null, "", location.pathname);
    this.openRun(async () => fromHash(hash));
    return true;
  }

  // Plays a shared run from its beginning.
  async openRun(read) {
    try {
      const run = await read();
      if (run.replay !== this.world.replay) {
        throw new Error("This run was made in another world, or with other "
          + "settings; it cannot be replayed here.");
      }
      const {seed, actions} = run;
      if (run.picture === null) {
        this.begin({prompt: run.prompt, seed, actions});
        return;
      }
      const bytes = Uint8Array.from(
        atob(run.picture), (letter) => letter.charCodeAt(0));
      const answer = await this.post(new Blob([bytes]));
      if (!answer.ok) throw new Error((await answer.json()).error);
      this.begin({picture: answer.headers.get("x-picture"), seed, actions});
    } catch (error) {
      this.say(error.message, true);
    }
  }
}

// Returns a picture as PNG, decoded by this browser and reduced in size.
async function shrink(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
    const canvas = new OffscreenCanvas(
      Math.max(1, Math.round(picture.width * scale)),
      Math.max(1, Math.round(picture.height * scale)));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    return await canvas.convertToBlob({type: "image/png"});
  } catch {
    return null;  // This browser cannot read it either.
  }
}

new Game();
