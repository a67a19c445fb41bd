"""Encodes frames as small PNG and GIF files, which the page enlarges."""

import base64
import io
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from genie_jax.core import images

_GAP = 2  # Transparent pixels between frames.
GIVEN, DRAWN, PLAIN = (34, 160, 90), (213, 94, 0), (128, 128, 128)


def data_uri(content: bytes, kind: str) -> str:
  """Returns file content as a data URI, to be embedded in a page."""
  return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def row(
  frames: np.ndarray,
  edges: Sequence[tuple[int, int, int]] | None = None,
) -> bytes:
  """Returns a PNG of frames side by side, with transparent gaps.

  Args:
    frames: uint8 [T, H, W, 3].
    edges: Colour of each frame's edge, one pixel wide; by default no colour.

  Returns:
    Content of the file, an image of T * (W + 4) - 2 pixels in width.
  """
  count, height, width, _ = frames.shape
  canvas = np.zeros(
    (height + 2, count * (width + 2 + _GAP) - _GAP, 4), np.uint8
  )
  for number, frame in enumerate(frames):
    left = number * (width + 2 + _GAP)
    if edges is not None:
      canvas[:, left : left + width + 2] = (*edges[number], 255)
    canvas[1:-1, left + 1 : left + 1 + width, :3] = frame
    canvas[1:-1, left + 1 : left + 1 + width, 3] = 255
  return _png(canvas)


def still(frame: np.ndarray) -> bytes:
  """Returns one frame, uint8 [H, W, 3], as a PNG."""
  return _png(frame)


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
  return buffer.getvalue()


def animation(frames: np.ndarray, fps: float, hold: int = 0) -> bytes:
  """Returns frames as a GIF, without scaling.

  Args:
    frames: uint8 [T, H, W, 3].
    fps: Frames per second.
    hold: How often the last frame is repeated at the end.
  """
  frames = np.concatenate([frames, np.repeat(frames[-1:], hold, 0)])
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "rollout.gif"
    images.save_video(path, frames, fps, scale=1)
    return path.read_bytes()


def error(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
  """Returns twice the absolute difference of uint8 frames, as uint8."""
  gap = np.abs(truth.astype(np.int16) - drawn.astype(np.int16))
  return (2 * gap).clip(0, 255).astype(np.uint8)
