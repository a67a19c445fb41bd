"""Frechet and kernel video distances of a world's rollouts to real clips.

One set of real clips is the reference. A second set, of other levels, is what
the others are made of: itself, decoded from its tokens, the world's rollouts
from its first frames with its buttons, its first frames repeated, and its
frames in random order. So all rows have the same number of clips, the same
levels and the same reference, and the second set itself is the best that a
world can reach.

Shapes:
  n  clips of each set     T  frames of a clip     W  frames of the world
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from absl import logging

from genie_jax.data import sources
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import distances, i3d, i3d_weights, intervals, metric

NUM_FRAMES = 16  # Of StyleGAN-V's protocol, as are 2,048 clips.
# Of each set, so that levels can be resampled.
MIN_LEVELS = 3

_TITLES = {
  "world": "rollouts of the world",
  "other_real": "real clips of other levels",
  "tokenizer": "real clips through the tokenizer",
  "frozen": "first frame repeated",
  "shuffled": "frames in random order",
}


class _NotMeasuredError(Exception):
  """The distances cannot be measured; the message says why."""


@dataclasses.dataclass(frozen=True)
class _Distances:
  """Of one set of clips to the reference."""

  fvd: float
  kvd: intervals.Interval


def applies(work: metric.Work) -> bool:
  """Returns whether the distances were asked for."""
  return work.options.fvd


def measure(work: metric.Work) -> metric.Result:
  """Measures all rows; if that is impossible, returns a row that says why.

  Raises:
    UserError: The file of the weights, or the download, is not I3D.
  """
  try:
    params = i3d.fold(weights := i3d_weights.load(work.options.i3d))
    reference, others = pick(work)
  except (i3d_weights.UnavailableError, _NotMeasuredError) as error:
    logging.warning("Frechet video distance not measured: %s", error)
    row = metric.Row("Frechet video distance", "not measured", note=str(error))
    return metric.Result({"not_measured": str(error)}, rows=(row,))
  count, length = reference.frames.shape[:2]
  features = functools.partial(i3d.features, params)
  real = features(reference.frames)
  found = {}
  for name, make in sets(work, others).items():
    logging.info("Frechet video distance: %s", _TITLES[name])
    drawn = features(make())
    found[name] = _Distances(
      distances.frechet(real, drawn),
      distances.kernel(
        real, drawn, reference.levels, others.levels, seed=work.options.seed
      ),
    )
  size = f"{count}_{length}f"
  return metric.Result(
    {
      "clips": count,
      "frames": length,
      "levels": [len(np.unique(clips.levels)) for clips in (reference, others)],
      "i3d_sha256": i3d_weights.digest(weights),
      "rows": {
        name: {"fvd": row.fvd, "kvd": row.kvd} for name, row in found.items()
      },
    },
    headline={
      f"FVD_{size}": found["world"].fvd,
      f"KVD_{size}": found["world"].kvd.value,
    },
    rows=_rows(size, found),
  )


def pick(work: metric.Work) -> tuple[clips_lib.Clips, clips_lib.Clips]:
  """Returns two sets of n held-out clips, of different levels.

  Half of the split's levels belong to each set, and levels take turns, so that
  there are as many levels and as few clips of one level as possible.

  Raises:
    _NotMeasuredError: The split has too few levels or clips, or too short ones.
  """
  options, manifest = work.options, work.manifest
  longest = max(
    episode[-1]
    for _, entry in manifest.shards(options.split)
    for episode in entry["episodes"]
  )
  length = min(NUM_FRAMES, longest)
  if length < i3d.MIN_FRAMES:
    raise _NotMeasuredError(
      f"clips of at least {i3d.MIN_FRAMES} frames are needed, but the longest "
      f"of split {options.split!r} has {longest}"
    )
  known = manifest.num_actions is not None
  source = sources.WindowSource(
    work.folder,
    options.split,
    length,
    keys=("frames", *(["actions"] if known else [])),
  )
  windows = clips_lib.windows_by_level(source, options.split, length)
  if len(windows) < 2 * MIN_LEVELS:
    raise _NotMeasuredError(
      f"{2 * MIN_LEVELS} levels are needed, but split {options.split!r} has "
      f"{len(windows)}"
    )
  rng = np.random.default_rng(options.seed)
  levels = rng.permutation(sorted(windows))
  halves = []
  for half in (levels[0::2], levels[1::2]):
    drawn = [rng.permutation(windows[level]) for level in half]
    turns = [
      row[turn]
      for turn in range(max(len(row) for row in drawn))
      for row in drawn
      if turn < len(row)
    ]
    if len(turns) < options.fvd_clips:
      raise _NotMeasuredError(
        f"{options.fvd_clips} clips of {length} frames are needed twice, but "
        f"half of the levels of split {options.split!r} have {len(turns)}; "
        f"give --fvd-clips {len(turns)}"
      )
    batch = source.gather(turns[: options.fvd_clips])
    halves.append(
      clips_lib.Clips(batch["frames"], batch.get("actions"), batch["source"])
    )
  return halves[0], halves[1]


def sets(
  work: metric.Work, clips: clips_lib.Clips
) -> dict[str, Callable[[], np.ndarray]]:
  """Returns functions that make the sets to compare, uint8 [n, T, H, W, C].

  Args:
    work: The evaluation.
    clips: Real clips, which all sets are made of.
  """
  subject, seed = work.subject, work.options.seed
  frames, length = clips.frames, clips.frames.shape[1]

  @functools.cache
  def encoded() -> np.ndarray:
    # In windows of the length that the tokenizer was trained on.
    starts = _starts(length, subject.num_frames, subject.num_frames)
    parts = [
      subject.encode(frames[:, start : start + subject.num_frames])
      for start in starts
    ]
    tokens = np.empty((len(frames), length, *parts[0].shape[2:]), np.int32)
    for start, part in zip(starts, parts, strict=True):
      tokens[:, start : start + subject.num_frames] = part
    return tokens

  def rollouts() -> np.ndarray:
    tokens = subject.rollout(
      encoded()[:, :1],
      _pressed(work, clips),
      np.arange(len(frames), dtype=np.int32),
      seed,
    )
    return subject.decode(tokens)

  def shuffled() -> np.ndarray:
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(length), (len(frames), 1)), axis=1)
    return np.take_along_axis(frames, order[:, :, None, None, None], 1)

  return {
    "world": rollouts,
    "other_real": lambda: frames,
    "tokenizer": lambda: subject.decode(encoded()),
    "frozen": lambda: np.repeat(frames[:, :1], length, 1),
    "shuffled": shuffled,
  }


def _pressed(work: metric.Work, clips: clips_lib.Clips) -> np.ndarray:
  """Returns the buttons of clips, int32 [n, T-1], inferred W frames at once."""
  subject, length = work.subject, clips.frames.shape[1]
  size = subject.num_frames
  pressed = np.empty((len(clips.frames), length - 1), np.int32)
  for start in _starts(length, size, size - 1):
    actions = clips.actions
    last = start + size - 1
    pressed[:, start:last] = subject.buttons(
      clips.frames[:, start : start + size],
      None if actions is None else actions[:, start:last],
      work.manifest.action_aliases,
    )
  return pressed


def _starts(length: int, size: int, step: int) -> list[int]:
  """Returns the starts of windows that cover T frames; the last ends there."""
  if length <= size:
    return [0]
  return [*range(0, length - size, step), length - size]


def _rows(size: str, found: dict[str, _Distances]) -> tuple[metric.Row, ...]:
  """Returns the report's rows: first all Frechet, then all kernel distances."""
  frechet, kernel = [], []
  for name, row in found.items():
    best = found["other_real"]
    world = name == "world"
    frechet.append(
      metric.Row(
        f"FVD_{size}, {_TITLES[name]}",
        f"{row.fvd:.1f}",
        compared_with=f"real clips {best.fvd:.1f}" if world else "",
        note="Depends on the number of clips; compare only within this table."
        if world
        else "",
      )
    )
    kernel.append(
      metric.Row(
        f"KVD_{size}, {_TITLES[name]}",
        f"{row.kvd.value:.2f}",
        f"{row.kvd.low:.2f} to {row.kvd.high:.2f}",
        f"real clips {best.kvd.value:.2f}" if world else "",
        "0 on average for real clips." if world else "",
      )
    )
  return (*frechet, *kernel)
