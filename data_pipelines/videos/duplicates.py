"""Finds clips that another film has as well, from the tables alone.

Two clips are the same if they show the same pictures in the same order, perhaps
shifted in time. One hash says too little: frames of one game are often alike.
So the hashes of many frames must agree in order, and so must what changes from
one hashed frame to the next, which in a game with a fixed screen is the play
itself. Clips of one film are never compared: a game repeats itself, and that is
what it is like.

Shapes:
  K  hashed frames of a clip
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

# Bits of 64 in which two hashes may differ.
_MOST_BITS = 6
# Share of the compared frames that must agree.
_AGREEMENT = 0.8
# Share of the shorter clip that must be compared, and fewest frames of it.
_OVERLAP, _FEWEST = 0.5, 2
# Cells of a thumb that changed by at least this much count as motion; of those
# that moved in either clip, this share must have moved the same way.
_MOTION, _MOTION_AGREEMENT = 3, 0.6
# Only some hashes of a clip are looked up by others, all are compared.
_INDEXED_STEP = 4
# Most clips with a half of a hash in common that are found, and compared.
_MOST_FOUND, _MOST_COMPARED = 256, 64


@dataclasses.dataclass(frozen=True)
class Clip:
  """What is known of a clip.

  Attributes:
    clip_id: Its name.
    film: Digest of its film.
    hashes: uint64 [K].
    thumbs: uint8 [K, 8, 9].
  """

  clip_id: str
  film: str
  hashes: np.ndarray
  thumbs: np.ndarray


def parse_hashes(hashes: Sequence[str]) -> np.ndarray:
  """Returns hashes of 16 hexadecimal digits as uint64 [K]."""
  return np.array([int(text, 16) for text in hashes], np.uint64)


def find(clips: Iterable[Clip]) -> dict[str, str]:
  """Returns which clips are duplicates, and of which clip.

  Args:
    clips: In order of preference: of two equal clips the later is the
      duplicate, and nothing is a duplicate of a duplicate.

  Returns:
    clip_id of a duplicate -> clip_id of the clip that stays.
  """
  kept: list[Clip] = []
  # Halves of hashes: equal ones are what makes two clips worth comparing.
  index: dict[tuple[int, int], list[tuple[int, int]]] = collections.defaultdict(
    list
  )
  found: dict[str, str] = {}
  for clip in clips:
    shifts: dict[tuple[int, int], int] = collections.Counter()
    keys = list(_keys(clip.hashes))
    for place, key in keys:
      for other, there in index.get(key, ()):
        if kept[other].film != clip.film:
          shifts[other, there - place] += 1
    # The most promising first; ties in the order of the clips.
    ranked = sorted(shifts, key=lambda pair: (-shifts[pair], pair))
    for other, shift in ranked[:_MOST_COMPARED]:
      if same(kept[other], clip, shift):
        found[clip.clip_id] = kept[other].clip_id
        break
    else:
      for place, key in keys:
        if place % _INDEXED_STEP == 0 and len(index[key]) < _MOST_FOUND:
          index[key].append((len(kept), place))
      kept.append(clip)
  return found


def _keys(hashes: np.ndarray) -> Iterable[tuple[int, tuple[int, int]]]:
  """Yields the place of each hash and, twice, one of its halves."""
  for place, value in enumerate(hashes.tolist()):
    yield place, (0, value >> 32)
    yield place, (1, value & 0xFFFFFFFF)


def same(one: Clip, other: Clip, shift: int = 0) -> bool:
  """Returns whether two clips show the same.

  Args:
    one: A clip.
    other: Another one.
    shift: Hashed frame k of `other` is compared with k + shift of `one`.
  """
  begin, end = max(0, -shift), min(len(other.hashes), len(one.hashes) - shift)
  shorter = min(len(one.hashes), len(other.hashes))
  if end - begin < max(_FEWEST, _OVERLAP * shorter):
    return False
  theirs = slice(begin, end)
  ours = slice(begin + shift, end + shift)
  bits = np.bitwise_count(one.hashes[ours] ^ other.hashes[theirs])
  if np.mean(bits <= _MOST_BITS) < _AGREEMENT:
    return False
  return _moves_alike(one.thumbs[ours], other.thumbs[theirs])


def _moves_alike(one: np.ndarray, other: np.ndarray) -> bool:
  """Returns whether the same changes in both, in the same direction."""
  signs = []
  for thumbs in (one, other):
    steps = np.diff(thumbs.astype(np.int16), axis=0)
    signs.append(np.sign(steps) * (np.abs(steps) >= _MOTION))
  moved = (signs[0] != 0) | (signs[1] != 0)
  if not moved.any():
    return False  # Nothing says that they are the same moment.
  return bool(np.mean(signs[0][moved] == signs[1][moved]) >= _MOTION_AGREEMENT)
