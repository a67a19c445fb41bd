"""Selects clips for an evaluation, evenly from many levels.

Shapes:
  L  levels     T  frames of a clip     n  clips
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Clips:
  """Clips in memory.

  Attributes:
    frames: uint8 [n, T, H, W, C].
    actions: int32 [n, T-1], the true actions; None if they are unknown.
    levels: int32 [n], the level (source) of each clip.
    arrays: Further arrays of the clips, by name, each [n, T, ...].
  """

  frames: np.ndarray
  actions: np.ndarray | None
  levels: np.ndarray
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def pick(
  folder: files.PathLike,
  split: str,
  *,
  num_frames: int,
  num_clips: int,
  num_levels: int,
  with_actions: bool,
  seed: int,
  arrays: Sequence[str] = (),
) -> Clips:
  """Draws clips evenly from randomly chosen levels.

  The levels take turns: the first L clips are one of each level, and so on.

  Args:
    folder: A clips folder.
    split: Name of the split.
    num_frames: T.
    num_clips: n.
    num_levels: L, drawn at random from the split's levels.
    with_actions: Whether to read true actions.
    seed: Seed of the draws.
    arrays: Names of further arrays to read, for example "states".

  Raises:
    UserError: The clips do not have an array, the split has fewer levels, or a
      level has too few windows.
  """
  keys = ("frames", *(["actions"] if with_actions else []), *arrays)
  source = sources.WindowSource(folder, split, num_frames, keys=keys)
  windows = windows_by_level(source, split, num_frames)
  if len(windows) < num_levels:
    raise errors.UserError(
      f"Split {split!r} of {folder} has {len(windows)} levels with a clip "
      f"of {num_frames} frames, but {num_levels} are asked for; collect "
      f"more, or give --levels {len(windows)}."
    )
  rng = np.random.default_rng(seed)
  chosen = np.sort(rng.choice(sorted(windows), num_levels, replace=False))
  per_level = -(-num_clips // num_levels)
  drawn = []
  for level in chosen:
    if len(windows[level]) < per_level:
      raise errors.UserError(
        f"Level {level} of split {split!r} of {folder} has "
        f"{len(windows[level])} windows, but {per_level} are needed for "
        f"{num_clips} clips of {num_levels} levels; collect longer levels, "
        "or ask for fewer with --num-clips."
      )
    drawn.append(rng.choice(windows[level], per_level, replace=False))
  order = np.stack(drawn, 1).ravel()[:num_clips]
  found = source.gather(order)
  return Clips(
    found["frames"],
    found.get("actions"),
    found["source"],
    {name: found[name] for name in arrays},
  )


def windows_by_level(
  source: sources.WindowSource, split: str, num_frames: int
) -> dict[int, np.ndarray]:
  """Returns the windows of each level.

  Args:
    source: All windows of a split, with a stride of 1.
    split: Name of the split.
    num_frames: T of the windows.

  Returns:
    Level -> indices of its windows in `source`; no level without windows.
  """
  ranges: dict[int, list[np.ndarray]] = {}
  start = 0
  for _, entry in source.manifest.shards(split):
    for level, _, _, length in entry["episodes"]:
      count = max(length - num_frames + 1, 0)
      ranges.setdefault(level, []).append(np.arange(start, start + count))
      start += count
  assert start == len(source), (start, len(source))
  joined = {level: np.concatenate(parts) for level, parts in ranges.items()}
  return {level: numbers for level, numbers in joined.items() if len(numbers)}


def random_clips(
  folder: files.PathLike,
  split: str,
  *,
  num_frames: int,
  num_clips: int,
  seed: int,
) -> np.ndarray:
  """Draws clips at random from all levels of a split.

  Args:
    folder: A clips folder.
    split: Name of the split.
    num_frames: T, at least 1.
    num_clips: n; if the split has fewer windows, all of them are returned.
    seed: Seed of the draw.

  Returns:
    uint8 [n, T, H, W, C].
  """
  source = sources.WindowSource(folder, split, num_frames, keys=("frames",))
  order = np.random.default_rng(seed).choice(
    len(source), min(num_clips, len(source)), replace=False
  )
  return source.gather(np.sort(order))["frames"]
