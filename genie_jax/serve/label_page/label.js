// Plays one clip in a loop and sends its rating.

const at = (id) => document.getElementById(id);
const canvas = at("frame");
const pen = canvas.getContext("2d");
const sheets = new Map(); // Number of a clip -> its picture, being loaded.
const KEPT = 3;

let state = null;
let sheet = null; // The picture of the clip on the page.
let began = 0;
let paused = null; // The frame at which the clip was paused.
let busy = false;

function connection(text, kind) {
  at("connection").textContent = text;
  at("connection").dataset.state = kind;
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function load(number) {
  if (!sheets.has(number)) {
    const picture = new Image();
    picture.src = `clips/${number}.png`;
    sheets.set(number, picture);
    while (sheets.size > KEPT) sheets.delete(sheets.keys().next().value);
  }
  return sheets.get(number);
}

function show(found) {
  const before = state && state.clip && state.clip.id;
  state = found;
  const { clip, total, rated, skipped, last } = state;
  at("name").textContent = state.name;
  at("table").textContent = state.table;
  at("count").textContent =
    `${rated} of ${total} rated, ${skipped} skipped; ${state.labeller}`;
  at("progress").max = total;
  at("progress").value = rated + skipped;
  at("undo").disabled = !last;
  at("last").textContent = last ? `Last: ${last.rating}` : "";
  at("done").hidden = clip !== null;
  canvas.hidden = clip === null;
  for (const button of document.querySelectorAll("#ratings button, #skip")) {
    button.disabled = clip === null;
  }
  document.body.dataset.clip = clip ? clip.id : "";
  if (!clip) {
    at("clip").textContent = "";
    at("time").textContent = "";
    return;
  }
  if (clip.id !== before) start(clip);
  if (state.next !== null) load(state.next);
}

async function start(clip) {
  sheet = null;
  canvas.dataset.frame = "";
  canvas.width = clip.width;
  canvas.height = clip.height;
  // Whole numbers of screen pixels for each pixel, as large as there is room.
  const room = Math.min(
    (canvas.parentElement.clientWidth - 20) / clip.width,
    (0.6 * innerHeight) / clip.height);
  canvas.style.width = `${clip.width * Math.max(1, Math.floor(room))}px`;
  at("clip").textContent = `Clip ${clip.number + 1}, ${clip.split}, ` +
    `source ${clip.source}`;
  const picture = load(clip.number);
  try {
    await picture.decode();
  } catch {
    sheets.delete(clip.number);
    if (state.clip && state.clip.id === clip.id) {
      notice("This clip cannot be read; skip it, and inspect the folder.");
    }
    return;
  }
  if (!state.clip || state.clip.id !== clip.id) return;
  sheet = picture;
  began = performance.now();
  paused = null;
  at("pause").lastChild.textContent = " Pause";
}

function frameNow(now) {
  if (paused !== null) return paused;
  const { frames, fps } = state.clip;
  return Math.floor(((now - began) / 1000) * fps) % frames;
}

function paint(now) {
  requestAnimationFrame(paint);
  if (!sheet || !state.clip) return;
  const { width, height, columns, fps, frames } = state.clip;
  const number = Math.max(0, frameNow(now));
  if (canvas.dataset.frame === String(number)) return;
  pen.drawImage(
    sheet,
    (number % columns) * width, Math.floor(number / columns) * height,
    width, height, 0, 0, width, height);
  canvas.dataset.frame = String(number);
  at("time").textContent =
    `${(number / fps).toFixed(1)} of ${(frames / fps).toFixed(1)} s`;
}

function flash(rating) {
  const button = document.querySelector(`[data-rating="${rating}"]`);
  if (!button) return;
  button.classList.add("chosen");
  setTimeout(() => button.classList.remove("chosen"), 200);
}

async function send(clip, rating) {
  if (busy) return;
  busy = true;
  notice("");
  try {
    const answer = await fetch("rate", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ clip, rating }),
    });
    const found = await answer.json();
    connection("stored", "open");
    if (!answer.ok) {
      notice(found.error);
      if (found.state) show(found.state);
    } else {
      flash(rating);
      show(found);
    }
  } catch {
    connection("lost", "lost");
    notice("The program has ended. Start it again, and load this page again.");
  } finally {
    busy = false;
  }
}

function rate(rating) {
  // Only a clip that can be seen is rated; a skip is possible without.
  if (state && state.clip && (sheet || rating === "skip")) {
    send(state.clip.id, rating);
  }
}

function undo() {
  if (state && state.last) send(state.last.id, "undo");
}

function pause() {
  if (!sheet) return;
  if (paused === null) {
    paused = frameNow(performance.now());
    at("pause").lastChild.textContent = " Play";
  } else {
    began = performance.now() - (paused / state.clip.fps) * 1000;
    paused = null;
    at("pause").lastChild.textContent = " Pause";
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  // A button that was reached by Tab is pressed by the space bar.
  if (key === " " && event.target instanceof HTMLButtonElement) return;
  if (key >= "1" && key <= "5" && key.length === 1) rate(key);
  else if (key === "s" || key === "0") rate("skip");
  else if (key === "u" || key === "backspace") undo();
  else if (key === " ") pause();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("#ratings button")) {
  button.addEventListener("click", () => rate(button.dataset.rating));
}
at("skip").addEventListener("click", () => rate("skip"));
at("undo").addEventListener("click", undo);
at("pause").addEventListener("click", pause);

// After a click, the space bar pauses and does not rate again.
document.addEventListener("click", (event) => {
  if (event.detail) document.activeElement.blur();
});

fetch("state").then((answer) => answer.json()).then((found) => {
  connection("ready", "open");
  show(found);
}).catch(() => connection("lost", "lost"));
requestAnimationFrame(paint);
