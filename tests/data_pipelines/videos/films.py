"""Tiny films for the tests of `data_pipelines.videos`."""

import fractions
import os

import av
import cv2
import numpy as np

# One core is enough for films of 10 kB; Beam starts a process for each worker.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def picture(seed, height, width):
  """Returns a smooth random picture, uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
  smooth = cv2.GaussianBlur(noise, (0, 0), 6)
  return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


def play(seed, frames=90, height=48, width=80, shots=1):
  """Yields frames of a game: a scrolling picture and a bouncing ball."""
  worlds = [picture([seed, k], height, 2 * width) for k in range(shots)]
  for number in range(frames):
    world = np.roll(worlds[number * shots // frames], -number, axis=1)
    frame = world[:, :width].copy()
    row = int(height / 2 + height / 4 * np.sin(number / 4 + seed))
    column = int(width / 2 + width / 4 * np.cos(number / 7 + 2 * seed))
    frame[row - 4 : row + 4, column - 4 : column + 4] = (255, 30, 30)
    yield frame


def write_film(
  path, frames, rate=30, codec="libx264", pixels="yuv420p", **fields
):
  """Writes frames as a film.

  Args:
    path: The file.
    frames: uint8 [H, W, 3] each.
    rate: Frames per second.
    codec: Name of the encoder.
    pixels: Its pixel format.
    **fields: "options" of the encoder, "stamps" of the frames in ms, "format"
      of the container; others are set on the stream's codec context.
  """
  options = {"preset": "ultrafast"} if codec == "libx264" else {}
  options |= fields.pop("options", {})
  stamps = fields.pop("stamps", None)
  with av.open(
    os.fspath(path), "w", format=fields.pop("format", None)
  ) as container:
    stream = container.add_stream(
      codec, rate=fractions.Fraction(rate), options=options
    )
    stream.pix_fmt = pixels
    for name, value in fields.items():
      setattr(stream.codec_context, name, value)
    if stamps is not None:
      stream.codec_context.time_base = fractions.Fraction(1, 1000)
    for number, frame in enumerate(frames):
      if not number:
        stream.height, stream.width = frame.shape[:2]
      shown = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(frame), format="rgb24"
      )
      if stamps is not None:
        shown.pts = stamps[number]
        shown.time_base = fractions.Fraction(1, 1000)
      container.mux(stream.encode(shown))
    container.mux(stream.encode(None))
  return path
