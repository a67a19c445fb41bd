"""A line of play: a prompt, a seed, the actions, and the resulting frames.

The actions define the line. The model's state is derived from them: after a
rewind, or in a shared run, the missing frames are drawn again.
"""

import dataclasses
from typing import Any

import numpy as np


class Rejected(ValueError):
  """A request that cannot be fulfilled; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Memory limits of a line.

  Attributes:
    pictures: Number of newest frames that are kept; only kept frames can be
      shown again and rewound to.
    picture_bytes: Limit for the same frames in bytes; both limits apply.
    snapshots: Number of states kept for rewinding.
    spacing: Frames between two snapshots; doubled when there are too many.
  """

  pictures: int = 2_000
  picture_bytes: int = 32 << 20
  snapshots: int = 12
  spacing: int = 8


@dataclasses.dataclass(frozen=True)
class Origin:
  """The start of a line.

  Attributes:
    frame: The prompt, uint8 [H, W, C].
    seed: Determines all noise.
    prompt: The prompt's number in the gallery; None for an uploaded picture.
  """

  frame: np.ndarray
  seed: int
  prompt: int | None


class Line:
  """One line of play.

  Attributes:
    number: Number of the line within its session.
    origin: The start of the line.
    actions: All actions; action t leads from frame t to frame t + 1.
    seqs: Sequence number of each action; 0 in the part that was shared.
    first: Number of the oldest frame that is kept.
    pictures: PNGs of frame `first` and all later frames.
    reached: Number of the frame that `state` belongs to; -1 before the prompt
      is read.
    state: The model's state; None while a step uses it or before it exists.
    away: Whether a step uses the state.
    epoch: Increases when frames are discarded, so that the result of a step
      that was in progress is dropped.
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
    """Whether an action must be stepped or the prompt must be read."""
    return not self.away and self.reached < len(self.actions)

  @property
  def waiting(self) -> int:
    """Number of actions whose frames were not shown yet."""
    return len(self.actions) - max(self.end, 0)

  def picture(self, number: int) -> bytes:
    """Returns the PNG of a frame that is kept."""
    return self.pictures[number - self.first]

  def header(self, number: int) -> dict[str, int]:
    """Returns the header fields of the message that carries a frame."""
    if number == 0:
      return {"frame": 0}
    return {
      "frame": number,
      "action": self.actions[number - 1],
      "seq": self.seqs[number - 1],
    }

  def check(self, frame: int) -> None:
    """Checks that a frame was shown and is still kept.

    Raises:
      Rejected: The frame was not shown or is not kept.
    """
    if not self.first <= frame <= self.end:
      raise Rejected(
        f"Frame {frame} is not kept; frames {self.first} to {self.end} are."
        if self.pictures
        else "There is no frame yet."
      )

  def advance(self, state: Any, picture: bytes, copy: Any) -> bool:
    """Adds the next frame.

    Args:
      state: The model's state after the frame.
      picture: The frame as PNG.
      copy: A copy of the state if `wants_copy` was true, else None.

    Returns:
      Whether the frame must be shown: False for one that is drawn again only
      to restore the state.
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
    """Whether the state after the next frame is to be kept as a snapshot."""
    number = self.reached + 1
    return number % self._spacing == 0 and number not in self._snapshots

  def rewind(self, frame: int) -> None:
    """Goes back to a frame and discards the later ones.

    Raises:
      Rejected: The frame is not kept.
    """
    self.check(frame)
    self._truncate(frame)

  def branch(self, number: int, frame: int) -> "Line":
    """Returns a new line with the same frames up to the given one.

    Raises:
      Rejected: The frame is not kept.
    """
    self.check(frame)
    line = Line(number, self.origin, self._limits)
    line.actions, line.seqs = self.actions[:], self.seqs[:]
    line.first, line.pictures = self.first, self.pictures[:]
    line._bytes, line._spacing = self._bytes, self._spacing
    # Lines can share snapshots: a snapshot is copied before it is stepped.
    line._snapshots = dict(self._snapshots)
    line._truncate(frame)
    return line

  def park(self) -> None:
    """Frees the snapshots of a line that is not being played."""
    self._snapshots.clear()

  def snapshot(self) -> tuple[int, Any] | None:
    """Returns the newest snapshot, as (frame number, state), or None."""
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
      # A state after the frame is useless. A state before the frame is no
      # nearer than the newest snapshot.
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
