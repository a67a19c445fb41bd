"""Whether the player keeps his own colours in long rollouts.

The player's colours after many frames are compared with those at the start of
the same rollout, and with those at the starts of other levels, in which the
player looks different. The player is taken to be in the middle of the frame, as
in games whose camera follows him. A frozen world keeps all colours: read this
figure together with `walking`.

Shapes:
  L  levels, at least two     S  last frames of a rollout     Q  quantiles
"""

import numpy as np

# Of the frame's height and width; procgen's heroes are about 8 x 5 pixels of
# 64 x 64. Larger crops contain more background, which changes while he walks:
# of 99 levels of CoinRun, 16 x 16 pixels of real frames after 64 frames are
# nearer to their own start than to another level's in 91 %, 8 x 4 pixels in 97.
_CROP = (8, 16)
_QUANTILES = 64


def palette(frames: np.ndarray) -> np.ndarray:
  """Returns the quantiles of each channel, float [n, C, Q].

  The mean absolute difference of two is the Wasserstein distance of the
  channels' histograms, in 8-bit levels.

  Args:
    frames: uint8 [n, H, W, C].
  """
  pixels = frames.reshape(len(frames), -1, frames.shape[-1])
  middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
  places = (middles * pixels.shape[1]).astype(int)
  return np.sort(pixels, 1)[:, places].swapaxes(1, 2).astype(np.float64)


def player(frames: np.ndarray) -> np.ndarray:
  """Returns the player's colours, float [n, C, Q].

  Args:
    frames: uint8 [n, H, W, C].
  """
  height, width = frames.shape[1:3]
  tall, wide = (
    max(1, side // part)
    for side, part in zip((height, width), _CROP, strict=True)
  )
  top, left = (height - tall) // 2, (width - wide) // 2
  return palette(frames[:, top : top + tall, left : left + wide])


def kept(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """Returns how often each player is nearest to his own start, float [L].

  Of the other levels, only the half whose players differ most from this one is
  compared: players of two levels can look the same.

  Args:
    starts: uint8 [L, H, W, C], the first frame of each rollout.
    ends: uint8 [L, S, H, W, C], its last frames.

  Returns:
    For each level the share of the compared levels whose start is farther away
    than his own, 0 to 1; equal distances count half, and 0.5 is chance.
  """
  first = player(starts)
  last = np.stack([player(frames).mean(0) for frames in ends])
  between = lambda a, b: np.abs(a[:, None] - b).mean((2, 3))  # [L, L]
  others = ~np.eye(len(starts), dtype=bool)
  apart, distance = between(first, first), between(last, first)
  middle = np.median(np.where(others, apart, np.nan)[others].reshape(-1))
  compared = others & (apart >= middle)
  # A player who differs from few is compared with the one he differs most from.
  lonely = ~compared.any(1)
  farthest = np.where(others, apart, -1).argmax(1)
  compared[lonely, farthest[lonely]] = True
  own = np.diagonal(distance)[:, None]
  nearer = (distance > own) + 0.5 * (distance == own)
  return np.where(compared, nearer, 0).sum(1) / compared.sum(1)
