"""Long real clips, each with other frames of the same level to compare with.

Shapes:
  L  levels     F  frames after the first one of a clip     T  window
  R  references, windows of the same level
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import sources

# Frames between a clip and the references of its episode: neighbours in time
# are nearly equal.
GAP = 16
_PLACES = 8  # Random places of a clip that are tried in a level.


@dataclasses.dataclass(frozen=True)
class LongClips:
  """One clip of each level.

  Attributes:
    frames: uint8 [L, F + 1, H, W, C]; zeros after the end of a shorter clip.
    lengths: int [L], the frames that each clip has.
    references: uint8 [L, R, T, H, W, C], windows outside the clip.
    levels: int32 [L].
  """

  frames: np.ndarray
  lengths: np.ndarray
  references: np.ndarray
  levels: np.ndarray


def pick(
  folder: files.PathLike,
  split: str,
  *,
  lengths: Sequence[int],
  window: int,
  num_references: int,
  num_levels: int,
  seed: int,
) -> LongClips:
  """Draws one clip of each level, as long as possible, and references.

  Levels in which the longest clip fits come first, in random order. Clips are
  within one episode; references also come from the level's other episodes.

  Args:
    folder: A clips folder.
    split: Name of the split.
    lengths: Numbers of frames that a clip may have; the largest is F + 1.
    window: T.
    num_references: R.
    num_levels: L.
    seed: Seed of the draws.

  Raises:
    UserError: Too few levels have a clip of the shortest length and R windows
      outside it.
  """
  source = sources.WindowSource(folder, split, 1, keys=("frames",))
  # Level -> first window and number of frames of each of its episodes.
  episodes: dict[int, list[tuple[int, int]]] = {}
  first = 0
  for _, entry in source.manifest.shards(split):
    for level, _, _, length in entry["episodes"]:
      episodes.setdefault(level, []).append((first, length))
      first += length
  assert first == len(source), (first, len(source))
  rng = np.random.default_rng(seed)
  found = []
  for level in rng.permutation(sorted(episodes)):
    place = _place(episodes[level], lengths, window, num_references, rng)
    if place is not None:
      found.append((int(level), *place))
  if len(found) < num_levels:
    raise errors.UserError(
      f"Split {split!r} of {folder} has {len(found)} levels with a clip of "
      f"{min(lengths)} frames and {num_references} windows of {window} frames "
      f"outside it, but drift is measured on {num_levels}; collect more or "
      "longer levels"
      + (f", or give --drift-levels {len(found)}." if len(found) > 1 else ".")
    )
  found.sort(key=lambda each: -each[2])  # Stable, so the order stays random.
  found = found[:num_levels]
  read = lambda indices: source.gather(indices)["frames"][:, 0]
  longest = max(lengths)
  frames, references = [], []
  for _, start, length, starts in found:
    clip = read(np.arange(start, start + length))
    frames.append(np.zeros((longest, *clip.shape[1:]), np.uint8))
    frames[-1][:length] = clip
    windows = read((starts[:, None] + np.arange(window)).ravel())
    references.append(windows.reshape(len(starts), window, *clip.shape[1:]))
  return LongClips(
    frames=np.stack(frames),
    lengths=np.array([length for _, _, length, _ in found]),
    references=np.stack(references),
    levels=np.array([level for level, *_ in found], np.int32),
  )


def _place(episodes, lengths, window, num_references, rng):
  """Returns start, length and starts of references in a level, or None."""
  for length in sorted(lengths, reverse=True):
    fitting = [each for each in episodes if each[1] >= length]
    for _ in range(_PLACES if fitting else 0):
      begin, size = fitting[rng.integers(len(fitting))]
      start = begin + int(rng.integers(size - length + 1))
      others = np.concatenate(
        [np.arange(b, b + s - window + 1) for b, s in episodes]
      )
      apart = others + window + GAP <= start
      apart |= others >= start + length + GAP
      # Frames of another episode are not neighbours in time.
      apart |= (others < begin) | (others >= begin + size)
      if apart.sum() >= num_references:
        chosen = rng.choice(others[apart], num_references, replace=False)
        return start, length, np.sort(chosen)
  return None
