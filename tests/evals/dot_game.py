"""A game whose keys can be read from frames: a dot that moves on a torus.

Keys 0 to 5 are left, stay and right, without and with a jump; key 6 does what
key 1 does.
"""

import numpy as np

SIDE, FRAMES, STRIDE = 16, 8, 3
MEANINGS = {
  "effect": [0, 1, 2, 3, 4, 5, 1],
  "horizontal": [-1, 0, 1, -1, 0, 1, 0],
  "jump": [0, 0, 0, 1, 1, 1, 0],
}
NUM_KEYS = len(MEANINGS["effect"])


def play(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns frames, keys and states of random play.

  Args:
    count: n.
    seed: Seed of places, colours and keys.

  Returns:
    uint8 [n, 8, 16, 16, 3], int32 [n, 7], float32 [n, 8, 5].
  """
  rng = np.random.default_rng(seed)
  keys = rng.integers(0, NUM_KEYS, (count, FRAMES - 1)).astype(np.int32)
  frames, states = draw(keys, rng)
  return frames, keys, states


def draw(
  keys: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the frames and states that keys [n, T-1] lead to."""
  count, length = keys.shape
  moves = STRIDE * np.stack(
    [np.take(MEANINGS[name], keys) for name in ("horizontal", "jump")], -1
  )
  places = np.zeros((count, length + 1, 2), int)
  places[:, 1:] = moves.cumsum(1)
  states = np.zeros((count, length + 1, 5), np.float32)
  states[..., :2] = places
  frames = np.zeros((count, length + 1, SIDE, SIDE, 3), np.uint8)
  frames[:] = rng.integers(0, 60, (count, 1, 1, 1, 3))
  places = (places + rng.integers(0, SIDE, (count, 1, 2))) % SIDE
  colours = rng.integers(180, 256, (count, 3))
  for clip, time in np.ndindex(*places.shape[:2]):
    x, y = places[clip, time]
    rows, columns = (-y + np.arange(3)) % SIDE, (x + np.arange(3)) % SIDE
    frames[clip, time][np.ix_(rows, columns)] = colours[clip]
  return frames, states
