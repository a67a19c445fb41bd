"""A WebSocket connection with a bounded queue of messages and a rate limit."""

import asyncio
import collections
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

from starlette import websockets

from genie_jax.serve import protocol, security

# Of a queue: a video and other messages. Frames are queued only as the client
# reads (`Session.send_frames`), so that a client which reads needs less.
MAX_UNSENT_BYTES = protocol.MAX_FILM_BYTES + (4 << 20)
_MAX_UNSENT = 1_024  # Messages of a queue.
MAX_BEFORE_HELLO = 8  # Messages of a client that has sent no hello.
_CLOSE_SECONDS = 10.0  # For queued messages, once the client has left.
_MESSAGES_PER_SECOND = 100
_MAX_REFUSED = 1_000  # Dropped messages after which the connection is closed.

# WebSocket close codes; 4000 and above are those of docs/play.md.
FULL, TAKEN_OVER, EXPIRED, ENDED = 4000, 4001, 4002, 4003
_TOO_BIG, _ABUSE = 1009, 1008


class Closed(Exception):
  """The connection has ended."""


class Connection:
  """A WebSocket that writes queued messages in order.

  Attributes:
    local: Whether the client is on this machine.
    unsent_bytes: Size of the messages that are queued and not written yet.
    welcomed: Whether the client has sent a valid hello; until then it may send
      MAX_BEFORE_HELLO messages.
  """

  def __init__(self, socket: websockets.WebSocket, drained: Callable[[], None]):
    """Wraps an accepted WebSocket.

    Args:
      socket: The WebSocket.
      drained: Called after each message that was written.
    """
    self.local = security.is_loopback(
      socket.client.host if socket.client else ""
    )
    self.unsent_bytes = 0
    self.welcomed = False
    self._received = 0
    self._socket = socket
    self._drained = drained
    self._outbox: collections.deque[str | bytes] = collections.deque()
    self._filled = asyncio.Event()
    self._ending: tuple[int, str] | None = None
    self._bucket = security.TokenBucket(
      _MESSAGES_PER_SECOND, 2 * _MESSAGES_PER_SECOND, time.monotonic()
    )
    self._refused = 0

  @property
  def unsent(self) -> int:
    """Number of messages that are queued and not written yet."""
    return len(self._outbox)

  def send(self, message: dict[str, Any] | bytes) -> None:
    """Queues a message; closes the connection if the queue is full."""
    if self._ending is not None:
      return
    data = message if isinstance(message, bytes) else json.dumps(message)
    if len(self._outbox) >= _MAX_UNSENT or (
      self.unsent_bytes + len(data) > MAX_UNSENT_BYTES
    ):
      self._outbox.clear()
      self.unsent_bytes = 0
      self.close(_ABUSE, "The client does not read its messages.")
      return
    self._outbox.append(data)
    self.unsent_bytes += len(data)  # JSON is ASCII.
    self._filled.set()

  def error(self, reason: str, **about: Any) -> None:
    """Queues an error message with its reason and further fields."""
    self.send({"type": "error", "error": reason, **about})

  def close(self, code: int, reason: str) -> None:
    """Closes the connection after all queued messages were written."""
    if self._ending is None:
      self._ending = code, reason
      self._filled.set()

  async def write(self) -> None:
    """Writes queued messages until the connection ends."""
    while True:
      while self._outbox:
        message = self._outbox.popleft()
        self.unsent_bytes -= len(message)
        try:
          if isinstance(message, bytes):
            await self._socket.send_bytes(message)
          else:
            await self._socket.send_text(message)
        except (websockets.WebSocketDisconnect, RuntimeError):
          return  # `read` detects the end as well.
        self._drained()
      if self._ending is not None:
        code, reason = self._ending
        with contextlib.suppress(websockets.WebSocketDisconnect, RuntimeError):
          await self._socket.close(code, reason)
        return
      self._filled.clear()
      await self._filled.wait()

  async def end(self, writing: asyncio.Task[None]) -> None:
    """Ends `write`, which may wait for a client that does not read.

    Args:
      writing: The task of `write`.
    """
    self.close(ENDED, "")
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_CLOSE_SECONDS):
        await writing

  async def read(self) -> str:
    """Returns the next text message; drops those over the rate limit.

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
      self._received += 1
      if not self.welcomed and self._received > MAX_BEFORE_HELLO:
        self.close(_ABUSE, "No valid hello.")
        continue
      if message.get("text") is None:
        self.error("Messages must be text; post pictures to /pictures.")
        continue
      return message["text"]

  def _refuse_fast(self) -> None:
    self._refused += 1
    if self._refused >= _MAX_REFUSED:
      self.close(_ABUSE, "Too many messages.")
    elif self._refused % _MESSAGES_PER_SECOND == 1:
      self.error(
        f"More than {_MESSAGES_PER_SECOND} messages per second; some were "
        "dropped."
      )
