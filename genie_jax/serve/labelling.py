"""The page on which clips are rated from 1 to 5 (Genie, appendix B.1)."""

import asyncio
import collections
import contextlib
import importlib.resources
import io
import json
import socket
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import uvicorn
from PIL import Image
from starlette import applications, middleware, requests, responses, routing

from genie_jax.core import errors
from genie_jax.data import clip_list, ratings
from genie_jax.data import manifest as manifest_lib
from genie_jax.serve import security
from genie_jax.serve import server as server_lib

_PAGE = {
  "": ("label_page/label.html", "text/html; charset=utf-8"),
  "label.js": ("label_page/label.js", "text/javascript; charset=utf-8"),
  "label.css": ("label_page/label.css", "text/css; charset=utf-8"),
  "play.css": ("page/play.css", "text/css; charset=utf-8"),
  "icon.svg": ("page/icon.svg", "image/svg+xml"),
}
_MOST_BODY = 4096  # Bytes of a message from the page.
_BODY_SECONDS = 10.0  # For all of them.
_KEPT_SHEETS = 8  # Pictures of clips in memory, a few MB each.
_COLUMNS = 16
# Fast. Enlarged pixels of a game show the blocks of a JPEG.
_PNG_LEVEL = 1
# A page opens a few connections.
_PAGES = 4


def draw(
  clips: Sequence[clip_list.Clip], count: int, seed: int
) -> list[clip_list.Clip]:
  """Draws clips, stratified by source.

  Sources take turns in a random order, and each gives its clips in a random
  order, so that a long video has no more clips than a short one until the
  short one has none left.

  Args:
    clips: The clips of a folder.
    count: Number of clips; all of them if there are fewer.
    seed: Equal seeds draw equal clips of an equal folder.

  Returns:
    Distinct clips in the order in which to rate them.
  """
  rng = np.random.default_rng(seed)
  of = collections.defaultdict(list)
  for clip in clips:
    of[clip.split, clip.source].append(clip)
  queues = [
    collections.deque(of[key][place] for place in rng.permutation(len(of[key])))
    for key in sorted(of)
  ]
  chosen: list[clip_list.Clip] = []
  while len(chosen) < count and queues:
    for place in rng.permutation(len(queues)):
      chosen.append(queues[place].popleft())
    queues = [queue for queue in queues if queue]
  return chosen[:count]


class Labelling:
  """The clips to rate, the table, and the app that serves them.

  Attributes:
    app: The web app.
  """

  def __init__(
    self,
    manifest: manifest_lib.Manifest,
    sample: Sequence[clip_list.Clip],
    table: ratings.Table,
    *,
    name: str,
    labeller: str,
    names: Sequence[str] = (),
  ):
    """Creates the app.

    Args:
      manifest: Of the clips, read from the folder.
      sample: The clips to rate, in order.
      table: An open table.
      name: Name of the folder, for the page.
      labeller: Name of the labeller, for the page.
      names: Host names to accept in addition to localhost and IP addresses.
    """
    self._manifest, self._sample, self._table = manifest, list(sample), table
    self._name, self._labeller = name, labeller
    self._numbers = {clip.id: n for n, clip in enumerate(self._sample)}
    self._reader = clip_list.Reader(manifest)
    self._sheets: collections.OrderedDict[int, bytes] = (
      collections.OrderedDict()
    )
    self._drawing = asyncio.Lock()
    self.app = applications.Starlette(
      routes=[
        routing.Route("/state", self._get_state),
        routing.Route("/rate", self._rate, methods=["POST"]),
        routing.Route("/clips/{number:int}.png", self._sheet),
        routing.Route("/{name:path}", self._page),
      ],
      middleware=[middleware.Middleware(security.Guard, names=names)],
    )

  def state(self) -> dict[str, Any]:
    """Returns what the page shows: progress and the clip to rate."""
    table = self._table.ratings
    rated, skipped = table.rated, table.skipped
    left = [
      number
      for number, clip in enumerate(self._sample)
      if clip.id not in rated and clip.id not in skipped
    ]
    return {
      "name": self._name,
      "labeller": self._labeller,
      "table": str(self._table.path),
      "total": len(self._sample),
      "rated": sum(clip.id in rated for clip in self._sample),
      "skipped": sum(clip.id in skipped for clip in self._sample),
      "last": self._last(),
      "clip": self._describe(left[0]) if left else None,
      "next": left[1] if len(left) > 1 else None,
    }

  def _last(self) -> dict[str, str] | None:
    """Returns the newest row that the page can undo."""
    table = self._table.ratings
    for clip in reversed(table.order):
      if clip in self._numbers:
        return {"id": clip, "rating": table.marks[clip][-1]}
    return None

  def _describe(self, number: int) -> dict[str, Any]:
    clip = self._sample[number]
    height, width, _ = self._manifest.frame_shape
    return {
      "number": number,
      "id": clip.id,
      "split": clip.split,
      "source": clip.source,
      "frames": clip.length,
      "columns": _COLUMNS,
      "height": height,
      "width": width,
      "fps": self._manifest.fps,
    }

  async def _get_state(self, request: requests.Request) -> responses.Response:
    del request
    return responses.JSONResponse(self.state())

  async def _rate(self, request: requests.Request) -> responses.Response:
    """Stores a rating, and answers with the new state."""
    refuse = lambda reason, status: responses.JSONResponse(
      {"error": reason, "state": self.state()}, status
    )
    try:
      async with asyncio.timeout(_BODY_SECONDS):
        clip, rating = await _message(request)
    except ValueError as error:
      return refuse(f"The message was refused: {error}.", 400)
    except TimeoutError:
      late = refuse(
        f"The message did not arrive within {_BODY_SECONDS:.0f} seconds; "
        "press the key again.",
        408,
      )
      late.headers["connection"] = "close"
      return late
    except requests.ClientDisconnect:
      return responses.Response(status_code=400)
    if clip not in self._numbers:
      return refuse("There is no such clip.", 404)
    last, now = self._last(), self.state()["clip"]
    if rating == ratings.UNDO:
      if last is None or last["id"] != clip:
        return refuse("Only the newest rating can be undone.", 409)
    elif now is None or now["id"] != clip:
      # A message that was sent twice, or a second window.
      return refuse("Another clip is next; this one was not rated again.", 409)
    try:
      self._table.add(clip, rating)
    except ValueError as error:
      return refuse(f"The message was refused: {error}.", 400)
    except OSError as error:
      return refuse(
        f"The rating was not stored ({error.strerror}); free some space and "
        "press the key again.",
        507,
      )
    return responses.JSONResponse(self.state())

  async def _sheet(self, request: requests.Request) -> responses.Response:
    number = request.path_params["number"]
    if number >= len(self._sample):
      return responses.JSONResponse({"error": "There is no such clip."}, 404)
    async with self._drawing:
      sheet = self._sheets.pop(number, None)
      if sheet is None:
        try:
          sheet = await asyncio.to_thread(self._draw, number)
        except errors.UserError as error:
          return responses.JSONResponse({"error": str(error)}, 500)
      self._sheets[number] = sheet
      while len(self._sheets) > _KEPT_SHEETS:
        self._sheets.popitem(last=False)
    return responses.Response(sheet, media_type="image/png")

  def _draw(self, number: int) -> bytes:
    """Returns a clip's frames as one PNG, in rows of _COLUMNS."""
    frames = self._reader.frames(self._sample[number])
    count, height, width, channels = frames.shape
    rows = -(-count // _COLUMNS)
    sheet = np.zeros((rows * _COLUMNS, height, width, channels), np.uint8)
    sheet[:count] = frames
    sheet = sheet.reshape(rows, _COLUMNS, height, width, channels)
    sheet = sheet.swapaxes(1, 2).reshape(rows * height, _COLUMNS * width, -1)
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()

  async def _page(self, request: requests.Request) -> responses.Response:
    found = _PAGE.get(request.path_params["name"])
    if found is None:
      return responses.JSONResponse({"error": "There is no such page."}, 404)
    name, kind = found
    content = importlib.resources.files("genie_jax.serve").joinpath(name)
    return responses.Response(
      content.read_bytes(), headers={"content-type": kind}
    )


async def _message(request: requests.Request) -> tuple[str, str]:
  """Returns clip and rating of a message.

  Raises:
    ValueError: The message is not {"clip": text, "rating": text}.
  """
  content = bytearray()
  async for piece in request.stream():
    content += piece
    if len(content) > _MOST_BODY:
      raise ValueError("it is too long")
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise ValueError("it is not JSON") from error
  if not (
    isinstance(found, dict)
    and sorted(found) == ["clip", "rating"]
    and all(isinstance(value, str) for value in found.values())
  ):
    raise ValueError("it needs the fields clip and rating, as text")
  return found["clip"], found["rating"]


def run(
  labelling: Labelling,
  taken: socket.socket,
  *,
  host: str,
  open_browser: bool,
  say: Callable[[str], None],
) -> None:
  """Serves until Ctrl-C.

  Args:
    labelling: What to serve.
    taken: A socket from `server.bind`.
    host: The host that was given to `server.bind`.
    open_browser: Whether to open the page in a browser.
    say: Prints a line.
  """
  url = server_lib.address(taken, host)
  config = server_lib.configure(labelling.app, _PAGES)
  # The app has nothing to start or end, and Ctrl-C would be reported as an
  # error of the part that waits for its end.
  config.lifespan = "off"
  server = uvicorn.Server(config)
  say(f"Rate clips at {url} (Ctrl-C ends)")
  if open_browser:
    webbrowser.open(url)
  with contextlib.suppress(KeyboardInterrupt):
    server.run(sockets=[taken])
