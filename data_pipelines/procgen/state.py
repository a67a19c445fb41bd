"""Reads positions and velocities from the state that procgen saves.

The layout is that of `Game::serialize`, `BasicAbstractGame::serialize` and
`Entity::serialize` in procgen 0.10 (MIT): little-endian 32-bit words, strings
with their length in front. All games share the part that is read here; entity 0
is the agent. Only CoinRun's own part, at the end, is read as well.
"""

import struct
from typing import NamedTuple

import numpy as np

_OPTIONS = 17  # Words of options and level seeds after the game's name.
_STEP = 15  # Words about the step: reward, done, action, time, ...
_ENTITY = 31  # Words of an entity.
_END = 0xCAFECAFE  # The last word.
WITH_SUPPORT = ("coinrun",)  # Games that save whether the agent stands.
_GOAL = 1  # CoinRun's coin, an object of the grid.


class Agent(NamedTuple):
  """The agent's true state, in cells of the level and cells per step.

  Attributes:
    x: Position from the left.
    y: Position from the bottom.
    vx: Velocity to the right.
    vy: Velocity upwards.
    support: 1 if the agent stands on something, 0 if not; -1 in games other
      than CoinRun, which do not save it.
  """

  x: float
  y: float
  vx: float
  vy: float
  support: float


def agent(saved: bytes) -> Agent:
  """Returns the agent's state.

  Args:
    saved: From `client.Env.get_state`.
  """
  name, begin = _entities(saved)
  x, y, vx, vy = struct.unpack_from("<4f", saved, begin)
  support = -1.0
  if name == b"coinrun":
    # float last_agent_y, int wall_theme, int has_support, int facing_right,
    # int is_on_crate, float gravity, float air_control, the end.
    support = float(struct.unpack_from("<i", saved, len(saved) - 24)[0])
  return Agent(x, y, vx, vy, support)


def coin(saved: bytes) -> tuple[float, float]:
  """Returns the position of CoinRun's coin, in cells, as for the agent."""
  name, begin = _entities(saved)
  assert name == b"coinrun", name
  # The grid is saved as width, height, and their product before the objects.
  at = saved.index(struct.pack("<3i", 64, 64, 64 * 64), begin) + 12
  grid = np.frombuffer(saved, "<i4", 64 * 64, at).reshape(64, 64)
  (row,), (column,) = np.nonzero(grid == _GOAL)
  return float(column) + 0.5, float(row) + 0.5


def _entities(saved: bytes) -> tuple[bytes, int]:
  """Returns the game's name and the offset of entity 0."""
  (length,) = struct.unpack_from("<i", saved, 4)
  name, at = saved[8 : 8 + length], 8 + length + 4 * _OPTIONS
  for _ in range(2):  # Two random generators: whether seeded, and a string.
    _, length = struct.unpack_from("<2i", saved, at)
    at += 8 + length
  at += 4 * _STEP
  _, count = struct.unpack_from("<2i", saved, at)
  at += 8
  (end,) = struct.unpack_from("<I", saved, len(saved) - 4)
  assert 0 < count < 10_000 and at + 4 * _ENTITY * count < len(saved), count
  assert end == _END, hex(end)
  return name, at
