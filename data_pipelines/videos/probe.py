"""Says what a film is without decoding it; runs in a child process."""

from collections.abc import Callable
from typing import Any

import av.container
import av.error
import av.video.stream

from data_pipelines.videos import decode


def job(request: dict[str, Any], send: Callable[..., None]) -> None:
  """Sends {"film": {"duration", "width", "height", "fps", "rotation"}}.

  Args:
    request: {"path"}.
    send: Sends a header to the parent.

  Raises:
    BadFilm: The file is no film.
  """
  with decode.opened(request["path"]) as container:
    stream = decode.video_stream(container)
    rate = stream.average_rate or stream.guessed_rate
    film = {
      "width": stream.width,
      "height": stream.height,
      "fps": round(float(rate), 4) if rate else 0.0,
      "duration": decode.duration(container, stream),
      "rotation": 0,
      "codec": stream.codec_context.name,
    }
    if not film["duration"]:
      film["duration"] = _last_time(container, stream, send)
  with decode.opened(request["path"]) as container:
    stream = decode.video_stream(container)
    try:
      frame = next(container.decode(stream), None)
    except (av.error.InvalidDataError, av.error.EOFError):
      frame = None  # Cutting it will tell whether later ones are better.
    if frame is not None:
      film["rotation"] = int(frame.rotation)
  film["duration"] = round(film["duration"], 3)
  send({"film": film})


def _last_time(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
  send: Callable[..., None],
) -> float:
  """Returns a duration in seconds from the packets of a film without header."""
  first, last = None, 0.0
  try:
    for number, packet in enumerate(container.demux(stream)):
      if number % 10_000 == 0:
        send({"at": 0})
      if packet.pts is None or packet.time_base is None:
        continue
      time = float(packet.pts * packet.time_base)
      first = time if first is None else first
      last = max(last, time - first)
  except av.error.FFmpegError:
    pass  # What came before the damage counts.
  return last
