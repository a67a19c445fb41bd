"""Players' own pictures: read with limits, kept for a while as frames."""

import asyncio
import collections
import concurrent.futures
import io
import secrets

import numpy as np
from starlette import requests

from genie_jax.core import errors, images

MAX_BYTES = 8 << 20
_MAX_KEPT = 256  # Frames; small, but anyone may send them.


class TooLarge(ValueError):
  """An upload of more bytes than are read."""


class Pictures:
  """Frames made of uploads, each under a name that cannot be guessed."""

  def __init__(self, height: int, width: int):
    """Makes an empty store for frames of this size."""
    self._size = height, width
    self._frames: collections.OrderedDict[str, np.ndarray] = (
        collections.OrderedDict())
    # One at a time, so that memory is bounded however many are sent.
    self._thread = concurrent.futures.ThreadPoolExecutor(
        1, thread_name_prefix="pictures")

  async def add(self, content: bytes) -> tuple[str, np.ndarray]:
    """Reads a picture.

    Args:
      content: The file.

    Returns:
      Its name and the frame, uint8 [H, W, 3].

    Raises:
      UserError: It is not a picture, or too large.
    """
    frame = await asyncio.get_running_loop().run_in_executor(
        self._thread, self._read, content)
    name = secrets.token_urlsafe(18)
    self._frames[name] = frame
    while len(self._frames) > _MAX_KEPT:
      self._frames.popitem(last=False)
    return name, frame

  def get(self, name: str) -> np.ndarray | None:
    """Returns a frame, None if it is not kept."""
    return self._frames.get(name)

  def close(self) -> None:
    """Ends the reading thread."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def _read(self, content: bytes) -> np.ndarray:
    if not content:
      raise errors.UserError("The picture is empty; choose another file.")
    return images.read_prompt(io.BytesIO(content), *self._size, "The picture")


async def receive(request: requests.Request) -> bytes:
  """Reads a body, and stops as soon as it is too large.

  Raises:
    TooLarge: It is, or says so.
  """
  stated = request.headers.get("content-length", "0")
  if stated.isdecimal() and int(stated) > MAX_BYTES:
    raise TooLarge
  content = bytearray()
  async for piece in request.stream():
    content += piece
    if len(content) > MAX_BYTES:
      raise TooLarge
  return bytes(content)
