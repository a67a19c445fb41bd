r"""Measures quality and speed of ways to draw frames, and prints one table.

Collect:   genie data coinrun --out CLIPS --levels 1 --validation-levels 60 \
               --test-levels 60 --frames-per-level 500
Run:       python benchmarks/sampling_quality.py --clips CLIPS --json F

A sampler is chosen on validation levels, which are the default. Give `--split
test` only to publish the figures of a sampler that has been chosen.

Every row plays the same held-out clips with the same buttons (inferred by the
LAM) and the same noise:

  delta_4    PSNR of the 4th drawn frame with inferred buttons, minus that with
             random ones
  changed    gain in dB over copying the prompt, of the PSNR over pixels that
             differ from the prompt: least of frames 1 to 8 (and of frame 1)
  PSNR       of frames 16, 32 and 64 of the long rollouts against the real ones
  motion     mean change from frame to frame of the long rollouts, relative to
             that of the real clips
  entropy    of the tokens of the long rollouts in bits, relative to that of the
             real clips
  fps        frames per second of one player after the window is full

A world that ships needs a delta_4 of 0.5 dB, changed above 0, and motion and
entropy from 0.7 to 1.3.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from genie_jax.core import files
from genie_jax.evals import (
  clips as clips_lib,
)
from genie_jax.evals import (
  controllability,
  evaluated_world,
  prediction,
  reconstruction,
  rollouts,
)
from genie_jax.sampling import maskgit
from genie_jax.sampling import slide as slide_lib
from genie_jax.worlds import world as world_lib
from genie_jax.worlds import world_folder

_WORLD = "experiments/coinrun/results/world"
_SHORT = 9  # The prompt and 8 frames.
_HORIZONS = (16, 32, 64)


def rows(
  base: maskgit.MaskGIT, slide: slide_lib.Slide, few: bool = False
) -> list[tuple[maskgit.MaskGIT, slide_lib.Slide]]:
  """Returns the ways to draw that are compared.

  Args:
    base: The world's own sampler.
    slide: The world's own slide.
    few: Whether to return only four rows, for comparing worlds.
  """
  change = lambda **fields: dataclasses.replace(base, **fields)
  if few:
    return [
      (change(**fields), slide)
      for fields in (
        dict(temperature=1.0),
        dict(temperature=1.0, refinements=1),
        dict(temperature=1.0, refinements=25),
        dict(temperature=0.5),
      )
    ]
  found = [
    (change(refinements=refinements, order=order), slide)
    for order in maskgit.ORDERS
    for refinements in (1, 2, 4, 8, 12, 25)
  ]
  for fields in (
    dict(schedule="linear"),
    dict(schedule="square_root"),
    dict(temperature=0.0),
    dict(temperature=0.5),
    dict(temperature=2.0),
    dict(top_k=8),
    dict(top_p=0.9),
    dict(temperature=0.5, top_p=0.9),
    dict(order="confidence", choice_temperature=1.0),
  ):
    found.append((change(**fields), slide))
  for other in (
    slide_lib.Slide("exact", 1),
    slide_lib.Slide("exact", 4),
    slide_lib.Slide("rolling"),
    slide_lib.Slide("re-encode"),
    slide_lib.Slide("re-encode", 4),
  ):
    found.append((base, other))
  return found


def buttons(world: world_lib.World, frames: np.ndarray) -> np.ndarray:
  """Returns the LAM's actions of clips of any length, window by window.

  Args:
    world: With a LAM.
    frames: uint8 [n, T, H, W, C].

  Returns:
    int32 [n, T-1].
  """
  window, last = min(world.num_frames, frames.shape[1]), frames.shape[1] - 1
  found = np.zeros((len(frames), last), np.int32)
  for start in [*range(0, last - window + 1, window - 1), last - window + 1]:
    found[:, start : start + window - 1] = world.infer_actions(
      frames[:, start : start + window]
    )
  return found


def long_rollout(
  world: world_lib.World, prompts: np.ndarray, pressed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns drawn frames [n, F, H, W, C] and their tokens [n, F, h, w]."""
  states = [
    world.reset(prompt, seed=seed) for seed, prompt in enumerate(prompts)
  ]
  frames, tokens = [], []
  for actions in pressed.T:
    states, shown = world.step_many(states, actions)
    frames.append(shown)
    tokens.append(np.stack([state.tokens[-1] for state in states]))
  return np.stack(frames, 1), np.stack(tokens, 1)


def speed(world: world_lib.World, prompt: np.ndarray) -> float:
  """Returns frames per second of one player with a full window."""
  state, times = world.reset(prompt), []
  for number in range(4 * world.num_frames):
    began = time.perf_counter()
    state, _ = world.step(state, number % world.num_actions)
    times.append(time.perf_counter() - began)
  # Means over a slide, then their median, which is robust to other programs.
  groups = np.reshape(times[world.num_frames :], (-1, 4)).mean(1)
  return 1 / statistics.median(groups)


class Evaluator:
  """Measures ways to draw on held-out clips."""

  def __init__(self, world: world_lib.World, args: argparse.Namespace):
    self.world, self.seed = world, args.seed
    pick = lambda frames, count: clips_lib.pick(
      args.clips,
      args.split,
      num_frames=frames,
      num_clips=count,
      num_levels=min(args.levels, count),
      with_actions=False,
      seed=args.seed,
    )
    self.short = pick(_SHORT, args.levels)
    self.long = pick(args.frames + 1, args.long_clips)
    self.pressed = buttons(world, self.short.frames)
    self.long_pressed = buttons(world, self.long.frames)
    tokens = np.concatenate(
      [
        world.encode(self.long.frames[:, start : start + world.num_frames])
        for start in range(1, args.frames + 1, world.num_frames)
      ],
      1,
    )
    self.real = controllability.liveliness(
      self.long.frames[:, 1:], tokens, self._codes
    )
    self.horizons = [frame for frame in _HORIZONS if frame <= args.frames]
    # PSNR of copying the prompt at each horizon.
    self.copying = self._psnr(
      np.repeat(self.long.frames[:, :1], args.frames, 1)
    )
    self._deltas: dict[str, dict[str, float]] = {}

  @property
  def _codes(self) -> int:
    return self.world.parts["dynamics"].config["world"]["num_codes"]

  def row(
    self, sampling: maskgit.MaskGIT, slide: slide_lib.Slide
  ) -> dict[str, Any]:
    """Returns one row of the table."""
    world = self.world.with_options(sampling=sampling, slide=slide)
    frames, tokens = long_rollout(
      world, self.long.frames[:, 0], self.long_pressed
    )
    short, _ = long_rollout(world, self.short.frames[:, 0], self.pressed)
    lively = controllability.liveliness(frames, tokens, self._codes)
    key = json.dumps(vars(sampling), sort_keys=True)
    # No window slides before frame 4, so it does not depend on `slide`.
    if key not in self._deltas:
      self._deltas[key] = self._delta(sampling)
    return {
      **vars(sampling),
      **{f"slide_{name}": value for name, value in vars(slide).items()},
      **self._deltas[key],
      **self._gains(short),
      "psnr": self._psnr(frames),
      "motion": lively["motion"] / self.real["motion"],
      "entropy": lively["token_entropy"] / self.real["token_entropy"],
      "token_change": lively["token_change"],
      "fps": speed(world, self.long.frames[0, 0]),
    }

  def _delta(self, sampling: maskgit.MaskGIT) -> dict[str, float]:
    subject = evaluated_world.from_parts(
      self.world.parts,
      sampling=sampling,
      actions=self.world.actions,
      fingerprint=self.world.fingerprint,
    )
    clips = self.short
    delta = rollouts.delta(
      subject,
      np.asarray(subject.encode(clips.frames[:, :1])),
      clips.frames,
      self.pressed,
      np.arange(subject.num_buttons),
      clips.levels,
      seed=self.seed,
    )
    return {"delta_4": delta["delta"].value, "delta_4_low": delta["delta"].low}

  def _gains(self, drawn: np.ndarray) -> dict[str, Any]:
    """Returns the gains over copying the prompt of uint8 [n, 8, H, W, C]."""
    clips = self.short
    gains = [
      prediction.pixel_scores(
        drawn[:, t - 1],
        clips.frames[:, t],
        clips.frames[:, 0],
        drawn[:, t - 1],
        clips.levels,
        seed=self.seed,
      )["gain"].value
      for t in range(1, _SHORT)
    ]
    return {
      "changed_least": min(gains),
      "changed_1": gains[0],
      "changed_by_frame": gains,
    }

  def _psnr(self, drawn: np.ndarray) -> dict[str, float]:
    """Returns the pooled PSNR at each horizon of uint8 [n, F, H, W, C]."""
    return {
      str(frame): float(
        reconstruction.psnr(
          np.mean(
            reconstruction.squared_error(
              self.long.frames[:, frame], drawn[:, frame - 1]
            )
          )
        )
      )
      for frame in self.horizons
    }


def table(found: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown."""
  lines = [
    "| R | order | schedule | temp. | top-k | top-p | slide | delta_4 dB | "
    "changed, least (frame 1) dB | PSNR dB | motion | entropy | fps |",
    "|" + "---|" * 13,
  ]
  for row in found:
    order = row["order"]
    if order == "confidence":
      order += f" {row['choice_temperature']:g}"
    slide = row["slide_mode"] + (
      "" if row["slide_mode"] == "rolling" else f" {row['slide_drop']}"
    )
    lines.append(
      f"| {row['refinements']} | {order} | {row['schedule']} "
      f"| {row['temperature']:g} | {row['top_k'] or '-'} "
      f"| {row['top_p']:g} | {slide} | {row['delta_4']:.2f} "
      f"| {row['changed_least']:.2f} ({row['changed_1']:.2f}) "
      f"| {' / '.join(f'{x:.1f}' for x in row['psnr'].values())} "
      f"| {row['motion']:.2f} | {row['entropy']:.2f} | {row['fps']:.1f} |"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--clips", required=True, metavar="DIR")
  parser.add_argument("--world", default=_WORLD, metavar="DIR")
  parser.add_argument(
    "--split",
    default="validation",
    metavar="NAME",
    help="split of the clips (default: validation); test only to publish",
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument(
    "--levels", type=int, default=60, help="clips of 8 frames, one per level"
  )
  parser.add_argument(
    "--long-clips", type=int, default=16, help="clips of --frames frames"
  )
  parser.add_argument("--frames", type=int, default=64)
  parser.add_argument(
    "--few", action="store_true", help="four rows, to compare two worlds"
  )
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  world = world_folder.load(args.world).world
  evaluator = Evaluator(world, args)
  found = []
  for sampling, slide in rows(world.sampling, world.slide, args.few):
    found.append(evaluator.row(sampling, slide))
    print(table(found[-1:]).splitlines()[-1], flush=True)
    jax.clear_caches()  # Each row has its own programs.
    if args.json:
      files.write_json(
        args.json,
        {
          "world": world.fingerprint,
          "split": args.split,
          "levels": args.levels,
          "long_clips": args.long_clips,
          "frames": args.frames,
          "real": evaluator.real,
          "copying_psnr": evaluator.copying,
          "cores": os.cpu_count(),
          "load_average": os.getloadavg(),
          "rows": found,
        },
      )
  print(table(found))
  print("copying the prompt: PSNR", evaluator.copying)


if __name__ == "__main__":
  main()
