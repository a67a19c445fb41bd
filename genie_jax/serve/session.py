"""A player's session: lines of play, requests, and the replies to them."""

import base64
import dataclasses
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from genie_jax.core import images
from genie_jax.serve import branch as branch_lib
from genie_jax.serve import likeness as likeness_lib
from genie_jax.serve import protocol

_MAX_LINES = 8
_MAX_WAITING = 64  # Actions whose frames were not shown yet.
_MAX_UNSENT = 16  # Queued messages at which frames wait for the client.


@dataclasses.dataclass
class Comparison:
  """Rollouts from one frame, one per action, that hold the action.

  Attributes:
    line: The line whose state is brought to the frame.
    frame: Number of the frame where the rollouts start.
    frames: Number of frames to draw per action.
    states: One per action; None until they were copied from the line's state.
    stepped: Frames drawn so far, all actions together.
  """

  line: branch_lib.Line
  frame: int
  frames: int
  states: list[Any] | None = None
  stepped: int = 0


class Session:
  """One player's session.

  Attributes:
    token: Secret with which the player reconnects.
    line: The line being played; None before the first start.
    comparison: The comparison being drawn, or None.
    run: Increases with every start, rewind, branch and switch.
    connection: The player's connection; None while disconnected.
    seen: Time of the last message, by the caller's clock.
    left: Time when the connection was lost, by the same clock.
    local: Whether the session was opened from this machine.
    filming: Whether a video is being encoded.
    likeness: How well the first frame shows the player's own picture; None for
      a prompt of the gallery and before that frame.
  """

  def __init__(self, num_actions: int, limits: branch_lib.Limits, now: float):
    self.token = secrets.token_urlsafe(24)
    self.line: branch_lib.Line | None = None
    self.comparison: Comparison | None = None
    self.run = 0
    self.connection: Any = None
    self.seen = now
    self.left = now
    self.local = False
    self.filming = False
    self.likeness: likeness_lib.Likeness | None = None
    self._num_actions = num_actions
    self._limits = limits
    self._lines: dict[int, branch_lib.Line] = {}
    self._next_line = 0
    self._next_frame = 0  # Of the line, to send.
    self._seq = 0

  @property
  def ready(self) -> bool:
    """Whether to draw frames: the player is connected and keeps up."""
    return self._reads and (
      self.line is None or self._next_frame > self.line.end
    )

  @property
  def _reads(self) -> bool:
    return self.connection is not None and self.connection.unsent < _MAX_UNSENT

  def send(self, message: dict[str, Any] | bytes) -> None:
    """Sends a message if the player is connected."""
    if self.connection is not None:
      self.connection.send(message)

  def start(
    self,
    frame: np.ndarray,
    seed: int,
    prompt: int | None,
    actions: list[int],
  ) -> None:
    """Starts from a prompt; with actions, replays a shared run.

    Raises:
      Rejected: An action is not a button of this world.
    """
    for action in actions:
      self._check(action)
    self.comparison = self.likeness = None
    self._lines.clear()
    self._play(
      branch_lib.Line(
        self._take_number(),
        branch_lib.Origin(frame, seed, prompt),
        self._limits,
        actions,
      ),
      "started",
    )

  def act(self, action: int, seq: int) -> None:
    """Adds an action to the line.

    Raises:
      Rejected: There is no such button, nothing is being played, too many
        actions wait for their frames, or the line has reached its limit.
    """
    self._check(action)
    line = self._line()
    if seq <= self._seq:
      raise branch_lib.Rejected(
        f"Sequence numbers must increase; {seq} is not above {self._seq}."
      )
    if line.waiting >= _MAX_WAITING:
      raise branch_lib.Rejected(
        f"{_MAX_WAITING} actions are waiting for their frames; send fewer."
      )
    if len(line.actions) >= protocol.MAX_ACTIONS:
      raise branch_lib.Rejected(
        f"This run has {protocol.MAX_ACTIONS} frames, the maximum; play from "
        "an earlier frame, or start again."
      )
    line.actions.append(action)
    line.seqs.append(seq)
    self._seq = seq

  def rewind(self, frame: int) -> None:
    """Goes back to a frame of this line and discards the later ones."""
    self._line().rewind(frame)
    self.comparison = None
    self._play(self._line(), "rewound", send_from=None)

  def branch(self, frame: int) -> None:
    """Opens a new line from a frame of this one; this one is kept."""
    if len(self._lines) >= _MAX_LINES:
      raise branch_lib.Rejected(
        f"There are {_MAX_LINES} lines, the maximum; start from a prompt."
      )
    new = self._line().branch(self._next_line, frame)
    self._take_number()
    self._line().park()
    self.comparison = None
    self._play(new, "branched", send_from=None)

  def switch(self, number: int, have: int) -> None:
    """Continues another line; the page has its frames up to `have`."""
    if number not in self._lines:
      raise branch_lib.Rejected(f"There is no line {number}.")
    if self._lines[number] is not self.line:
      self._line().park()
    self.comparison = None
    self._play(self._lines[number], "switched", send_from=have + 1)

  def compare(self, frame: int, frames: int) -> None:
    """Starts a comparison of all actions from a frame."""
    line = self._line()
    line.check(frame)
    if frame != line.end or frame != len(line.actions):
      line = line.branch(0, frame)
    self.comparison = Comparison(line, frame, frames)

  def film(self, message: dict[str, Any], fps: float) -> Callable[[], bytes]:
    """Returns a function that encodes frames as a video, in any thread.

    Args:
      message: A message of type "record".
      fps: Frames per second, where the message has none.

    Raises:
      Rejected: A frame is not kept, or the video would be too long or too
        large.
    """
    line = self._line()
    first, last = message["first"], message["last"]
    line.check(first)
    line.check(last)
    if not 0 <= last - first < protocol.MAX_RECORDED:
      raise branch_lib.Rejected(
        f"A video has 1 to {protocol.MAX_RECORDED} frames, not "
        f"{last - first + 1}."
      )
    rows, columns = line.origin.frame.shape[:2]
    pixels = (last - first + 1) * rows * columns * message["scale"] ** 2
    if pixels > protocol.MAX_FILM_PIXELS:
      raise branch_lib.Rejected(
        f"The video would have {pixels / 1e6:.0f} million pixels, and may "
        f"have {protocol.MAX_FILM_PIXELS / 1e6:.0f}; choose fewer frames or "
        "a smaller size."
      )
    pictures = [line.picture(number) for number in range(first, last + 1)]

    def make() -> bytes:
      frames = np.stack([images.from_png(picture) for picture in pictures])
      return images.to_video(
        frames, message["format"], message["fps"] or fps, message["scale"]
      )

    return make

  def resume(self, run: int, have: int) -> None:
    """Sends a player who reconnected the state of the game.

    Args:
      run: The newest run that the page knows.
      have: The newest frame of it that the page has.
    """
    if self.line is not None:
      self._tell("resumed", have + 1 if run == self.run else 0)
      self._tell_likeness()

  def set_likeness(self, found: likeness_lib.Likeness) -> None:
    """Keeps and sends how well the first frame shows the player's picture."""
    self.likeness = found
    self._tell_likeness()

  def _tell_likeness(self) -> None:
    if self.likeness is not None:
      self.send(
        {
          "type": "likeness",
          "run": self.run,
          "unlike": self.likeness.unlike,
          "psnr": round(self.likeness.psnr, 2),
          "least": round(self.likeness.least, 2),
        }
      )

  def _play(
    self, line: branch_lib.Line, reason: str, send_from: int | None = 0
  ) -> None:
    self.line = self._lines[line.number] = line
    self.run += 1
    self._tell(reason, send_from)

  def _tell(self, reason: str, send_from: int | None) -> None:
    """Describes the line and sends its frames from `send_from` on.

    Without `send_from`, the page has all of them.
    """
    line = self._line()
    message = {
      "type": "line",
      "reason": reason,
      "run": self.run,
      "line": line.number,
      "seed": line.origin.seed,
      "prompt": line.origin.prompt,
      "actions": line.actions,
      "first": line.first,
      "end": line.end,
      "seq": self._seq,
      "lines": [
        {"line": each.number, "end": each.end} for each in self._lines.values()
      ],
    }
    if line.origin.prompt is None:
      message["picture"] = base64.b64encode(
        images.to_png(line.origin.frame)
      ).decode()
    self.send(message)
    self._next_frame = line.end + 1 if send_from is None else send_from
    self.send_frames()

  def send_frames(self) -> None:
    """Queues the next frames of the line, as many as the client reads.

    Call it when there is a new frame, and after each message that was written.
    """
    line = self.line
    if line is None:
      return
    self._next_frame = max(self._next_frame, line.first)
    while self._reads and self._next_frame <= line.end:
      self.send(
        protocol.pack(
          protocol.FRAME,
          line.picture(self._next_frame),
          run=self.run,
          **line.header(self._next_frame),
        )
      )
      self._next_frame += 1

  def _line(self) -> branch_lib.Line:
    if self.line is None:
      raise branch_lib.Rejected("Nothing is being played; send a start first.")
    return self.line

  def _take_number(self) -> int:
    self._next_line += 1
    return self._next_line - 1

  def _check(self, action: int) -> None:
    if action >= self._num_actions:
      raise branch_lib.Rejected(
        f"Action {action} is out of range: this world has "
        f"{self._num_actions}, 0 to {self._num_actions - 1}."
      )
