"""A scripted player of games seen from the side, who reacts to what he sees.

He holds a direction for up to four seconds, mostly to the right, and jumps now
and then. If the picture hardly changes although he holds a direction, he stands
at a wall: he jumps, and then turns around. His decisions depend on the seed and
on the picture; real games do not repeat exactly, so neither do films.
"""

import dataclasses

import numpy as np

TICK_SECONDS = 0.1

_HOLDS = {"right": (1.2, 4.0), "left": (0.6, 2.2), "": (0.2, 0.8)}
_JUMP_SECONDS = (0.1, 0.6)
_LONG_JUMP_SECONDS = (0.5, 0.8)
_STUCK_SECONDS = 0.5
_STUCK_JUMPS = 0.75
_SEE_CHANGE = 6  # Levels of grey by which a pixel must differ.


@dataclasses.dataclass(frozen=True)
class Keys:
  """Names of a game's keys, as xdotool knows them; "" if it has none."""

  right: str = "Right"
  left: str = "Left"
  jump: str = "space"
  run: str = ""
  up: str = ""
  shoot: str = ""


@dataclasses.dataclass(frozen=True)
class Style:
  """How a game is played.

  Attributes:
    right: Share of directions that are to the right.
    left: The same to the left; the rest is standing.
    jumps: Jumps that begin in a second, besides those at walls.
    climbs: Share of directions with the key `up`.
    scrolls: Share of pixels that change in a tenth of a second when the view
      scrolls; sprites alone must stay below it.
  """

  right: float = 0.70
  left: float = 0.22
  jumps: float = 0.45
  climbs: float = 0.25
  scrolls: float = 0.06


class Player:
  """Chooses the keys that are held, ten times a second.

  Attributes:
    still_seconds: For how long the view has not scrolled.
    moving_ticks: Number of ticks in which it scrolled.
    ticks: Number of ticks.
  """

  def __init__(self, keys: Keys, style: Style, seed: int):
    self._keys, self._style = keys, style
    self._rng = np.random.default_rng(seed)
    self._direction, self._left_of_hold = "right", 2.0
    self._jump = self._stuck = self._up = self._shoot = 0.0
    self._run = False
    self._before: np.ndarray | None = None
    self.still_seconds, self.moving_ticks, self.ticks = 0.0, 0, 0

  def step(self, view: np.ndarray) -> frozenset[str]:
    """Returns the keys to hold for the next tick.

    Args:
      view: uint8 [h, w], a small grey picture of the screen.
    """
    scrolls = self._scrolls(view)
    self.ticks += 1
    self.moving_ticks += scrolls
    self.still_seconds = 0.0 if scrolls else self.still_seconds + TICK_SECONDS
    self._choose(scrolls)
    return self._held()

  def _scrolls(self, view: np.ndarray) -> bool:
    before, self._before = self._before, view
    if before is None:
      return True
    change = np.abs(view.astype(np.int16) - before) > _SEE_CHANGE
    return bool(change.mean() > self._style.scrolls)

  def _choose(self, scrolls: bool) -> None:
    rng, tick = self._rng, TICK_SECONDS
    self._left_of_hold -= tick
    for name in ("_jump", "_up", "_shoot"):
      setattr(self, name, getattr(self, name) - tick)
    if self._left_of_hold <= 0:
      self._turn(rng.choice(["right", "left", ""], p=self._shares()))
      self._run = rng.random() < 0.4
      if rng.random() < self._style.climbs:
        self._up = rng.uniform(0.3, 1.5)
    if self._jump <= -0.2 and rng.random() < self._style.jumps * tick:
      self._jump = rng.uniform(*_JUMP_SECONDS)
    if self._shoot <= -0.5 and rng.random() < 0.3 * tick:
      self._shoot = rng.uniform(0.2, 1.0)
    blocked = self._direction and not scrolls
    self._stuck = self._stuck + tick if blocked else 0.0
    if self._stuck > _STUCK_SECONDS:
      self._stuck = 0.0
      if rng.random() < _STUCK_JUMPS:
        self._jump = rng.uniform(*_LONG_JUMP_SECONDS)
        self._shoot = rng.uniform(0.3, 1.0)
        self._left_of_hold = max(self._left_of_hold, 1.0)
      else:
        self._turn("left" if self._direction == "right" else "right")

  def _turn(self, direction: str) -> None:
    self._direction = str(direction)
    self._left_of_hold = self._rng.uniform(*_HOLDS[self._direction])

  def _held(self) -> frozenset[str]:
    keys = self._keys
    held = {
      "right": keys.right if self._direction == "right" else "",
      "left": keys.left if self._direction == "left" else "",
      "jump": keys.jump if self._jump > 0 else "",
      "run": keys.run if self._run else "",
      "up": keys.up if self._up > 0 else "",
      "shoot": keys.shoot if self._shoot > 0 else "",
    }
    return frozenset(name for name in held.values() if name)

  def _shares(self) -> list[float]:
    right, left = self._style.right, self._style.left
    return [right, left, 1.0 - right - left]
