"""How far the picture scrolls, and what a held button is seen to do.

In games whose camera is centred on the player, the picture moves against the
player's motion. The shift between two frames is the one at which they differ
least, among all shifts up to a few pixels, without the centre, where the player
is drawn. It needs neither labels nor the game's state, so the same measure
applies to the frames of a world and of the game.

An effect is only judged in moments in which the game lets the keys decide it:
at least one key of the game has it, and at least one has not. So a wall to the
left does not speak against "left", nor a fall that no key can stop for "fall".
A button is named by an effect that it has in most of these moments, and surely
more often than a key of the game that is drawn at random (`button_names`).

Shapes:
  n  pairs of frames, or rollouts     M  moments     A  buttons     G  keys
  F  frames drawn
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genie_jax.evals import button_names, intervals

# The largest shifts that are tried, in pixels per frame: CoinRun's player runs
# up to 2.5 and jumps up to 7.4.
MOST = (4, 8)
# Mean motion per frame that counts, in pixels. Without a key, CoinRun's player
# glides by less than this after half of the eight frames in 9 of 10 moments.
MOVES = 0.5
_CENTRE = 0.14  # Half of the side of the part left out, of the frame's side.
_AT_ONCE = 128  # Pairs of frames compared by one call.


def pair_shifts(
  before: np.ndarray,
  after: np.ndarray,
  most: tuple[int, int] = MOST,
  around: tuple[int, int] = (0, 0),
) -> np.ndarray:
  """Returns how the player moved between two frames, in whole pixels.

  Args:
    before: uint8 [n, H, W, C].
    after: uint8 [n, H, W, C].
    most: How far from `around` horizontal and vertical shifts are tried.
    around: The shift in the middle of those that are tried.

  Returns:
    int [n, 2], to the right and upwards; the picture moves the other way. Of
    shifts that fit equally well, the one nearest to `around`.
  """
  height, width = before.shape[1:3]
  # A quarter of the frame is always compared.
  most = (min(most[0], width // 4), min(most[1], height // 4))
  shifts = sorted(
    (
      (around[0] + right, around[1] + up)
      for right in range(-most[0], most[0] + 1)
      for up in range(-most[1], most[1] + 1)
    ),
    key=lambda shift: abs(shift[0] - around[0]) + abs(shift[1] - around[1]),
  )
  most = (most[0] + abs(around[0]), most[1] + abs(around[1]))
  found = np.empty((len(before), 2), np.int64)
  for start in range(0, len(before), _AT_ONCE):
    rows = slice(start, start + _AT_ONCE)
    one = before[rows].sum(-1, dtype=np.int16)
    other = after[rows].sum(-1, dtype=np.int16)
    costs = np.stack([_cost(one, other, shift, most) for shift in shifts])
    found[rows] = np.array(shifts)[costs.argmin(0)]
  return found


def _cost(
  before: np.ndarray,
  after: np.ndarray,
  shift: tuple[int, int],
  most: tuple[int, int],
) -> np.ndarray:
  """Returns the mean difference of shifted grey frames [n, H, W], [n]."""
  height, width = before.shape[1:]
  (right, up), (across, along) = shift, most
  # A player who moves right and up sees the picture move left and down.
  gap = (
    before[:, along : height - along, across : width - across]
    - (
      after[
        :,
        along + up : height - along + up,
        across - right : width - across - right,
      ]
    )
  )
  np.abs(gap, out=gap)
  counted = np.ones(gap.shape[1:], bool)
  for down, left in ((0, 0), (-up, right)):  # The player in either frame.
    counted[_centre(height, along - down), _centre(width, across - left)] = (
      False
    )
  gap *= counted
  return gap.sum((1, 2), dtype=np.int64) / max(int(counted.sum()), 1)


def _centre(side: int, cut: int) -> slice:
  """Returns the centre of a side after `cut` pixels were cut at its start."""
  half = round(_CENTRE * side)
  return slice(max(side // 2 - half - cut, 0), max(side // 2 + half - cut, 0))


def places(
  clips: np.ndarray, stride: int = 4, reach: tuple[int, int] = (3, 2)
) -> np.ndarray:
  """Returns where the player is in each frame, relative to the first.

  Between consecutive frames a shift is a whole number of pixels, and the errors
  of a slow motion add up: of frames that were drawn from tokens, many pairs
  differ least without a shift. So each frame is also compared with one up to
  `stride` frames before, with the sum of the shifts between them as a guess.

  Args:
    clips: uint8 [n, F + 1, H, W, C].
    stride: Every how many frames there is one with which the following are
      compared; 1 to add up the shifts between consecutive frames.
    reach: How far from the guess shifts are tried, in pixels.

  Returns:
    int [n, F + 1, 2], pixels to the right and upwards.
  """
  count, length = clips.shape[:2]
  height, width = clips.shape[2:4]
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  moved = pair_shifts(flat(clips[:, :-1]), flat(clips[:, 1:]))
  moved = moved.reshape(count, length - 1, 2)
  rough = np.concatenate([np.zeros_like(moved[:, :1]), moved.cumsum(1)], 1)
  later = np.arange(1, length)
  anchors = (later - 1) // stride * stride
  guesses = rough[:, later] - rough[:, anchors]
  # Beyond this, less than a quarter of the frame would be compared.
  largest = (3 * width // 8 - reach[0], 3 * height // 8 - reach[1])
  compared = (np.abs(guesses) <= largest).all(-1) & (later - anchors > 1)
  found = guesses.copy()
  clip, frame = np.nonzero(compared)
  rows = guesses[clip, frame]
  for guess in np.unique(rows, axis=0):
    same = (rows == guess).all(-1)
    one, at = clip[same], frame[same]
    found[one, at] = pair_shifts(
      clips[one, anchors[at]], clips[one, later[at]], reach, tuple(guess)
    )
  result = np.zeros_like(rough)
  for index, (anchor, number) in enumerate(zip(anchors, later, strict=True)):
    result[:, number] = result[:, anchor] + found[:, index]
  return result


def explained(
  before: np.ndarray, after: np.ndarray, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns how far a shift makes frames alike, and how far a scroll would.

  A picture that only flickers also has a shift at which it differs least. But
  that shift hardly makes the frames more alike, while a picture that only
  scrolls becomes the same.

  Args:
    before: uint8 [n, H, W, C].
    after: uint8 [n, H, W, C].
    shifts: int [n, 2], from `pair_shifts`, to the right and upwards.

  Returns:
    float64 [n], by how much the mean difference of the frames is less with the
    shift than without; and float64 [n], by how much it would be less if `after`
    were `before`, shifted. The mean of each difference is taken off first, so
    that a change of the light alone is no difference.
  """
  one, other = (x.sum(-1, dtype=np.int32) for x in (before, after))
  height, width = one.shape[1:]
  gain, scrolled = np.zeros(len(one)), np.zeros(len(one))
  for row, (right, up) in enumerate(shifts.tolist()):
    # The same part of `before` is compared with and without the shift.
    rows = slice(abs(up), height - abs(up))
    columns = slice(abs(right), width - abs(right))
    moved = (
      slice(abs(up) + up, height - abs(up) + up),
      slice(abs(right) - right, width - abs(right) - right),
    )
    back = (
      slice(abs(up) - up, height - abs(up) - up),
      slice(abs(right) + right, width - abs(right) + right),
    )
    counted = np.ones(one[row][rows, columns].shape, bool)
    for down, left in ((0, 0), (-up, right)):  # The player in either frame.
      counted[
        _centre(height, abs(up) - down), _centre(width, abs(right) - left)
      ] = False
    still = one[row][rows, columns]
    gain[row] = _difference(
      still - other[row][rows, columns], counted
    ) - _difference(still - other[row][moved], counted)
    scrolled[row] = _difference(still - one[row][back], counted)
  return gain, scrolled


def _difference(gap: np.ndarray, counted: np.ndarray) -> float:
  """Returns the mean of |gap - mean| where `counted`, [H, W] both."""
  values = gap[counted]
  return float(np.abs(values - values.mean()).mean()) if values.size else 0.0


def motion(frames: np.ndarray, least: float = 0.0) -> np.ndarray:
  """Returns the player's mean motion per frame while a button is held.

  Only the second half of the frames counts: in the first, the player may still
  move as before.

  Args:
    frames: uint8 [n, 1 + F, H, W, C], the frame before the button first.
    least: The part of a true scroll's gain that the shifts of a rollout must
      reach together, see `explained`; with less, its motion is zero.

  Returns:
    float64 [n, 2], pixels per frame to the right and upwards.
  """
  later = frames[:, (frames.shape[1] - 1) // 2 :]
  count, pairs = len(later), later.shape[1] - 1
  flat = lambda x: x.reshape(count * pairs, *x.shape[2:])
  before, after = flat(later[:, :-1]), flat(later[:, 1:])
  found = pair_shifts(before, after)
  moved = found.reshape(count, pairs, 2).mean(1)
  if least:
    gain, scrolled = (
      x.reshape(count, pairs).sum(1) for x in explained(before, after, found)
    )
    moved[gain < least * scrolled] = 0
  return moved


def effects(moved: np.ndarray) -> dict[str, np.ndarray]:
  """Returns which effects a motion has.

  Args:
    moved: [..., 2], from `motion`.

  Returns:
    Name -> bool [...].
  """
  return button_names.effects(
    np.where(np.abs(moved) < MOVES, 0, np.sign(moved))
  )


def name_buttons(
  buttons: np.ndarray,
  keys: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
  numbers: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
  """Names each button by what it was measured to do.

  Args:
    buttons: [M, A, 2], from `motion`, of each button held in each moment.
    keys: [M, G, 2], the same for keys of the game with different effects.
    levels: [M].
    seed: Of the bootstrap.
    numbers: A numbers of the buttons; by default from 0.

  Returns:
    For each button {"button", "name", "share", "interval", "scroll",
    "effects"}: see `button_names.named`, where cases are moments. "scroll" has
    the mean motion {"right", "up"} in pixels per frame, with intervals.
    "effects" has {"value", "low", "high", "chance", "moments"} of each effect
    that the keys decide in some moment.
  """
  seen, possible = effects(buttons), effects(keys)
  rows = []
  for index, number in enumerate(
    range(buttons.shape[1]) if numbers is None else numbers
  ):
    found: dict[str, dict[str, Any]] = {}
    for name in button_names.EFFECTS:
      some = np.count_nonzero(possible[name], 1)
      decided = np.logical_and(some > 0, some < keys.shape[1])
      if not decided.any():
        continue
      share = intervals.ratio(
        seen[name][:, index] & decided, decided, levels, seed=seed
      )
      found[name] = {
        **share.to_dict(),
        "chance": float(possible[name][decided].mean()),
        "moments": int(decided.sum()),
      }
    right, up = (
      intervals.ratio(moved, np.ones(len(moved)), levels, seed=seed).to_dict()
      for moved in buttons[:, index].T
    )
    rows.append(
      {
        "button": int(number),
        **button_names.named(found),
        "scroll": {"right": right, "up": up},
      }
    )
  return rows
