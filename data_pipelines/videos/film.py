"""Opens films that strangers wrote."""

import contextlib
import os
from collections.abc import Iterator

import av
import av.container
import av.error
import av.stream
import av.video.stream

_MOST_PIXELS = 1 << 26


class BadFilm(ValueError):
  """A film that cannot be used; the message says why."""


@contextlib.contextmanager
def opened(path: str) -> Iterator[av.container.InputContainer]:
  """Opens a film; nothing else is ever opened on its behalf.

  Args:
    path: The file, absolute; bytes that are no UTF-8 are surrogates.

  Raises:
    BadFilm: It is no film.
  """
  with contextlib.ExitStack() as stack:
    try:
      path.encode()
      name = f"file:{path}"
    except UnicodeEncodeError:
      # PyAV takes text only.
      file = stack.enter_context(open(os.fsencode(path), "rb"))
      name = f"file:/proc/self/fd/{file.fileno()}"
    try:
      container = av.open(
        name,
        # A playlist that calls itself a film must not fetch what it names.
        options={"protocol_whitelist": "file", "max_probe_packets": "2500"},
        metadata_errors="replace",
      )
    except av.error.FFmpegError as error:
      raise BadFilm(f"cannot be opened: {reason(error)}") from error
    yield stack.enter_context(container)


def video_stream(
  container: av.container.InputContainer,
) -> av.video.stream.VideoStream:
  """Returns the stream of moving pictures.

  Raises:
    BadFilm: There is none, or it has no pixels.
  """
  found = [
    stream
    for stream in container.streams.video
    if not stream.disposition & av.stream.Disposition.attached_pic
  ]
  if not found:
    kinds = sorted({stream.type for stream in container.streams})
    raise BadFilm(
      f"has no pictures, only {' and '.join(kinds) or 'no streams'}"
    )
  stream = found[0]
  try:
    width, height = stream.width, stream.height
  except (AttributeError, ValueError) as error:
    raise BadFilm(
      "is in a format that cannot be decoded (no codec for it)"
    ) from error
  check_size(width, height)
  # Other processes use the other cores.
  stream.codec_context.thread_count = 1
  return stream


def check_size(width: int, height: int) -> None:
  """Raises BadFilm where a picture has no pixels, or too many."""
  if not 0 < width * height <= _MOST_PIXELS:
    raise BadFilm(f"has pictures of {width} x {height} pixels")


def duration(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
) -> float:
  """Returns the stated duration in seconds, 0 where there is none."""
  if stream.duration and stream.time_base:
    return float(stream.duration * stream.time_base)
  return (container.duration or 0) / av.time_base


def reason(error: BaseException) -> str:
  """Returns libav's words about an error."""
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return " ".join(str(text).split())
