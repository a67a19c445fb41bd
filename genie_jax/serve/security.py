"""Checks of the Host and Origin headers, and a rate limiter.

Pages of other sites must not reach a server on this machine. Therefore the Host
header must be a known name (this excludes names that an attacker's DNS resolves
to this machine), and the Origin header must be that of the server's own page.
"""

import ipaddress
import urllib.parse
from collections.abc import Iterable, Mapping

from starlette import responses, types

# The page loads files from this server only, and no page may embed it.
_POLICY = (
  "default-src 'none'; script-src 'self'; style-src 'self'; "
  "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
  "content-security-policy": _POLICY,
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-cache",
}


class Guard:
  """ASGI middleware that checks Host and Origin and adds security headers."""

  def __init__(self, app: types.ASGIApp, names: Iterable[str]):
    """Wraps an app.

    Args:
      app: The app.
      names: Host names to accept in addition to localhost and IP addresses.
    """
    self._app = app
    self._names = {"localhost", *(name.lower() for name in names)}

  async def __call__(
    self, scope: types.Scope, receive: types.Receive, send: types.Send
  ) -> None:
    """Passes a request on to the app, or refuses it with status 403."""
    if scope["type"] == "lifespan":
      await self._app(scope, receive, send)
      return
    headers = {
      name.decode("latin-1"): value.decode("latin-1")
      for name, value in scope["headers"]
    }
    reason = self.refusal(headers)
    if reason is None:
      await self._app(scope, receive, _with_headers(send))
    elif scope["type"] == "websocket":
      await receive()
      await send({"type": "websocket.close", "code": 1008, "reason": reason})
    else:
      await responses.JSONResponse({"error": reason}, 403)(
        scope, receive, _with_headers(send)
      )

  def refusal(self, headers: Mapping[str, str]) -> str | None:
    """Returns the reason for refusing a request, None if it is accepted.

    Args:
      headers: Values by lower-case name.
    """
    host = headers.get("host", "")
    name = _name(host)
    if name is None or not (name in self._names or _is_address(name)):
      return (
        "Unknown Host; open the address that the command printed, or "
        "name the host with --allow-host."
      )
    origin = headers.get("origin")
    # Programs send no Origin; browsers send one with every harmful request.
    if origin is not None and origin.lower() not in (
      f"http://{host.lower()}",
      f"https://{host.lower()}",
    ):
      return "Foreign Origin; only the server's own page may send this request."
    if (
      headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
      and headers.get("sec-fetch-mode") != "navigate"
    ):
      return "Foreign site; only the server's own page may send this request."
    return None


def _name(host: str) -> str | None:
  """Returns the name in a Host header, None if the header is malformed."""
  try:
    parts = urllib.parse.urlsplit(f"//{host}")
    name, _ = parts.hostname, parts.port
  except ValueError:
    return None
  if parts.path or parts.query or parts.fragment or "@" in host:
    return None
  return name


def network(address: str) -> str:
  """Returns the network that identifies a visitor.

  Args:
    address: IPv4 or IPv6; other text is returned unchanged.

  Returns:
    The address; for IPv6 its first 64 bits, as one visitor may use all
    addresses that begin with them.
  """
  try:
    found = ipaddress.ip_address(address)
  except ValueError:
    return address
  if found.version == 6 and found.ipv4_mapped is None:
    return str(ipaddress.ip_network((int(found), 64), strict=False))
  return address


def is_loopback(address: str) -> bool:
  """Returns whether an address, or a visitor of `network`, is this machine."""
  try:
    found = ipaddress.ip_address(address)
  except ValueError:
    # IPv6 visitors are networks, and that of ::1 has no other machine in it.
    return address in ("", "::/64")
  if found.version == 6 and found.ipv4_mapped is not None:
    found = found.ipv4_mapped
  return found.is_loopback


def _is_address(name: str) -> bool:
  """Returns whether a host is an IP address, which DNS cannot forge."""
  try:
    ipaddress.ip_address(name)
  except ValueError:
    return False
  return True


def _with_headers(send: types.Send) -> types.Send:
  async def send_with_headers(message: types.Message) -> None:
    if message["type"] == "http.response.start":
      own = {name.lower() for name, _ in message["headers"]}
      message["headers"] = [
        *message["headers"],
        *(
          (name.encode(), value.encode())
          for name, value in _HEADERS.items()
          if name.encode() not in own
        ),
      ]
    await send(message)

  return send_with_headers


class TokenBucket:
  """A rate limiter: each event takes a token, and tokens come back in time."""

  def __init__(self, rate: float, burst: float, now: float):
    """Creates a full bucket.

    Args:
      rate: Tokens added per second.
      burst: Maximum number of tokens.
      now: Time in seconds.
    """
    self._rate, self._burst = rate, burst
    self._tokens, self._time = burst, now

  def take(self, now: float) -> bool:
    """Takes a token; returns whether there was one."""
    self._tokens, self._time = self._held(now), now
    if self._tokens < 1:
      return False
    self._tokens -= 1
    return True

  def full(self, now: float) -> bool:
    """Returns whether the bucket is full."""
    return self._held(now) >= self._burst

  def _held(self, now: float) -> float:
    return min(self._burst, self._tokens + (now - self._time) * self._rate)
