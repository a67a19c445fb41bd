"""Converts images of any kind and size to frames of a world.

As described in docs/play.md: the largest centred crop with the frame's aspect
ratio, resized by averaging.

Shapes:
  P  prompt frames      K  channels of an image, 1 to 4
"""

import os
from typing import Any

import numpy as np
from PIL import Image

from genie_jax.core import errors, images

_MAX_CHANNELS = 4
_SIXTEEN_BITS = 65535


def as_frames(given: Any, frame_shape: tuple[int, int, int]) -> np.ndarray:
  """Returns a prompt as frames [P, H, W, C] of a world.

  Args:
    given: A path, a PIL image, an array [rows, columns], [rows, columns, K]
      or [P, rows, columns, K], or a list of these with one item per frame.
      uint8 frames of the world's size are not changed. In other arrays, floats
      are multiplied by 255 if none exceeds 1, and integers are divided by 257
      if one exceeds 255; both are then rounded and clipped to 0 to 255. NaN
      becomes black. K is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and
      alpha).
    frame_shape: (H, W, C) of the world.

  Returns:
    uint8 [P, H, W, C].

  Raises:
    UserError: It is not an image, or cannot be converted to frames of this
      world.
  """
  if _is_picture(given) and not hasattr(given, "ndim"):
    return _frame(given, frame_shape)[None]
  if isinstance(given, list | tuple) and given and all(map(_is_picture, given)):
    return np.concatenate([as_frames(one, frame_shape) for one in given])
  return _of_array(_array(given), frame_shape)


def _is_picture(value: Any) -> bool:
  """Returns whether a value is one image, and not a row of numbers."""
  return (
    isinstance(value, str | os.PathLike | Image.Image)
    or getattr(value, "ndim", 0) == 3
  )


def _array(given: Any) -> np.ndarray:
  try:
    return np.asarray(given)
  except ValueError as error:  # Rows of different lengths.
    raise errors.UserError(
      "The prompt is not an array: its rows differ in length; give a path, an "
      "image, or an array [H, W, C] or [P, H, W, C]."
    ) from error


def _of_array(
  array: np.ndarray, frame_shape: tuple[int, int, int]
) -> np.ndarray:
  """Returns the frames of an array with one image or several."""
  frames = array[..., None] if array.ndim == 2 else array
  frames = frames[None] if frames.ndim == 3 else frames
  if (
    frames.dtype == np.uint8
    and len(frames)
    and (frames.shape[1:] == frame_shape)
  ):
    return frames
  if (
    frames.ndim != 4
    or not frames.size
    or frames.shape[-1] > _MAX_CHANNELS
    or frames.dtype.kind not in "buif"
  ):
    raise errors.UserError(
      f"The prompt is an array of {array.dtype} and shape {array.shape}; give "
      "numbers of shape [H, W, C] or [P, H, W, C] with 1 to 4 channels and at "
      "least one pixel, a path, or an image."
    )
  if frames.shape[-1] == 1:
    frames = frames[..., 0]
  return np.stack(
    [
      _frame(Image.fromarray(np.ascontiguousarray(one)), frame_shape)
      for one in _eight_bits(frames)
    ]
  )


def _eight_bits(values: np.ndarray) -> np.ndarray:
  """Converts numbers to uint8 as described in `as_frames`."""
  if values.dtype == np.uint8:
    return values
  if values.dtype.kind == "b":
    return values.astype(np.uint8) * 255
  wide = np.nan_to_num(values.astype(np.float64), posinf=255, neginf=0)
  top = wide.max()
  if values.dtype.kind == "f" and top <= 1:
    wide *= 255
  elif values.dtype.kind in "ui" and top > 255:
    wide *= 255 / _SIXTEEN_BITS
  return np.round(wide).clip(0, 255).astype(np.uint8)


def _frame(given: Any, frame_shape: tuple[int, int, int]) -> np.ndarray:
  """Returns uint8 [H, W, C] of a path or a PIL image."""
  height, width, channels = frame_shape
  if channels != 3:
    raise errors.UserError(
      f"Frames of this world have {channels} channels and images have 3; "
      f"give uint8 arrays of shape {frame_shape}."
    )
  if isinstance(given, Image.Image):
    return images.fit(given, height, width)
  return images.load_prompt(given, height, width)
