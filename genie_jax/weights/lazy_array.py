"""Arrays that may be larger than memory, read in boxes.

A box is a tuple of slices, one for each axis. This module does not import JAX.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Large enough for fast reads from a disk, small relative to a program's memory.
PIECE_BYTES = 1 << 25

Box = tuple[slice, ...]


def boxes(
  shape: tuple[int, ...], limit: int, unit: tuple[int, ...] | None = None
) -> Iterator[Box]:
  """Splits an array into boxes, in order of their first corners.

  Args:
    shape: Shape of the array.
    limit: Largest number of values in a box; a box has at least one unit.
    unit: The size of a box is a multiple of the unit's along each axis, except
      at the end of an axis. By default single values; then each box follows
      the previous one in the array's memory.
  """
  size = [
    min(a, b) for a, b in zip(unit or (1,) * len(shape), shape, strict=True)
  ]
  for axis in reversed(range(len(shape))):
    room = max(1, limit // max(1, math.prod(size)))
    size[axis] = max(1, min(shape[axis], size[axis] * room))
  yield from itertools.product(
    *(
      [slice(start, min(start + step, end)) for start in range(0, end, step)]
      for step, end in zip(size, shape, strict=True)
    )
  )


class Lazy:
  """An array that is not in memory.

  Attributes:
    shape: Its shape.
    dtype: Its dtype.
    unit: Shape of the boxes in which it can be read efficiently, see `boxes`;
      None if it can only be read whole.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    unit: tuple[int, ...] | None,
  ):
    """Sets shape, dtype and unit; reads nothing."""
    self.shape, self._dtype, self.unit = tuple(shape), dtype, unit

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(self._dtype)

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def __getitem__(self, box: Any) -> np.ndarray:
    """Reads the part given by a slice or a tuple of slices."""
    raise NotImplementedError

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    whole = np.empty(self.shape, self.dtype)
    for box, block in each(self):
      whole[box] = block
    return np.asarray(whole, dtype)

  def in_order(self) -> Iterator[np.ndarray]:
    """Yields blocks which, flattened and joined, are the flattened array."""
    limit = PIECE_BYTES // self.dtype.itemsize
    for box in boxes(self.shape, limit):
      yield self[box]


class Deferred(Lazy):
  """An array that is read whole when it is used."""

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    read: Callable[[], np.ndarray],
  ):
    """Stores `read`, a function that returns the whole array."""
    super().__init__(shape, dtype, None)
    self._read = read

  def __getitem__(self, box: Any) -> np.ndarray:
    return self._read()[box]

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    return np.asarray(self._read(), dtype)

  def in_order(self) -> Iterator[np.ndarray]:
    yield self._read()


class Parted(Lazy):
  """An array that is read in boxes when it is used."""

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    unit: tuple[int, ...],
    part: Callable[[Box], np.ndarray],
  ):
    """Stores `part`, a function that returns the values of a box."""
    super().__init__(shape, dtype, unit)
    self._part = part

  def __getitem__(self, box: Any) -> np.ndarray:
    box = box if isinstance(box, tuple) else (box,)
    box += (slice(None),) * (len(self.shape) - len(box))
    return self._part(
      tuple(
        slice(*one.indices(size)[:2])
        for one, size in zip(box, self.shape, strict=True)
      )
    )


def each(array: Any) -> Iterator[tuple[Box, np.ndarray]]:
  """Yields (box, values) for boxes that cover an array.

  Args:
    array: A numpy, JAX or `Lazy` array.
  """
  if isinstance(array, Lazy) and array.unit is not None:
    # 4 bytes per value, because narrower values may be read as float32.
    for box in boxes(array.shape, PIECE_BYTES // 4, array.unit):
      yield box, array[box]
  else:
    yield tuple(slice(0, size) for size in array.shape), np.asarray(array)


def in_order(array: Any) -> Iterator[np.ndarray]:
  """Yields blocks which, flattened and joined, are the flattened array."""
  if isinstance(array, Lazy):
    yield from array.in_order()
  else:
    yield np.asarray(array)


def write(
  path: os.PathLike[str],
  offset: int,
  shape: tuple[int, ...],
  box: Box,
  block: np.ndarray,
) -> None:
  """Writes the values of a box to an array that is stored in a file.

  Args:
    path: The file.
    offset: Byte of the file at which the array begins.
    shape: Shape of the array.
    box: A box of the array.
    block: The values of the box.
  """
  # The last axis that the box does not cover whole: values with different
  # indices along it, or along axes before it, are not contiguous in the file.
  cut = max(
    (
      axis
      for axis, part in enumerate(box)
      if part.stop - part.start < shape[axis]
    ),
    default=0,
  )
  steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  start = sum(part.start * step for part, step in zip(box, steps, strict=True))
  # As bytes, because numpy's buffers do not support bfloat16.
  runs = (
    np.ascontiguousarray(block)
    .reshape(math.prod(block.shape[:cut]), -1)
    .view(np.uint8)
  )
  with open(path, "r+b") as file:
    for index, run in zip(np.ndindex(block.shape[:cut]), runs, strict=True):
      distance = sum(i * step for i, step in zip(index, steps, strict=False))
      file.seek(offset + (start + distance) * block.itemsize)
      file.write(run.data)
