"""The web app: the page, the gallery, uploads and the WebSocket."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.resources
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from absl import logging
from starlette import (
  applications,
  middleware,
  requests,
  responses,
  routing,
  websockets,
)

from genie_jax.core import errors, images
from genie_jax.serve import branch, hub, protocol, scheduler, security, uploads
from genie_jax.serve import connection as connection_lib
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import session as session_lib

_PAGE = {
  "": ("index.html", "text/html; charset=utf-8"),
  "play.css": ("play.css", "text/css; charset=utf-8"),
  "icon.svg": ("icon.svg", "image/svg+xml"),
  **{
    name: (name, "text/javascript; charset=utf-8")
    for name in (
      "play.js",
      "link.js",
      "view.js",
      "pad.js",
      "names.js",
      "keys.js",
      "banner.js",
      "tools.js",
      "editor.js",
      "run.js",
    )
  },
}
_HELLO_SECONDS = 10.0
_MAX_WAITING = 32  # Connections that have sent no hello yet.
_EXPIRE_SECONDS = 5.0
_SNAPSHOT_BYTES = 32 << 20  # Of the states kept for one line.
_UPLOAD_SECONDS = 75.0  # Enough for 8 MB at one megabit per second.


class Server:
  """A world, its players, and the app that serves them."""

  def __init__(
    self,
    engine: engine_lib.Engine,
    *,
    max_sessions: int = 16,
    session_minutes: float = 30.0,
    names: Sequence[str] = (),
    failed: Callable[[], None] = lambda: None,
    limits: branch.Limits | None = None,
    worlds: Sequence[tuple[str, str]] = (),
  ):
    """Creates the app, as the attribute `app`.

    Args:
      engine: A warm engine.
      max_sessions: Maximum number of players.
      session_minutes: Players who send nothing for this long are disconnected.
      names: Host names to accept in addition to localhost and IP addresses.
      failed: Called if the model fails, after which nobody can play.
      limits: How much of each line is kept; by default `branch.Limits()`.
      worlds: Name and path of each world of this server, of which the page
        offers a choice; by default this one alone.
    """
    self._engine = engine
    self._worlds = list(worlds) or [(engine.description.name, "/")]
    self._failed = failed
    limits = limits or branch.Limits()
    if engine.state_bytes:
      limits = dataclasses.replace(
        limits,
        snapshots=max(
          4, min(limits.snapshots, _SNAPSHOT_BYTES // engine.state_bytes)
        ),
      )
    self.hub = hub.Hub(
      engine.description.num_actions,
      limits,
      most=max_sessions,
      idle_seconds=60 * session_minutes,
    )
    self._pictures = uploads.Pictures(
      engine.description.height, engine.description.width
    )
    self._films = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="films"
    )
    self._limiter = uploads.Limiter(time.monotonic())
    self._gallery = [images.to_png(prompt) for prompt in engine.prompts]
    self._kept = limits.pictures
    # Connections that have sent no hello yet, the oldest first.
    self._waiting: dict[connection_lib.Connection, None] = {}
    self._batches_wanted = False
    self._tasks: set[asyncio.Task] = set()
    self.app = applications.Starlette(
      routes=[
        routing.Route("/prompts/{number:int}.png", self._prompt),
        routing.Route("/pictures", self._upload, methods=["POST"]),
        routing.WebSocketRoute("/play", self._play),
        routing.Route("/{name:path}", self._page),
      ],
      middleware=[middleware.Middleware(security.Guard, names=names)],
      lifespan=self.lifespan,
    )

  @contextlib.asynccontextmanager
  async def lifespan(self, app: Any) -> AsyncIterator[None]:
    """Steps the players; for an app that contains this one."""
    del app
    self._scheduler = scheduler.Scheduler(self._engine, lambda: self.hub)
    stepping = asyncio.create_task(self._scheduler.run())
    # The task ends by itself only if the model fails.
    stepping.add_done_callback(
      lambda task: None if task.cancelled() else self._failed()
    )
    tasks = [stepping, asyncio.create_task(self._expire())]
    try:
      yield
    finally:
      for task in tasks:
        task.cancel()
      self._engine.end()
      self._pictures.close()
      self._films.shutdown(wait=False, cancel_futures=True)
      for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
          await task

  async def _expire(self) -> None:
    while True:
      await asyncio.sleep(_EXPIRE_SECONDS)
      self.hub.expire(time.monotonic())

  async def _page(self, request: requests.Request) -> responses.Response:
    found = _PAGE.get(request.path_params["name"])
    if found is None:
      return responses.JSONResponse({"error": "There is no such page."}, 404)
    name, kind = found
    content = importlib.resources.files("genie_jax.serve").joinpath(
      "page", name
    )
    return responses.Response(
      content.read_bytes(), headers={"content-type": kind}
    )

  async def _prompt(self, request: requests.Request) -> responses.Response:
    number = request.path_params["number"]
    if number >= len(self._gallery):
      return responses.JSONResponse({"error": "There is no such prompt."}, 404)
    return responses.Response(self._gallery[number], media_type="image/png")

  async def _upload(self, request: requests.Request) -> responses.Response:
    refuse = lambda reason, status: responses.JSONResponse(
      {"error": reason}, status, {"connection": "close"}
    )
    visitor = self._visitor(request)
    try:
      with self._limiter.take(visitor, time.monotonic()):
        async with asyncio.timeout(_UPLOAD_SECONDS):
          content = await uploads.receive(request)
        name, frame = await self._pictures.add(content, visitor)
    except uploads.TooMany:
      return refuse("Too many pictures at once; wait a second.", 429)
    except TimeoutError:
      return refuse(
        f"The picture did not arrive within {_UPLOAD_SECONDS:.0f} seconds; "
        "make it smaller.",
        408,
      )
    except uploads.TooLarge:
      return refuse(
        f"The picture is larger than {uploads.MAX_BYTES >> 20} MB; make it "
        "smaller.",
        413,
      )
    except errors.UserError as error:
      return refuse(str(error), 415)
    except requests.ClientDisconnect:
      return responses.Response(status_code=400)
    return responses.Response(
      images.to_png(frame), media_type="image/png", headers={"x-picture": name}
    )

  def _visitor(self, request: requests.Request) -> str:
    """Returns the sender of an upload: a session's token, or a network."""
    session = self.hub.find(request.headers.get("x-session", ""))
    if session is not None:
      return session.token
    return security.network(request.client.host if request.client else "")

  async def _play(self, socket: websockets.WebSocket) -> None:
    await socket.accept()
    session: session_lib.Session | None = None

    def drained() -> None:
      if session is not None and session.connection is connection:
        session.send_frames()
      self._scheduler.wake()

    connection = connection_lib.Connection(socket, drained)
    writing = asyncio.create_task(connection.write())
    try:
      self._wait_for_hello(connection)
      session = await self._enter(connection)
      while session.connection is connection:
        self._handle(session, connection, await connection.read())
        self._scheduler.wake()
    except (
      connection_lib.Closed,
      TimeoutError,
      websockets.WebSocketDisconnect,
    ):
      pass
    finally:
      self._waiting.pop(connection, None)
      if session is not None and session.connection is connection:
        session.connection, session.left = None, time.monotonic()
      await connection.end(writing)

  def _wait_for_hello(self, connection: connection_lib.Connection) -> None:
    """Counts a new connection; the oldest gives way if there are too many."""
    self._waiting[connection] = None
    if len(self._waiting) > _MAX_WAITING:
      # The first of the oldest; strangers before this machine.
      oldest = min(self._waiting, key=lambda each: each.local)
      del self._waiting[oldest]
      oldest.close(connection_lib.FULL, "Too many connections.")

  async def _enter(
    self, connection: connection_lib.Connection
  ) -> session_lib.Session:
    """Waits for a hello message and returns its session.

    Raises:
      Closed: The connection ended first.
      TimeoutError: No hello message arrived in time.
    """
    async with asyncio.timeout(_HELLO_SECONDS):
      while True:
        text = await connection.read()
        try:
          message = protocol.parse(text)
          if message["type"] != "hello":
            raise protocol.Malformed("The first message must be a hello.")
          if message["version"] != protocol.VERSION:
            raise protocol.Malformed(
              f"This server speaks version {protocol.VERSION}, not "
              f"{message['version']}; load the page again."
            )
          session, known = self.hub.enter(
            message["token"], time.monotonic(), connection.local
          )
          break
        except protocol.Malformed as error:
          connection.error(str(error))
        except hub.Full as error:
          connection.error(str(error))
          connection.close(connection_lib.FULL, str(error)[:100])
    connection.welcomed = True
    self._waiting.pop(connection, None)
    if session.connection is not None:
      session.connection.close(
        connection_lib.TAKEN_OVER, "The game continues in another window."
      )
    session.connection, session.seen = connection, time.monotonic()
    connection.send(
      {
        "type": "welcome",
        "version": protocol.VERSION,
        "token": session.token,
        "resumed": known,
        "playing": session.line is not None,
        "world": dataclasses.asdict(self._engine.description),
        "worlds": [{"name": name, "path": path} for name, path in self._worlds],
        "prompts": len(self._gallery),
        "limits": {
          "upload_bytes": uploads.MAX_BYTES,
          "frames": protocol.MAX_ACTIONS,
          "kept": self._kept,
          "recorded": protocol.MAX_RECORDED,
        },
      }
    )
    session.resume(message["run"], message["have"])
    if len(self.hub) > 1:
      self._want_batches()
    return session

  def _handle(
    self,
    session: session_lib.Session,
    connection: connection_lib.Connection,
    text: str,
  ) -> None:
    """Handles a message; answers with an error if it is rejected."""
    try:
      message = protocol.parse(text)
    except protocol.Malformed as error:
      connection.error(str(error))
      return
    kind = message["type"]
    if kind == "ping":
      connection.send({"type": "pong", "time": message["time"]})
      return
    session.seen = time.monotonic()
    try:
      if kind == "start":
        self._start(session, message)
      elif kind == "act":
        session.act(message["action"], message["seq"])
      elif kind == "rewind":
        session.rewind(message["frame"])
      elif kind == "branch":
        session.branch(message["frame"])
      elif kind == "switch":
        session.switch(message["line"], message["have"])
      elif kind == "compare":
        self._want_batches()
        session.compare(message["frame"], message["frames"])
      elif kind == "record":
        self._record(session, message)
      elif kind == "stop":
        self.hub.remove(session)
        connection.close(connection_lib.ENDED, "The game was ended.")
      else:
        connection.error("This connection has already sent a hello.")
    except branch.Rejected as error:
      about = {"of": kind}
      if kind == "act":
        about["seq"] = message["seq"]
      connection.error(str(error), **about)

  def _start(
    self, session: session_lib.Session, message: dict[str, Any]
  ) -> None:
    number = message["prompt"]
    if number is None:
      frame = self._pictures.get(message["picture"])
      if frame is None:
        raise branch.Rejected("There is no such picture; upload it again.")
    elif number >= len(self._engine.prompts):
      raise branch.Rejected(
        f"There is no prompt {number}: the gallery has "
        f"{len(self._engine.prompts)} prompts."
      )
    else:
      frame = self._engine.prompts[number]
    session.start(frame, message["seed"], number, list(message["actions"]))

  def _record(
    self, session: session_lib.Session, message: dict[str, Any]
  ) -> None:
    if session.filming:
      raise branch.Rejected("A video is already being made; wait for it.")
    make = session.film(message, self._engine.description.fps)

    async def film() -> None:
      try:
        content = await asyncio.get_running_loop().run_in_executor(
          self._films, make
        )
      except Exception:  # From an encoder; the player must be told as well.
        logging.exception("A video could not be made.")
        session.send(
          {
            "type": "error",
            "of": "record",
            "error": "The video could not be made; try the other format, or "
            "fewer frames.",
          }
        )
        return
      finally:
        session.filming = False
      if len(content) > protocol.MAX_FILM_BYTES:
        session.send(
          {
            "type": "error",
            "of": "record",
            "error": f"The video has more than "
            f"{protocol.MAX_FILM_BYTES >> 20} MB; choose fewer frames, a "
            "smaller size, or MP4.",
          }
        )
        return
      session.send(
        protocol.pack(
          protocol.FILM,
          content,
          action=int(message["format"] == "mp4"),
          run=session.run,
        )
      )

    session.filming = True
    task = asyncio.create_task(film())
    self._tasks.add(task)  # The event loop keeps only a weak reference.
    task.add_done_callback(self._tasks.discard)

  def _want_batches(self) -> None:
    """Starts to compile batches of several players, at the first call."""
    if not self._batches_wanted:
      self._batches_wanted = True
      self._engine.warm_batches()
