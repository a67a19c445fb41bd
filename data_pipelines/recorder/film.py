"""Films and tables of keys, written so that no half-written file remains.

A film `NAME.mp4` (H.264, 4:2:0) has the table `NAME.csv` beside it, if keys
were pressed:

  time,keys
  0.000,
  1.233,Right space

Each row has the time in seconds after the film's first frame, and the keys that
are held from then on, in order of their names and separated by spaces.
"""

import csv
import fractions
import io
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Self

import av
import numpy as np
from av.video import frame as frame_lib

from genie_jax.core import files

_TIME_BASE = fractions.Fraction(1, 90_000)  # The usual clock of MPEG.
# At 640 x 360 pixels, about 1 Mbit/s for a scrolling game.
_ENCODER = {"preset": "veryfast", "crf": "21", "threads": "1"}


class FilmWriter:
  """Writes a film frame by frame; used as a context manager.

  The film gets its name when the block ends without an exception. Without a
  frame, nothing is written.

  Args:
    path: The film, a name that ends with ".mp4".
    width: Pixels, an even number.
    height: Pixels, an even number.
    fps: Nominal frame rate, for the header.
  """

  def __init__(self, path: pathlib.Path, width: int, height: int, fps: int):
    self._path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    self._temporary = files.temporary_sibling(path)
    self._container = av.open(str(self._temporary), "w", format="mp4")
    self._stream = self._container.add_stream(
      "libx264", rate=fps, options=_ENCODER
    )
    self._stream.width, self._stream.height = width, height
    self._stream.pix_fmt = "yuv420p"
    self._stream.codec_context.time_base = _TIME_BASE
    self._stream.codec_context.gop_size = 4 * fps
    self._last = -1

  def write(self, frame: av.VideoFrame | np.ndarray, seconds: float) -> None:
    """Writes one frame.

    Args:
      frame: A frame of libav, or uint8 [H, W, 3].
      seconds: Its time in the film; a frame that is not later than the frame
        before is left out.
    """
    time = round(seconds / _TIME_BASE)
    if time <= self._last:
      return
    self._last = time
    if isinstance(frame, np.ndarray):
      frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
    # A copy, so that the caller's frame keeps its time.
    frame = frame.reformat(
      self._stream.width, self._stream.height, format="yuv420p"
    )
    frame.pts, frame.time_base = time, _TIME_BASE
    frame.pict_type = frame_lib.PictureType.NONE
    self._container.mux(self._stream.encode(frame))

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind, error, trace) -> None:
    try:
      if kind is None and self._last >= 0:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        os.replace(self._temporary, self._path)
      else:
        self._container.close()
    finally:
      self._temporary.unlink(missing_ok=True)


def write_keys(
  path: pathlib.Path, rows: Iterable[tuple[float, Iterable[str]]]
) -> None:
  """Writes the table of keys of a film.

  Args:
    path: The film; the table's name ends with ".csv" instead of ".mp4".
    rows: Time in seconds and the keys that are held from then on.
  """
  text = io.StringIO()
  table = csv.writer(text, lineterminator="\n")
  table.writerow(["time", "keys"])
  for seconds, keys in rows:
    table.writerow([f"{max(0.0, seconds):.3f}", " ".join(sorted(keys))])
  files.write_atomic(path.with_suffix(".csv"), text.getvalue())


def write_array(
  path: pathlib.Path,
  frames: Iterable[np.ndarray],
  fps: int,
  keys: Sequence[Iterable[str]] = (),
) -> None:
  """Writes a film of arrays at a constant frame rate.

  Args:
    path: The film.
    frames: uint8 [H, W, 3] each.
    fps: Frames per second.
    keys: The keys that are held at each frame; without them, no table is
      written.

  Raises:
    EOFError: There are no frames; nothing is written.
  """
  frames = iter(frames)
  first = next(frames, None)
  if first is None:
    raise EOFError(f"{path.name} would have no frames")
  height, width = first.shape[:2]
  if keys:
    rows = [
      (step / fps, held)
      for step, held in enumerate(keys)
      if step == 0 or set(held) != set(keys[step - 1])
    ]
    # Before the film, because a film without its table would be kept.
    write_keys(path, rows)
  with FilmWriter(path, width, height, fps) as film:
    film.write(first, 0.0)
    for step, frame in enumerate(frames, 1):
      film.write(frame, step / fps)
