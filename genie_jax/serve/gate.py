"""Limits of TCP connections: how many, from whom, and how long they may wait.

The two protocols of uvicorn, with what they lack against strangers. A
connection without a request gives way to a new one as soon as a limit is
reached, so that silent connections exclude nobody. Every connection ends at a
time that no client can put off: uvicorn alone waits forever for a first
request, and for a client that takes no more bytes.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.websockets import websockets_sansio_impl
from websockets import frames

from genie_jax.serve import security

# Open connections. The first two do not apply to this machine, which includes
# proxies and ssh tunnels on it.
MOST_OF_ADDRESS = 64
RESERVED = 16  # Of the total, for this machine alone.
REQUEST_SECONDS = 10.0  # From connecting until the first request is complete.
EXCHANGE_SECONDS = 120.0  # From a request until the next one is complete.
CLOSE_SECONDS = 10.0  # For the last bytes, after a WebSocket was closed.
# Pings, pongs and parts of messages of one WebSocket; browsers send a pong
# every 20 seconds.
CONTROL_PER_SECOND = 20
CONTROL_BURST = 200

_REFUSAL = (
  b"HTTP/1.1 503 Service Unavailable\r\n"
  b"content-type: text/plain; charset=utf-8\r\n"
  b"connection: close\r\n\r\n"
  b"Too many connections; try again in a minute.\n"
)


class Http(h11_impl.H11Protocol):
  """A connection that waits for, or answers, HTTP requests.

  `limit_concurrency` of uvicorn's configuration is the most open connections.

  Attributes:
    address: The client's network, see `security.network`.
    since: When the connection began, or its last answer was complete, by the
      event loop's clock.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    # uvicorn would answer every request with 503 while the limit is reached.
    self._most, self.limit_concurrency = self.limit_concurrency, None
    self._deadline: asyncio.TimerHandle | None = None
    self.address = ""
    self.since = 0.0

  @property
  def silent(self) -> bool:
    """Whether no request is being received or answered."""
    return self.cycle is None or self.cycle.response_complete

  def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
    super().connection_made(transport)
    self.address, self.since = _address(self), self.loop.time()
    if self._admit():
      self._end_in(REQUEST_SECONDS)
    else:
      self.connections.discard(self)
      transport.write(_REFUSAL)
      transport.close()

  def _admit(self) -> bool:
    """Returns whether there is a place, or one could be made."""
    others = [each for each in self.connections if each is not self]
    if not security.is_loopback(self.address):
      same = [each for each in others if _address(each) == self.address]
      if len(same) >= MOST_OF_ADDRESS:
        return self._displace(same)
      if self._most is not None:
        strangers = [
          each for each in others if not security.is_loopback(_address(each))
        ]
        if len(strangers) >= max(1, self._most - RESERVED):
          return self._displace(strangers)
    if self._most is not None and len(others) >= self._most:
      return self._displace(others)
    return True

  def _displace(self, connections: Iterable[asyncio.Protocol]) -> bool:
    """Ends the connection that was silent longest; False if none is silent."""
    silent = [
      each for each in connections if isinstance(each, Http) and each.silent
    ]
    if not silent:
      return False
    # Strangers before this machine.
    oldest = min(
      silent,
      key=lambda each: (security.is_loopback(each.address), each.since),
    )
    self.connections.discard(oldest)
    oldest.transport.abort()
    return True

  def _end_in(self, seconds: float) -> None:
    if self._deadline is not None:
      self._deadline.cancel()
    self._deadline = self.loop.call_later(seconds, self.transport.abort)

  def handle_events(self) -> None:
    before = self.cycle
    super().handle_events()
    if self.cycle is not before:  # There was a request.
      self._end_in(EXCHANGE_SECONDS)

  def on_response_complete(self) -> None:
    self.since = self.loop.time()
    super().on_response_complete()

  def handle_websocket_upgrade(self, event: Any) -> None:
    if self._deadline is not None:
      self._deadline.cancel()
    super().handle_websocket_upgrade(event)

  def connection_lost(self, exc: Exception | None) -> None:
    if self._deadline is not None:
      self._deadline.cancel()
    super().connection_lost(exc)


class WebSocket(websockets_sansio_impl.WebSocketsSansIOProtocol):
  """A WebSocket whose control frames are limited, and which surely ends."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._control = security.TokenBucket(
      CONTROL_PER_SECOND, CONTROL_BURST, self.loop.time()
    )

  def handle_ping(self) -> None:
    if self._take() and self.writable.is_set():
      super().handle_ping()
    else:
      self.conn.data_to_send()  # The client does not read its pongs.

  def handle_pong(self, event: frames.Frame) -> None:
    if self._take():
      super().handle_pong(event)

  def handle_cont(self, event: frames.Frame) -> None:
    if self._take():
      super().handle_cont(event)

  def _take(self) -> bool:
    """Counts a control frame; ends the connection if there are too many."""
    if self.transport.is_closing():
      return False
    if self._control.take(self.loop.time()):
      return True
    self.conn.fail(1008, "Too many pings or parts of messages.")
    self.transport.write(b"".join(self.conn.data_to_send()))
    self.close_sent = True
    self._end()
    return False

  def keepalive_timeout(self) -> None:
    super().keepalive_timeout()
    self._end()

  async def run_asgi(self) -> None:
    try:
      await super().run_asgi()
    finally:
      self.loop.call_later(CLOSE_SECONDS, self.transport.abort)

  def _end(self) -> None:
    # `close` waits until the client has taken all bytes.
    self.transport.close()
    self.loop.call_later(CLOSE_SECONDS, self.transport.abort)


def _address(protocol: Any) -> str:
  """Returns the network of a protocol's client; "" for a Unix socket."""
  return security.network(protocol.client[0]) if protocol.client else ""
