"""One WebSocket: reads messages, and writes at the client's pace."""

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from starlette import websockets

from genie_jax.serve import security

_MAX_UNSENT = 8_192  # More than a whole line's frames.
_MESSAGES_A_SECOND = 100
_MAX_REFUSED = 1_000  # Who sends that much too fast is cut off.

# Codes of closing; 4000 and on are ours.
FULL, TAKEN_OVER, EXPIRED, ENDED = 4000, 4001, 4002, 4003
_TOO_BIG, _ABUSE = 1009, 1008


class Closed(Exception):
  """The connection has ended."""


class Connection:
  """A WebSocket whose messages are written in order, one by one."""

  def __init__(self, socket: websockets.WebSocket, drained: Callable[[], None]):
    """Wraps an accepted WebSocket.

    Args:
      socket: It.
      drained: Called whenever a message was written.
    """
    self._socket = socket
    self._drained = drained
    self._outbox: collections.deque[str | bytes] = collections.deque()
    self._filled = asyncio.Event()
    self._ending: tuple[int, str] | None = None
    self._bucket = security.Bucket(
      _MESSAGES_A_SECOND, 2 * _MESSAGES_A_SECOND, time.monotonic()
    )
    self._refused = 0

  @property
  def unsent(self) -> int:
    """Messages that the client has not taken yet."""
    return len(self._outbox)

  def send(self, message: dict[str, Any] | bytes) -> None:
    """Queues a message; a client that takes nothing is cut off."""
    if self._ending is not None:
      return
    if len(self._outbox) >= _MAX_UNSENT:
      self._outbox.clear()
      self.close(_ABUSE, "The client takes no messages.")
      return
    self._outbox.append(
      message if isinstance(message, bytes) else json.dumps(message)
    )
    self._filled.set()

  def error(self, reason: str, **about: Any) -> None:
    """Queues a refusal with its reason."""
    self.send({"type": "error", "error": reason, **about})

  def close(self, code: int, reason: str) -> None:
    """Closes once everything queued was written."""
    if self._ending is None:
      self._ending = code, reason
      self._filled.set()

  async def write(self) -> None:
    """Writes what is queued until the connection ends."""
    while True:
      while self._outbox:
        message = self._outbox.popleft()
        try:
          if isinstance(message, bytes):
            await self._socket.send_bytes(message)
          else:
            await self._socket.send_text(message)
        except (websockets.WebSocketDisconnect, RuntimeError):
          return  # The reader hears of it as well.
        self._drained()
      if self._ending is not None:
        code, reason = self._ending
        with contextlib.suppress(websockets.WebSocketDisconnect, RuntimeError):
          await self._socket.close(code, reason)
        return
      self._filled.clear()
      await self._filled.wait()

  async def read(self) -> str:
    """Returns the next text that came at a fair rate.

    Raises:
      Closed: The connection has ended.
    """
    while True:
      message = await self._socket.receive()
      if message["type"] != "websocket.receive":
        raise Closed
      if self._ending is not None:
        continue
      if not self._bucket.take(time.monotonic()):
        self._refuse_fast()
        continue
      if message.get("text") is None:
        self.error("Messages are texts; pictures are posted to /pictures.")
        continue
      return message["text"]

  def _refuse_fast(self) -> None:
    self._refused += 1
    if self._refused >= _MAX_REFUSED:
      self.close(_ABUSE, "Too many messages.")
    elif self._refused % _MESSAGES_A_SECOND == 1:
      self.error(
        f"More than {_MESSAGES_A_SECOND} messages a second; some were dropped."
      )
