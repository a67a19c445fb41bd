// Draws frames in order, at an integer scale, and measures their speed.

const MOST_BEHIND = 4;  // Queued frames above which the oldest is skipped.
const MOST_MEASURES = 2000;
const SECOND = 1000;
const LOWEST = 160;  // Height in CSS pixels below which the page scrolls.
const BELOW = 8;  // Free space below the stage.

export class Screen {
  // `box` contains the canvas, and `stage` the box and the controls below it.
  // `meters(fps, latency)` is called twice per second.
  constructor(canvas, box, stage, meters) {
    this.canvas = canvas;
    this.box = box;
    this.stage = stage;
    this.context = canvas.getContext("2d");
    this.meters = meters;
    this.queue = [];
    this.busy = false;
    this.painted = [];
    this.latencies = [];
    const observer = new ResizeObserver(() => this.fit());
    for (const each of stage.children) observer.observe(each);
    addEventListener("resize", () => this.fit());
    setInterval(() => this.report(), SECOND / 2);
  }

  resize(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.fit();
  }

  // Uses a whole number of device pixels per pixel, so that nothing is blurred.
  // The stage fits the window, so that all controls are seen without scrolling.
  fit() {
    const ratio = devicePixelRatio || 1;
    const {width, height} = this.canvas;
    const wide = this.box.clientWidth;
    const [box, stage] = [this.box, this.stage].map(
      (each) => each.getBoundingClientRect());
    const rest = box.top + scrollY + stage.bottom - box.bottom + BELOW;
    const high = Math.max(
      LOWEST, document.documentElement.clientHeight - rest);
    const scale = Math.max(1, Math.floor(
      ratio * Math.min(wide / width, high / height))) / ratio;
    this.canvas.style.width = `${width * scale}px`;
    this.canvas.style.height = `${height * scale}px`;
  }

  // Shows a PNG. `pressed` is the time of the key press that led to it, or
  // null; `about` is stored in the performance entry of the painted frame.
  show(png, pressed = null, about = null) {
    this.queue.push({png, pressed, about});
    if (this.queue.length > MOST_BEHIND) this.queue.shift();
    if (!this.busy) this.drain();
  }

  clear() {
    this.queue.length = 0;
  }

  async drain() {
    this.busy = true;
    while (this.queue.length) {
      const item = this.queue.shift();
      const picture = await decode(item.png);
      this.context.drawImage(picture, 0, 0);
      picture.close();
      if (item.about) this.measure(item);
    }
    this.busy = false;
  }

  // The frame is painted when the first task after the next paint runs.
  measure({pressed, about}) {
    requestAnimationFrame(() => {
      const channel = new MessageChannel();
      channel.port1.onmessage = () => {
        const now = performance.now();
        if (this.painted.length >= MOST_MEASURES) {
          performance.clearMeasures("genie:frame");
          this.painted.splice(0, MOST_MEASURES / 2);
        }
        this.painted.push(now);
        if (pressed !== null) {
          this.latencies.push(now - pressed);
          if (this.latencies.length > 10) this.latencies.shift();
        }
        performance.measure("genie:frame", {
          start: pressed ?? now, end: now, detail: about});
      };
      channel.port2.postMessage(0);
    });
  }

  report() {
    const now = performance.now();
    const recent = this.painted.filter((time) => now - time < SECOND);
    const mean = this.latencies.length
      ? this.latencies.reduce((a, b) => a + b) / this.latencies.length : null;
    this.meters(recent.length, mean);
  }
}

export function decode(png) {
  return createImageBitmap(
    new Blob([png], {type: "image/png"}),
    {colorSpaceConversion: "none", premultiplyAlpha: "none"});
}
