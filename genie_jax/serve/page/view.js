// The screen: frames in order, at a whole-number scale, and how fast.

const MOST_BEHIND = 4;  // Frames to skip from when drawing cannot keep up.
const MOST_MEASURES = 2000;
const SECOND = 1000;

export class Screen {
  // `meters(fps, latency)` is called after each painted frame.
  constructor(canvas, box, meters) {
    this.canvas = canvas;
    this.box = box;
    this.context = canvas.getContext("2d");
    this.meters = meters;
    this.queue = [];
    this.busy = false;
    this.painted = [];
    this.latencies = [];
    new ResizeObserver(() => this.fit()).observe(box);
    setInterval(() => this.report(), SECOND / 2);
  }

  resize(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.fit();
  }

  // Whole device pixels for each pixel of the frame: nothing is blurred.
  fit() {
    const ratio = devicePixelRatio || 1;
    const {width, height} = this.canvas;
    const wide = this.box.clientWidth - 24;
    const high = Math.max(192, 0.58 * innerHeight);
    const scale = Math.max(1, Math.floor(
      ratio * Math.min(wide / width, high / height))) / ratio;
    this.canvas.style.width = `${width * scale}px`;
    this.canvas.style.height = `${height * scale}px`;
  }

  // Shows a PNG. `pressed` is the time of the key that asked for it, or null;
  // `about` goes into the performance entry of the painted frame.
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

  // The pixels are on the screen once the frame after the next paint begins.
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
