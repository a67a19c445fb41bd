"""One parameter of a model, however it is held, read a piece at a time.

A leaf is an array of numpy or JAX, a `pieces.Lazy` one, or an `Int8` of two.
"""

import functools
from typing import Any

import numpy as np

from genie_jax.core import pieces
from genie_jax.nn import quantized

# What is converted at once; several copies of it are made.
_VALUES = 1 << 20


def host(leaf: Any, dtype: Any = np.float32) -> np.ndarray:
  """Returns a parameter in host memory, whole."""
  if isinstance(leaf, quantized.Int8):
    leaf = quantized.Int8(np.asarray(leaf.values), np.asarray(leaf.scales))
    return np.asarray(leaf.dequantize(dtype))
  return np.asarray(leaf).astype(dtype, copy=False)


def part(
    leaf: Any, box: tuple[slice, ...], dtype: Any = np.float32
) -> np.ndarray:
  """Returns one box of a parameter in host memory, and reads no more."""
  if isinstance(leaf, quantized.Int8):
    shared = _shared(box, leaf.scales.shape)
    return host(quantized.Int8(leaf.values[box], leaf.scales[shared]), dtype)
  if not isinstance(leaf, pieces.Lazy):
    leaf = np.asarray(leaf)
  return leaf[box].astype(dtype, copy=False)


def later(leaf: Any, dtype: Any = np.float32) -> pieces.Lazy:
  """Returns a parameter as another dtype, read when it is asked for.

  A piece at a time, unless the leaf itself can only be read whole.
  """
  held = leaf.values if isinstance(leaf, quantized.Int8) else leaf
  unit = held.unit if isinstance(held, pieces.Lazy) else (
      (1,) * len(leaf.shape))
  if unit is None:
    return pieces.Deferred(leaf.shape, dtype, lambda: host(leaf, dtype))
  return pieces.Parted(
      leaf.shape, dtype, unit, lambda box: part(leaf, box, dtype))


def integers(leaf: Any, axes: tuple[int, ...]) -> quantized.Int8:
  """Returns a matrix as integers, read and computed when they are asked for.

  Equal to `quantized.quantize_leaf`. The matrix is read once for its scales,
  which are kept, and once for its values.

  Args:
    leaf: A float parameter, perhaps larger than memory.
    axes: Its contracted axes, which share a scale.

  Returns:
    `pieces.Lazy` values and scales.
  """
  wide = later(leaf)
  small = tuple(
      1 if axis in axes else size for axis, size in enumerate(leaf.shape))

  @functools.cache
  def scales() -> np.ndarray:
    largest = np.zeros(small, np.float32)
    for box, block in pieces.each(wide):
      room = largest[_shared(box, small)]
      for inner in pieces.boxes(block.shape, _VALUES):
        found = np.abs(block[inner]).max(axis=axes, keepdims=True)
        at = _shared(inner, room.shape)
        room[at] = np.maximum(room[at], found)
      del block  # Let go of it before the next is read.
    return quantized.scales_of(largest)

  def values(box: tuple[slice, ...]) -> np.ndarray:
    block, own = wide[box], scales()[_shared(box, small)]
    found = np.empty(block.shape, np.int8)
    for inner in pieces.boxes(block.shape, _VALUES):
      found[inner] = quantized.values_of(
          block[inner], own[_shared(inner, own.shape)])
    return found

  whole = tuple(slice(0, size) for size in leaf.shape)
  return quantized.Int8(
      pieces.Deferred(leaf.shape, np.int8, lambda: values(whole))
      if wide.unit is None else
      pieces.Parted(leaf.shape, np.int8, wide.unit, values),
      pieces.Deferred(small, np.float32, scales))


def _shared(
    box: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[slice, ...]:
  """Returns which scales belong to a box."""
  return tuple(
      slice(None) if size == 1 else one
      for one, size in zip(box, shape, strict=True))
