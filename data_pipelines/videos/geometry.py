"""Which part of a film's picture becomes a frame, and at which size.

Shapes:
  H W  rows, columns of a frame
"""

import dataclasses
import fractions
from collections.abc import Sequence

import numpy as np

from data_pipelines.videos import options as options_lib

# A line belongs to a bar if nearly all its pixels are at most this bright in
# every frame that was looked at. Black is 0; encoders leave some noise.
_DARK = 24
_DARK_SHARE = 0.995
_SOFT_SHARE = 0.5
# Brightness and share of frames from which the lines next to a bar are picture:
# a game in space has black edges too, but also stars in them.
_PICTURE = 40
_PICTURE_SHARE = 0.5
# Share of the picture's height or width that is a bar, on each side.
_SMALLEST_BAR, _LARGEST_BAR = 0.02, 0.4
# How much the two bars may differ, as a share of the height or width.
_ASYMMETRY = 0.02
FEWEST_FRAMES = 3


@dataclasses.dataclass(frozen=True)
class Box:
  """A rectangle of pixels.

  Attributes:
    x: First column.
    y: First row.
    width: Columns.
    height: Rows.
  """

  x: int
  y: int
  width: int
  height: int


@dataclasses.dataclass(frozen=True)
class Fitting:
  """From a decoded picture to a frame.

  Attributes:
    box: Part of the decoded picture that is used.
    width: Columns to which the part is scaled, before it is turned.
    height: Rows, likewise.
    turns: Quarter turns counter-clockwise after scaling.
    pad: Rows and columns of black before and after, ((top, bottom), (left,
      right)), after turning.
  """

  box: Box
  width: int
  height: int
  turns: int
  pad: tuple[tuple[int, int], tuple[int, int]]


def find_picture(luma: Sequence[np.ndarray]) -> Box | None:
  """Returns the part of a film's picture that is no black bar.

  Bars are dark in all frames, begin at both opposite edges, are about equally
  thick, and have a picture next to them in most frames.

  Args:
    luma: uint8 [H, W] of frames from all over the film, of one shape.

  Returns:
    The part, None where there are no bars or too few frames to say so.
  """
  bright = [frame for frame in luma if np.mean(frame > _DARK) > 0.02]
  if len(bright) < FEWEST_FRAMES:
    return None
  height, width = bright[0].shape
  top, bottom = _bars(bright, axis=1)
  inner = [frame[top : height - bottom] for frame in bright]
  left, right = _bars(inner, axis=0)
  if not any((top, bottom, left, right)):
    return None
  # Colours are stored for two rows and columns at a time.
  top, left = top + top % 2, left + left % 2
  return Box(left, top, width - left - right, height - top - bottom)


def _bars(frames: Sequence[np.ndarray], axis: int) -> tuple[int, int]:
  """Returns the thickness of the bars at both ends of the lines.

  Args:
    frames: uint8 [H, W].
    axis: Along which a line runs: 1 for rows, 0 for columns.
  """
  dark = [np.mean(f <= _DARK, axis=axis) >= _DARK_SHARE for f in frames]
  always = np.logical_and.reduce(dark)
  if always.all():
    return 0, 0
  lines = len(always)
  first = int(np.argmin(always))
  last = int(np.argmin(always[::-1]))
  smallest, largest = _SMALLEST_BAR * lines, _LARGEST_BAR * lines
  if not (smallest <= min(first, last) and max(first, last) <= largest):
    return 0, 0
  if abs(first - last) > max(2, _ASYMMETRY * lines):
    return 0, 0
  depth = max(2, lines // 50)
  # The edge of the picture is soft where the encoder spread it.
  soft = np.logical_and.reduce(
    [np.mean(f <= _DARK, axis=axis) >= _SOFT_SHARE for f in frames]
  )
  first += int(np.argmin(np.append(soft[first : first + depth], False)))
  last += int(np.argmin(np.append(soft[::-1][last : last + depth], False)))
  for start in (first, lines - last - depth):
    beside = [
      np.take(f, range(start, start + depth), axis=1 - axis).max(1 - axis)
      for f in frames
    ]
    seen = [np.mean(line) >= _PICTURE for line in beside]
    if np.mean(seen) < _PICTURE_SHARE:
      return 0, 0
  return first, last


def fit(
  width: int,
  height: int,
  pixel_aspect: fractions.Fraction,
  turns: int,
  box: Box | None,
  options: options_lib.Options,
) -> Fitting:
  """Returns how a film's picture becomes a frame.

  Args:
    width: Columns of the decoded picture.
    height: Its rows.
    pixel_aspect: Width of a pixel divided by its height, before turning.
    turns: Quarter turns counter-clockwise that show it upright.
    box: The part without bars; None for all.
    options: Size and kind of fit.
  """
  box = box or Box(0, 0, width, height)
  # The frame as it is before turning.
  across, down = options.width, options.height
  if turns % 2:
    across, down = down, across
  shape = box.width * pixel_aspect / box.height
  wanted = fractions.Fraction(across, down)
  if options.fit == "crop" and shape != wanted:
    if shape > wanted:
      kept = round(wanted / pixel_aspect * box.height)
      box = _narrower(box, max(1, min(kept, box.width)))
    else:
      kept = round(box.width * pixel_aspect / wanted)
      box = _lower(box, max(1, min(kept, box.height)))
  pad = (0, 0)
  if options.fit == "pad":
    if shape > wanted:
      inner = max(1, round(across / shape))
      pad, down = (0, down - inner), inner
    else:
      inner = max(1, round(down * shape))
      pad, across = (across - inner, 0), inner
  columns, rows = pad if turns % 2 == 0 else pad[::-1]
  return Fitting(
    box,
    across,
    down,
    turns % 4,
    ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)),
  )


def _narrower(box: Box, width: int) -> Box:
  return Box(box.x + (box.width - width) // 2, box.y, width, box.height)


def _lower(box: Box, height: int) -> Box:
  return Box(box.x, box.y + (box.height - height) // 2, box.width, height)


def turned(frame: np.ndarray, fitting: Fitting) -> np.ndarray:
  """Returns a scaled frame upright and padded, uint8 [H, W, 3]."""
  if fitting.turns:
    frame = np.rot90(frame, fitting.turns)
  if any(map(any, fitting.pad)):
    frame = np.pad(frame, (*fitting.pad, (0, 0)))
  return np.ascontiguousarray(frame)
