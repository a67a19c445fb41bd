"""One line of play: a prompt, a seed, actions, and the frames they led to.

The actions are the truth. The model's state follows them: whatever is missing,
after a rewind or in a shared run, is stepped again.
"""

import dataclasses
from typing import Any

import numpy as np

from genie_jax.serve import protocol


class Rejected(ValueError):
  """A request that cannot be done now; says why in one line."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much of a line is kept.

  Attributes:
    pictures: Newest frames that can be shown and rewound to.
    picture_bytes: The same in bytes; the smaller rules.
    snapshots: States kept for rewinding.
    spacing: Frames between two snapshots while there is room.
  """

  pictures: int = 2_000
  picture_bytes: int = 32 << 20
  snapshots: int = 12
  spacing: int = 8


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a line starts from.

  Attributes:
    frame: uint8 [H, W, C].
    seed: Fixes all noise.
    prompt: The gallery's number, None for an own picture.
  """

  frame: np.ndarray
  seed: int
  prompt: int | None


class Line:
  """One line of play.

  Attributes:
    number: Of the line within its session.
    origin: What it starts from.
    actions: All of them; action t leads from frame t to t + 1.
    seqs: Their sequence numbers, 0 for those of a shared run.
    first: Number of the oldest picture that is kept.
    pictures: PNGs of frames `first` and on.
    reached: The frame that `state` stands at, -1 before the prompt is read.
    state: The model's, None while it is away being stepped, or not made.
    away: Whether it is being stepped.
    epoch: Grows when frames are forgotten: what was being stepped then comes
      back to nobody.
  """

  def __init__(
    self,
    number: int,
    origin: Origin,
    limits: Limits,
    actions: list[int] | None = None,
  ):
    self.number = number
    self.origin = origin
    self.actions = list(actions or [])
    self.seqs = [0] * len(self.actions)
    self.first = 0
    self.pictures: list[bytes] = []
    self.reached = -1
    self.state: Any = None
    self.away = False
    self.epoch = 0
    self._limits = limits
    self._bytes = 0
    self._spacing = limits.spacing
    self._snapshots: dict[int, Any] = {}

  @property
  def end(self) -> int:
    """Number of the newest frame that was shown, -1 before the first."""
    return self.first + len(self.pictures) - 1

  @property
  def behind(self) -> bool:
    """Whether there is something to step, or the prompt to be read."""
    return not self.away and self.reached < len(self.actions)

  @property
  def waiting(self) -> int:
    """Actions whose frames were not shown yet."""
    return len(self.actions) - max(self.end, 0)

  def picture(self, number: int) -> bytes:
    """Returns the PNG of a frame that is kept."""
    return self.pictures[number - self.first]

  def header(self, number: int) -> dict[str, int]:
    """Returns what a message of this frame says of it."""
    if number == 0:
      return {"frame": 0}
    return {
      "frame": number,
      "action": self.actions[number - 1],
      "seq": self.seqs[number - 1],
    }

  def act(self, action: int, seq: int) -> None:
    """Adds an action.

    Raises:
      Rejected: The line is as long as one may be.
    """
    if len(self.actions) >= protocol.MAX_ACTIONS:
      raise Rejected(
        f"This run has {protocol.MAX_ACTIONS} frames, the most; go back and "
        "play on from there, or start anew."
      )
    self.actions.append(action)
    self.seqs.append(seq)

  def check(self, frame: int) -> None:
    """Checks that a frame was shown and is kept.

    Raises:
      Rejected: It was not, or is not.
    """
    if not self.first <= frame <= self.end:
      raise Rejected(
        f"Frame {frame} is not kept; those from {self.first} to {self.end} are."
        if self.pictures
        else "There is no frame yet."
      )

  def advance(self, state: Any, picture: bytes, copy: Any) -> bool:
    """Takes the next frame.

    Args:
      state: The model's state after it.
      picture: The frame as PNG.
      copy: A copy of the state if `wants_copy` asked for one, else None.

    Returns:
      Whether the frame is new, and was not shown before a rewind.
    """
    self.reached += 1
    self.state, self.away = state, False
    if copy is not None:
      self._keep(self.reached, copy)
    if self.reached <= self.end:
      return False
    self.pictures.append(picture)
    self._bytes += len(picture)
    while (
      len(self.pictures) > self._limits.pictures
      or self._bytes > self._limits.picture_bytes
    ):
      self._bytes -= len(self.pictures.pop(0))
      self.first += 1
    return True

  @property
  def wants_copy(self) -> bool:
    """Whether the state after the next frame shall be kept."""
    number = self.reached + 1
    return number % self._spacing == 0 and number not in self._snapshots

  def rewind(self, frame: int) -> None:
    """Goes back to a frame; what came after it is forgotten.

    Raises:
      Rejected: The frame is not kept.
    """
    self.check(frame)
    self._truncate(frame)

  def branch(self, number: int, frame: int) -> "Line":
    """Returns a new line that shares everything up to a frame.

    Raises:
      Rejected: The frame is not kept.
    """
    self.check(frame)
    line = Line(number, self.origin, self._limits)
    line.actions, line.seqs = self.actions[:], self.seqs[:]
    line.first, line.pictures = self.first, self.pictures[:]
    line._bytes, line._spacing = self._bytes, self._spacing
    # Snapshots are copied before they are stepped, so that lines share them.
    line._snapshots = dict(self._snapshots)
    line._truncate(frame)
    return line

  def park(self) -> None:
    """Gives up snapshots of a line that is not being played."""
    self._snapshots.clear()

  def snapshot(self) -> tuple[int, Any] | None:
    """Returns the newest kept state and its frame, if there is one."""
    frame = max(self._snapshots, default=None)
    return None if frame is None else (frame, self._snapshots[frame])

  def _truncate(self, frame: int) -> None:
    del self.actions[frame:]
    del self.seqs[frame:]
    gone = self.pictures[frame - self.first + 1 :]
    del self.pictures[frame - self.first + 1 :]
    self._bytes -= sum(map(len, gone))
    for number in [n for n in self._snapshots if n > frame]:
      del self._snapshots[number]
    if self.state is None or self.reached != frame:
      # One beyond the frame is of no use, one before it no nearer than the
      # snapshots.
      self.state, self.reached = None, -1
    self.away = False
    self.epoch += 1

  def _keep(self, number: int, copy: Any) -> None:
    self._snapshots[number] = copy
    while len(self._snapshots) > self._limits.snapshots:
      self._spacing *= 2
      self._snapshots = {
        n: state
        for n, state in self._snapshots.items()
        if n % self._spacing == 0
      }
