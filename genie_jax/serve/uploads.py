"""Players' own pictures: read with limits, kept for a while as frames.

Every limit is one of each visitor, so that nobody's uploads are in the way of
somebody else's, and a wider one of all of them together.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import io
import secrets
from collections.abc import Iterator

import numpy as np
from starlette import requests

from genie_jax.core import errors, images
from genie_jax.serve import security

MAX_BYTES = 8 << 20
# Of one visitor, and of all.
_A_SECOND, _BURST = 2, 20
_A_SECOND_OF_ALL, _BURST_OF_ALL = 20, 100
_AT_ONCE, _AT_ONCE_OF_ALL = 4, 24  # Each may lie in memory whole.
_KEPT, _KEPT_OF_ALL = 16, 256  # Frames.


class TooLarge(ValueError):
  """An upload of more bytes than are read."""


class TooMany(ValueError):
  """More uploads than are taken from this visitor, or from all of them."""


class Turns:
  """Whose upload is read now, and whose has to wait."""

  def __init__(self, now: float):
    """Lets everybody in; `now` is the time in seconds."""
    self._all = security.Bucket(_A_SECOND_OF_ALL, _BURST_OF_ALL, now)
    self._buckets: dict[str, security.Bucket] = {}
    self._reading: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def take(self, visitor: str, now: float) -> Iterator[None]:
    """Holds a visitor's turn while an upload is read.

    Args:
      visitor: Who sends it.
      now: Time in seconds.

    Raises:
      TooMany: There were too many of late, or there are too many now.
    """
    # A full bucket is as good as a new one; what is kept stays small.
    self._buckets = {
      each: bucket
      for each, bucket in self._buckets.items()
      if not bucket.full(now)
    }
    if self._reading[visitor] >= _AT_ONCE or (
      self._reading.total() >= _AT_ONCE_OF_ALL
    ):
      raise TooMany
    bucket = self._buckets.setdefault(
      visitor, security.Bucket(_A_SECOND, _BURST, now)
    )
    # The visitor's own first: who is refused takes nothing from the others.
    if not bucket.take(now) or not self._all.take(now):
      raise TooMany
    self._reading[visitor] += 1
    try:
      yield
    finally:
      self._reading[visitor] -= 1
      self._reading += collections.Counter()  # Drops those at zero.


class Pictures:
  """Frames made of uploads, each under a name that cannot be guessed."""

  def __init__(self, height: int, width: int):
    """Makes an empty store for frames of this size."""
    self._size = height, width
    self._frames: dict[str, np.ndarray] = {}
    # Visitor -> names, the oldest first.
    self._names: dict[str, collections.deque[str]] = {}
    # One at a time, so that memory is bounded however many are sent.
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="pictures"
    )

  async def add(self, content: bytes, visitor: str) -> tuple[str, np.ndarray]:
    """Reads a picture.

    Args:
      content: The file.
      visitor: Who sent it.

    Returns:
      Its name and the frame, uint8 [H, W, 3].

    Raises:
      UserError: It is not a picture, or too large.
    """
    frame = await asyncio.get_running_loop().run_in_executor(
      self._thread, self._read, content
    )
    name = secrets.token_urlsafe(18)
    self._frames[name] = frame
    self._names.setdefault(visitor, collections.deque()).append(name)
    if len(self._names[visitor]) > _KEPT:
      self._forget_oldest(visitor)
    if len(self._frames) > _KEPT_OF_ALL:
      # Of whoever keeps most, so that nobody can push out everybody else's.
      self._forget_oldest(
        max(self._names, key=lambda each: len(self._names[each]))
      )
    return name, frame

  def get(self, name: str) -> np.ndarray | None:
    """Returns a frame, None if it is not kept."""
    return self._frames.get(name)

  def close(self) -> None:
    """Ends the reading thread."""
    self._thread.shutdown(wait=False, cancel_futures=True)

  def _forget_oldest(self, visitor: str) -> None:
    del self._frames[self._names[visitor].popleft()]
    if not self._names[visitor]:
      del self._names[visitor]

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
