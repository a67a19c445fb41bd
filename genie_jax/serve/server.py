"""Binds the port and runs the server until Ctrl-C."""

import contextlib
import errno
import socket
import webbrowser
from collections.abc import Callable, Sequence

import uvicorn
from starlette import types

from genie_jax.core import errors
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import gate, protocol, worlds

_EVERYWHERE = ("0.0.0.0", "::")
# A WebSocket is pinged this often, and must answer within the same time. As a
# ping waits behind all that was sent before, this ends clients that read
# nothing.
_PING_SECONDS = 20.0


def bind(host: str, port: int) -> socket.socket:
  """Returns a socket that listens on a port.

  Args:
    host: Name or address of this machine.
    port: Number of the port; 0 chooses a free one.

  Raises:
    UserError: The port is in use or not allowed, or the host is not this
      machine.
  """
  try:
    family, kind, protocol_, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    taken = socket.socket(family, kind, protocol_)
  except (socket.gaierror, UnicodeError) as error:
    raise errors.UserError(
      f"--host {host} is unknown ({error}); give 127.0.0.1, or 0.0.0.0 "
      "for all networks."
    ) from error
  # Makes the port of a server that has just ended available again.
  taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    taken.bind(address)
    # Listens at once, as two servers can bind a port on which none listens.
    taken.listen(128)
  except OSError as error:
    taken.close()
    reason = {
      errno.EADDRINUSE: "is in use; give another --port, or 0 for a free one",
      errno.EACCES: "is not allowed; give a --port above 1023",
      errno.EADDRNOTAVAIL: "is not an address of this machine; change --host",
    }.get(error.errno or 0)
    if reason is None:
      raise
    raise errors.UserError(f"{host}:{port} {reason}.") from error
  return taken


def address(taken: socket.socket, host: str) -> str:
  """Returns the URL to open."""
  name = "localhost" if host in _EVERYWHERE else host
  if ":" in name:
    name = f"[{name}]"
  return f"http://{name}:{taken.getsockname()[1]}/"


def configure(app: types.ASGIApp, max_sessions: int) -> uvicorn.Config:
  """Returns the configuration of the HTTP server."""
  return uvicorn.Config(
    app,
    http=gate.Http,
    ws=gate.WebSocket,
    loop="asyncio",
    ws_max_size=protocol.MAX_MESSAGE_BYTES,
    ws_per_message_deflate=False,
    ws_ping_interval=_PING_SECONDS,
    ws_ping_timeout=_PING_SECONDS,
    log_level="warning",
    access_log=False,
    server_header=False,
    timeout_graceful_shutdown=2,
    # Each player has a WebSocket and requests a few files. See `gate.Http`.
    limit_concurrency=64 + 8 * max_sessions,
  )


def run(
  engines: Sequence[engine_lib.Engine],
  taken: socket.socket,
  *,
  host: str,
  max_sessions: int,
  session_minutes: float,
  names: Sequence[str],
  open_browser: bool,
  say: Callable[[str], None],
) -> None:
  """Serves until Ctrl-C.

  Args:
    engines: A warm engine of each world; the page begins with the first.
    taken: A socket from `bind`.
    host: The host that was given to `bind`.
    max_sessions: Maximum number of players of each world.
    session_minutes: Players who send nothing for this long are disconnected.
    names: Host names to accept in addition to localhost and IP addresses.
    open_browser: Whether to open the page in a browser.
    say: Prints a line.

  Raises:
    RuntimeError: The model failed; its error was logged.
  """
  url = address(taken, host)
  failed = []

  def end() -> None:
    failed.append(True)
    server.should_exit = True

  app = worlds.serve(
    engines,
    max_sessions=max_sessions,
    session_minutes=session_minutes,
    names=[*names, socket.gethostname()],
    failed=end,
  )
  server = uvicorn.Server(configure(app, max_sessions * len(engines)))
  say(f"Play at {url} (Ctrl-C ends)")
  if open_browser:
    webbrowser.open(url)
  with contextlib.suppress(KeyboardInterrupt):
    server.run(sockets=[taken])
  if failed:
    raise RuntimeError("The model failed; see the error above.")
