r"""What the buttons of a world of films do, against the keys that were pressed.

After:   genie world --videos FILMS.csv --out RUN
Run:     python -m experiments.videos.held_buttons --run RUN --films FOLDER \
             --json experiments/videos/results/supertux.json

  frames  how the picture of real clips moves under each latent action; the
          action under which it moves least, on the validation split, is called
          "no-op" below
  held    how the picture of the world moves while a button is held, from single
          frames of the test split, and how much that differs from no-op
  keys    how well the latent actions of the test split agree with the keys that
          were written beside the films (data_pipelines/recorder): normalised
          mutual information, with that of keys shuffled within clips, and that
          of the true motion

Motion is the shift of the picture between two frames, in pixels of the world
(`genie_jax.evals.scroll`), to the right and upwards as the player moves.
Intervals are bootstrap intervals of 95 % over clips, which are few: they say
nothing about other films.

Shapes:
  n  windows     T  frames of a window     M  prompts     A  buttons
"""

import argparse
import pathlib
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_pipelines.videos import actions as actions_lib
from genie_jax.core import files, images
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import sources
from genie_jax.evals import actions as agreement_lib
from genie_jax.evals import evaluated_world, intervals, rollouts, scroll
from genie_jax.worlds import world_folder

_HELD = 8  # Frames for which a button is held.
_SEED = 0
_BATCH = 32


def windows(
  folder: pathlib.Path, split: str, num_frames: int
) -> tuple[np.ndarray, list[tuple[str, float]], np.ndarray]:
  """Returns windows that share at most one frame, in order.

  Args:
    folder: A clips folder of films.
    split: Its split.
    num_frames: T.

  Returns:
    uint8 frames [n, T, H, W, C]; path of the film and time in seconds of each
    window's first frame; int [n], the clip of each.
  """
  source = sources.WindowSource(folder, split, num_frames, keys=("frames",))
  fps, first, chosen, places, clips = source.manifest.fps, 0, [], [], []
  for path, entry in source.manifest.shards(split):
    table = pq.read_table(
      path.with_suffix(".parquet"), columns=["record", "path", "start", "kept"]
    ).to_pylist()
    rows = {row["record"]: row for row in table if row["kept"]}
    for _, record, _, length in entry["episodes"]:
      count = max(length - num_frames + 1, 0)
      row = rows[record]
      for offset in range(0, count, num_frames - 1):
        chosen.append(first + offset)
        places.append((row["path"], (row["start"] + offset) / fps))
        clips.append((path.name, record))
      first += count
  assert first == len(source), (first, len(source))
  numbers = {clip: number for number, clip in enumerate(dict.fromkeys(clips))}
  return (
    source.gather(np.array(chosen))["frames"],
    places,
    np.array([numbers[clip] for clip in clips]),
  )


def steps_of(frames: np.ndarray) -> np.ndarray:
  """Returns the shifts between consecutive frames.

  Args:
    frames: uint8 [n, T, H, W, C].

  Returns:
    int [n, T-1, 2], to the right and upwards.
  """
  count, length = frames.shape[:2]
  shape = (count * (length - 1), *frames.shape[2:])
  found = scroll.pair_shifts(
    frames[:, :-1].reshape(shape), frames[:, 1:].reshape(shape)
  )
  return found.reshape(count, length - 1, 2)


def mean(values: np.ndarray, clips: np.ndarray) -> dict[str, float]:
  """Returns the mean of values [m] with its interval over clips [m]."""
  found = intervals.ratio(values, np.ones(len(values)), clips, seed=_SEED)
  return {"mean": found.value, "low": found.low, "high": found.high}


def under_codes(
  codes: np.ndarray, moved: np.ndarray, clips: np.ndarray, count: int
) -> list[dict[str, Any]]:
  """Returns how real pictures move under each code.

  Args:
    codes: int [n, T-1].
    moved: int [n, T-1, 2].
    clips: int [n].
    count: A.
  """
  found, clips = [], np.repeat(clips, codes.shape[1])
  for code in range(count):
    rows = (codes == code).ravel()
    if not rows.any():
      found.append({"button": code, "share": 0.0})
      continue
    right, up = moved.reshape(-1, 2)[rows].T
    found.append(
      {
        "button": code,
        "share": float(rows.mean()),
        "right": mean(right, clips[rows]),
        "up": mean(up, clips[rows]),
        "moved": float(np.hypot(right, up).mean()),
        "moves_right": float((right > 0).mean()),
        "moves_left": float((right < 0).mean()),
        "moves_up": float((up > 0).mean()),
        "moves_down": float((up < 0).mean()),
      }
    )
  return found


def held(
  subject: evaluated_world.Subject,
  prompts: np.ndarray,
  clips: np.ndarray,
  no_op: int,
) -> tuple[list[dict[str, Any]], np.ndarray]:
  """Returns how the world's picture moves while each button is held.

  Args:
    subject: The world.
    prompts: uint8 [M, H, W, C].
    clips: int [M].
    no_op: The button to compare with.

  Returns:
    A row for each button, motion in pixels per frame, and the frames that were
    drawn, uint8 [A, M, 1 + F, H, W, C].
  """
  tokens = subject.encode(prompts[:, None])
  none = np.zeros((0, _HELD), np.int32)
  choices = np.arange(subject.num_buttons)
  _, frames, _ = rollouts.hold(subject, tokens, choices, none, seed=_SEED)
  moved = np.stack([steps_of(each).mean(1) for each in frames])  # [A, M, 2]
  found = []
  for button in choices:
    right, up = moved[button].T
    differs = (moved[button] - moved[no_op]).T
    found.append(
      {
        "button": int(button),
        "right": mean(right, clips),
        "up": mean(up, clips),
        "right_minus_no_op": mean(differs[0], clips),
        "up_minus_no_op": mean(differs[1], clips),
        "moves_right": float((right > scroll.MOVES).mean()),
        "moves_left": float((right < -scroll.MOVES).mean()),
      }
    )
  return found, frames


def against_keys(
  codes: np.ndarray,
  moved: np.ndarray,
  places: list[tuple[str, float]],
  clips: np.ndarray,
  films: pathlib.Path,
  fps: float,
  count: int,
) -> dict[str, Any]:
  """Returns the agreement of codes, and of true motion, with true keys."""
  read = {
    path: actions_lib.read(films / pathlib.Path(path).with_suffix(".csv"))
    for path in dict.fromkeys(path for path, _ in places)
  }
  known = actions_lib.names(read.values())
  pressed = np.stack(
    [
      actions_lib.align(
        read[path],
        time + np.arange(codes.shape[1] + 1) / fps,
        time + codes.shape[1] / fps,
        known,
      ).values[:-1]
      for path, time in places
    ]
  )
  has = lambda key: np.array([key in label.split("+") for label in known])
  questions = {
    "all keys": np.arange(len(known)),
    "left, right or none": has("right") * 1 - has("left") * 1 + 1,
    "jump": has("space") * 1,
  }
  levels = np.repeat(clips, codes.shape[1])
  signs = np.sign(moved)
  motion = (3 * (signs[..., 0] + 1) + signs[..., 1] + 1).ravel()
  found: dict[str, Any] = {"transitions": int(codes.size), "keys": list(known)}
  for question, labels in questions.items():
    true = labels[pressed].ravel()
    code = agreement_lib.agreement(
      codes.ravel(), true, levels, count, aliases={}, seed=_SEED
    )
    seen = agreement_lib.agreement(
      motion, true, levels, 9, aliases={}, seed=_SEED
    )
    found[question] = {
      "nmi": _interval(code.nmi),
      "shuffled_nmi": _interval(code.shuffled_nmi),
      "motion_nmi": _interval(seen.nmi),
      "majority": float(np.bincount(true).max() / len(true)),
    }
  return found


def _interval(found: intervals.Interval) -> dict[str, float]:
  return {"value": found.value, "low": found.low, "high": found.high}


def main() -> None:
  """Entry point of `python -m experiments.videos.held_buttons`."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--run", type=pathlib.Path, required=True)
  parser.add_argument("--films", type=pathlib.Path, required=True)
  parser.add_argument("--prompts", type=int, default=48)
  parser.add_argument("--json", type=pathlib.Path, required=True)
  parser.add_argument("--picture", type=pathlib.Path, default=None)
  args = parser.parse_args()
  world = world_folder.load(args.run / "world").world
  subject = evaluated_world.from_parts(
    world.parts,
    sampling=world.sampling,
    actions=world.actions,
    fingerprint=world.fingerprint,
    slide=world.slide,
  )
  assert subject.infer is not None
  clips_folder = args.run / "clips"
  manifest = manifest_lib.Manifest.read(clips_folder)
  parts = {}
  for split in ("validation", "test"):
    frames, places, clips = windows(clips_folder, split, subject.num_frames)
    codes = np.concatenate(
      [
        subject.infer(frames[start : start + _BATCH])
        for start in range(0, len(frames), _BATCH)
      ]
    )
    parts[split] = (frames, places, clips, codes, steps_of(frames))
  _, _, clips, codes, moved = parts["validation"]
  used = under_codes(codes, moved, clips, subject.num_buttons)
  no_op = min(
    (row for row in used if row["share"] >= 0.02), key=lambda row: row["moved"]
  )["button"]
  frames, places, clips, codes, moved = parts["test"]
  rng = np.random.default_rng(_SEED)
  chosen = np.sort(
    rng.choice(len(frames), min(args.prompts, len(frames)), replace=False)
  )
  rows, drawn = held(subject, frames[chosen, 0], clips[chosen], no_op)
  files.write_json(
    args.json,
    {
      "no_op": no_op,
      "films": {
        split: sorted({path for path, _ in parts[split][1]}) for split in parts
      },
      "windows": {split: len(parts[split][0]) for split in parts},
      "frames": under_codes(codes, moved, clips, subject.num_buttons),
      "held": rows,
      "held_frames": _HELD,
      "prompts": len(chosen),
      "keys": against_keys(
        codes,
        moved,
        places,
        clips,
        args.films,
        manifest.fps,
        subject.num_buttons,
      ),
    },
  )
  if args.picture:
    images.save_png(
      args.picture,
      images.strip(
        {f"button {button}": row[0] for button, row in enumerate(drawn)}
      ),
    )


if __name__ == "__main__":
  main()
