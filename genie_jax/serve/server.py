"""Runs the server on this machine until Ctrl-C."""

import contextlib
import errno
import socket
import webbrowser
from collections.abc import Callable, Sequence

import uvicorn
from starlette import types

from genie_jax.core import errors
from genie_jax.serve import app as app_lib
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import protocol

_EVERYWHERE = ("0.0.0.0", "::")


def bind(host: str, port: int) -> socket.socket:
  """Takes a port.

  Args:
    host: Name or address of this machine.
    port: 0 takes any that is free.

  Raises:
    UserError: The port is taken or not allowed, or the host is not this
      machine.
  """
  try:
    family, kind, protocol_, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    taken = socket.socket(family, kind, protocol_)
  except (socket.gaierror, UnicodeError) as error:
    raise errors.UserError(
      f"--host {host} is not known ({error}); give 127.0.0.1, or 0.0.0.0 "
      "for all networks."
    ) from error
  # A port that a server of a minute ago left behind can be taken at once.
  taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    taken.bind(address)
    # Two servers could share a port that neither listens on yet.
    taken.listen(128)
  except OSError as error:
    taken.close()
    reason = {
      errno.EADDRINUSE: "is taken; give another with --port, or 0 for any",
      errno.EACCES: "is not allowed; give one above 1023 with --port",
      errno.EADDRNOTAVAIL: "is not of this machine; change --host",
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
  """Returns how the server listens."""
  return uvicorn.Config(
    app,
    http="h11",
    ws="websockets-sansio",
    loop="asyncio",
    ws_max_size=protocol.MAX_MESSAGE_BYTES,
    ws_per_message_deflate=False,
    log_level="warning",
    access_log=False,
    server_header=False,
    timeout_graceful_shutdown=2,
    # Each player has a WebSocket and asks for a few files.
    limit_concurrency=64 + 8 * max_sessions,
  )


def run(
  engine: engine_lib.Engine,
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
    engine: A warm engine.
    taken: A port from `bind`.
    host: As given to `bind`.
    max_sessions: Players at once.
    session_minutes: A player who sends nothing for so long is sent away.
    names: Host names to answer to besides localhost and IP addresses.
    open_browser: Whether to open the page.
    say: Prints a line.

  Raises:
    RuntimeError: The model failed; its error was logged.
  """
  url = address(taken, host)
  failed = []

  def end() -> None:
    failed.append(True)
    server.should_exit = True

  app = app_lib.Server(
    engine,
    max_sessions=max_sessions,
    session_minutes=session_minutes,
    names=[*names, socket.gethostname()],
    failed=end,
  )
  server = uvicorn.Server(configure(app.app, max_sessions))
  say(f"Play at {url} (Ctrl-C ends)")
  if open_browser:
    webbrowser.open(url)
  with contextlib.suppress(KeyboardInterrupt):
    server.run(sockets=[taken])
  if failed:
    raise RuntimeError("The model failed; see the error above.")
