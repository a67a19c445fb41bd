"""Says what a film is without decoding it; runs in a child process."""

from collections.abc import Callable
from typing import Any

import av.container
import av.error
import av.video.stream

from data_pipelines.videos import actions as actions_lib
from data_pipelines.videos import decode
from genie_jax.core import errors


def job(request: dict[str, Any], send: Callable[..., None]) -> None:
  """Sends {"film": ...} with values of the fields of `sources.Source`.

  Args:
    request: {"path", "actions"}.
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
    film["film_frames"] = stream.frames if request["actions"] else 0
    unknown = request["actions"] and not stream.frames
    if unknown or not film["duration"]:
      found = _count(container, stream, send)
      film["duration"] = film["duration"] or found[0]
      film["film_frames"] = film["film_frames"] or found[1]
  with decode.opened(request["path"]) as container:
    stream = decode.video_stream(container)
    try:
      frame = next(container.decode(stream), None)
    except (av.error.InvalidDataError, av.error.EOFError):
      frame = None  # Cutting it will tell whether later ones are better.
    if frame is not None:
      film["rotation"] = int(frame.rotation)
  if request["actions"]:
    try:
      labels = set(actions_lib.read(request["actions"]).labels)
      film["labels"] = sorted(labels)
    except errors.UserError as error:
      film["actions_problem"] = str(error)
  film["duration"] = round(film["duration"], 3)
  send({"film": film})


def _count(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
  send: Callable[..., None],
) -> tuple[float, int]:
  """Returns a film's seconds and frames, from its packets."""
  first, last, count = None, 0.0, 0
  try:
    for number, packet in enumerate(container.demux(stream)):
      if number % 10_000 == 0:
        send({"at": 0})
      count += packet.size > 0
      if packet.pts is None or packet.time_base is None:
        continue
      time = float(packet.pts * packet.time_base)
      first = time if first is None else first
      last = max(last, time - first)
  except av.error.FFmpegError:
    pass  # What came before the damage counts.
  return last, count
