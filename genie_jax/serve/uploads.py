"""Receives, decodes and stores the pictures that players upload.

Each limit applies to one visitor, so that no visitor can block the others. A
higher limit applies to all visitors together.
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
# Limits of one visitor, and of all together.
_RATE, _RATE_OF_ALL = 2, 20  # Uploads per second.
_BURST, _BURST_OF_ALL = 20, 100  # Uploads in a row.
_AT_ONCE, _AT_ONCE_OF_ALL = 4, 24  # Each may be completely in memory.
_KEPT, _KEPT_OF_ALL = 16, 256  # Frames.


class TooLarge(ValueError):
  """An upload has more than MAX_BYTES."""


class TooMany(ValueError):
  """This visitor, or all visitors together, exceed a limit."""


class Limiter:
  """Limits the rate of uploads and the number received at the same time."""

  def __init__(self, now: float):
    """Creates a limiter with full buckets; `now` is the time in seconds."""
    self._all = security.TokenBucket(_RATE_OF_ALL, _BURST_OF_ALL, now)
    self._buckets: dict[str, security.TokenBucket] = {}
    self._reading: collections.Counter[str] = collections.Counter()

  @contextlib.contextmanager
  def take(self, visitor: str, now: float) -> Iterator[None]:
    """Counts an upload of a visitor, as long as the context is open.

    Args:
      visitor: Identifies the sender.
      now: Time in seconds.

    Raises:
      TooMany: A limit is exceeded.
    """
    # A full bucket equals a new one, so it need not be kept.
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
      visitor, security.TokenBucket(_RATE, _BURST, now)
    )
    # The visitor's bucket first, so that an upload that it refuses takes no
    # token from the others.
    if not bucket.take(now) or not self._all.take(now):
      raise TooMany
    self._reading[visitor] += 1
    try:
      yield
    finally:
      self._reading[visitor] -= 1
      self._reading += collections.Counter()  # Removes counts of 0.


class Pictures:
  """Frames decoded from uploads, each with a name that cannot be guessed."""

  def __init__(self, height: int, width: int):
    """Creates an empty store for frames of this size."""
    self._size = height, width
    self._frames: dict[str, np.ndarray] = {}
    # Visitor -> names of frames, the oldest first.
    self._names: dict[str, collections.deque[str]] = {}
    # One picture is decoded at a time, to limit the memory.
    self._thread = concurrent.futures.ThreadPoolExecutor(
      1, thread_name_prefix="pictures"
    )

  async def add(self, content: bytes, visitor: str) -> tuple[str, np.ndarray]:
    """Decodes and stores a picture.

    Args:
      content: Bytes of the file.
      visitor: Identifies the sender.

    Returns:
      The name, and the frame, uint8 [H, W, 3].

    Raises:
      UserError: It is not a picture, or it is too large.
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
      # Of the visitor with most frames, so that nobody can displace others.
      self._forget_oldest(
        max(self._names, key=lambda each: len(self._names[each]))
      )
    return name, frame

  def get(self, name: str) -> np.ndarray | None:
    """Returns a frame, None if it is not stored."""
    return self._frames.get(name)

  def close(self) -> None:
    """Stops the decoding thread."""
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
  """Returns the body of a request; stops reading if it is too large.

  Raises:
    TooLarge: The body, or its stated length, has more than MAX_BYTES.
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
