// Writes and reads runs as links and files, which replay the same frames.

const FORMAT = "genie-run";
const MOST_ACTIONS = 20000;
const LONGEST_LINK = 8000;

// [0, 0, 0, 3] -> "0x3,3", as `genie sample --actions` reads it.
export function packActions(actions) {
  const parts = [];
  for (let i = 0; i < actions.length;) {
    let j = i;
    while (j < actions.length && actions[j] === actions[i]) j += 1;
    parts.push(j - i > 1 ? `${actions[i]}x${j - i}` : `${actions[i]}`);
    i = j;
  }
  return parts.join(",");
}

export function unpackActions(text) {
  const actions = [];
  if (text === "") return actions;
  for (const part of text.split(",")) {
    const found = /^(\d{1,5})(?:x(\d{1,5}))?$/.exec(part);
    const count = found && Number(found[2] ?? 1);
    if (!found || count < 1 || actions.length + count > MOST_ACTIONS) {
      throw new Error("The actions of this run cannot be read.");
    }
    for (let i = 0; i < count; i += 1) actions.push(Number(found[1]));
  }
  return actions;
}

// A run is {replay, world, prompt | picture, seed, actions}.
export function toLink(run) {
  const fields = new URLSearchParams({
    run: "1", world: run.replay, prompt: run.prompt, seed: run.seed,
    actions: packActions(run.actions),
  });
  const place = location.origin + location.pathname;
  const link = `${place}#${fields.toString().replaceAll("%2C", ",")}`;
  return link.length > LONGEST_LINK ? null : link;
}

export function fromHash(hash) {
  const fields = new URLSearchParams(hash.replace(/^#/, ""));
  if (!fields.has("run")) return null;
  if (fields.get("run") !== "1") {
    throw new Error("This link was made by another version.");
  }
  return check({
    replay: fields.get("world"), prompt: whole(fields.get("prompt")),
    picture: null, seed: whole(fields.get("seed")),
    actions: unpackActions(fields.get("actions") ?? ""),
  });
}

export function toFile(run) {
  return new Blob([JSON.stringify({
    format: FORMAT, version: 1, world: run.world, replay: run.replay,
    prompt: run.prompt, picture: run.picture, seed: run.seed,
    actions: packActions(run.actions),
  }, null, 2), "\n"], {type: "application/json"});
}

export function fromFile(text) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    found = null;
  }
  if (found?.format !== FORMAT || found.version !== 1) {
    throw new Error("This file is not a run that genie play saved.");
  }
  return check({
    replay: found.replay, prompt: found.prompt ?? null,
    picture: found.picture ?? null, seed: found.seed,
    actions: unpackActions(String(found.actions ?? "")),
  });
}

function whole(text) {
  return /^\d{1,10}$/.test(text ?? "") ? Number(text) : null;
}

function check(run) {
  const number = (value) =>
    Number.isInteger(value) && value >= 0 && value < 2 ** 32;
  const start = run.picture === null
    ? number(run.prompt) : typeof run.picture === "string";
  if (!number(run.seed) || !start) {
    throw new Error("This run lacks its picture or its seed.");
  }
  return run;
}
