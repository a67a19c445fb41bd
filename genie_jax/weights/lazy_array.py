"""Arrays that may be larger than memory, read in boxes.

A box is a tuple of slices, one for each axis. Nothing here imports JAX.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Enough for a disk to be fast, and little beside a program's own memory.
PIECE_BYTES = 1 << 25

Box = tuple[slice, ...]


def boxes(
  shape: tuple[int, ...], limit: int, unit: tuple[int, ...] | None = None
) -> Iterator[Box]:
  """Cuts an array into boxes, in order of their first corners.

  Args:
    shape: Of the array.
    limit: Most values in a box, or one unit if that is larger.
    unit: Boxes are whole numbers of it along each axis, but at the ends;
      single values when left out, and then one box goes on in the array's
      memory where the one before ended.
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
    unit: Shape of the boxes in which it is read best, as `boxes` has it; None
      for what can only be read whole.
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    unit: tuple[int, ...] | None,
  ):
    """Keeps what is known without reading."""
    self.shape, self._dtype, self.unit = tuple(shape), dtype, unit

  @property
  def dtype(self) -> np.dtype:
    return np.dtype(self._dtype)

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def __getitem__(self, box: Any) -> np.ndarray:
    """Returns the part that a slice, or a tuple of slices, names."""
    raise NotImplementedError

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    whole = np.empty(self.shape, self.dtype)
    for box, block in each(self):
      whole[box] = block
    return np.asarray(whole, dtype)

  def in_order(self) -> Iterator[np.ndarray]:
    """Yields blocks that join, flattened, to the whole array flattened."""
    limit = PIECE_BYTES // self.dtype.itemsize
    for box in boxes(self.shape, limit):
      yield self[box]


class Deferred(Lazy):
  """An array that is read whole when it is asked for."""

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    read: Callable[[], np.ndarray],
  ):
    """Keeps `read`, which returns the whole array each time."""
    super().__init__(shape, dtype, None)
    self._read = read

  def __getitem__(self, box: Any) -> np.ndarray:
    return self._read()[box]

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    return np.asarray(self._read(), dtype)

  def in_order(self) -> Iterator[np.ndarray]:
    yield self._read()


class Parted(Lazy):
  """An array that is read in boxes, each when it is asked for."""

  def __init__(
    self,
    shape: tuple[int, ...],
    dtype: Any,
    unit: tuple[int, ...],
    part: Callable[[Box], np.ndarray],
  ):
    """Keeps `part`, which returns the values of a box each time."""
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
  """Yields boxes that together make an array, and what is in them.

  Args:
    array: One of numpy or JAX, or a `Lazy` one.
  """
  if isinstance(array, Lazy) and array.unit is not None:
    # As float32, which narrower values may have been read as.
    for box in boxes(array.shape, PIECE_BYTES // 4, array.unit):
      yield box, array[box]
  else:
    yield tuple(slice(0, size) for size in array.shape), np.asarray(array)


def in_order(array: Any) -> Iterator[np.ndarray]:
  """Yields blocks that join, flattened, to the whole array flattened."""
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
  """Writes what is in a box of an array that lies in a file.

  Args:
    path: A file.
    offset: Byte of it at which the array begins.
    shape: Of the array.
    box: Of the array.
    block: What is in it.
  """
  # What follows an axis that is cut lies apart in the file.
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
  # Bits, as numpy's buffers know no bfloat16.
  runs = (
    np.ascontiguousarray(block)
    .reshape(math.prod(block.shape[:cut]), -1)
    .view(np.uint8)
  )
  with open(path, "r+b") as file:
    for index, run in zip(np.ndindex(block.shape[:cut]), runs, strict=True):
      apart = sum(i * step for i, step in zip(index, steps, strict=False))
      file.seek(offset + (start + apart) * block.itemsize)
      file.write(run.data)
