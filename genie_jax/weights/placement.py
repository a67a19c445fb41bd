"""Chunked access to parameters, and their placement on devices.

A leaf is a numpy or JAX array, a `lazy_array.Lazy`, or an `int8.Int8` of two.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding

from genie_jax.core import errors
from genie_jax.sharding import rules
from genie_jax.weights import int8, lazy_array

# Storage type -> the dtype of parameters that are stored as floats.
FLOATS = {
  "float32": np.dtype(np.float32),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "int8": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = tuple(FLOATS)

# `place(path, leaf, axes) -> array`: places one stored parameter, a
# `tensor_files.Stored` or an `Int8` of two, given its logical axes.
Place = Callable[[str, Any, tuple[str | None, ...]], Any]

# Number of values converted at once; several copies of them are in memory.
_VALUES = 1 << 20


def host(leaf: Any, dtype: Any = np.float32) -> np.ndarray:
  """Returns a whole parameter in host memory."""
  if isinstance(leaf, int8.Int8):
    leaf = int8.Int8(np.asarray(leaf.values), np.asarray(leaf.scales))
    return np.asarray(leaf.dequantize(dtype))
  return np.asarray(leaf).astype(dtype, copy=False)


def part(
  leaf: Any, box: tuple[slice, ...], dtype: Any = np.float32
) -> np.ndarray:
  """Reads one box of a parameter to host memory."""
  if isinstance(leaf, int8.Int8):
    shared = _shared(box, leaf.scales.shape)
    return host(int8.Int8(leaf.values[box], leaf.scales[shared]), dtype)
  if not isinstance(leaf, lazy_array.Lazy):
    leaf = np.asarray(leaf)
  return leaf[box].astype(dtype, copy=False)


def later(leaf: Any, dtype: Any = np.float32) -> lazy_array.Lazy:
  """Returns a parameter as a lazy array with another dtype.

  It is read a piece at a time, unless the leaf can only be read whole.
  """
  source = leaf.values if isinstance(leaf, int8.Int8) else leaf
  unit = (
    source.unit
    if isinstance(source, lazy_array.Lazy)
    else ((1,) * len(leaf.shape))
  )
  if unit is None:
    return lazy_array.Deferred(leaf.shape, dtype, lambda: host(leaf, dtype))
  return lazy_array.Parted(
    leaf.shape, dtype, unit, lambda box: part(leaf, box, dtype)
  )


def integers(leaf: Any, axes: tuple[int, ...]) -> int8.Int8:
  """Returns a quantized matrix that is read and computed when it is used.

  Its values equal those of `int8.quantize_leaf`. The matrix is read once for
  the scales, which are cached, and once for the values.

  Args:
    leaf: A float parameter, which may be larger than memory.
    axes: The contracted axes, which share a scale.

  Returns:
    `lazy_array.Lazy` values and scales.
  """
  wide = later(leaf)
  small = tuple(
    1 if axis in axes else size for axis, size in enumerate(leaf.shape)
  )

  @functools.cache
  def scales() -> np.ndarray:
    largest = np.zeros(small, np.float32)
    for box, block in lazy_array.each(wide):
      room = largest[_shared(box, small)]
      for inner in lazy_array.boxes(block.shape, _VALUES):
        found = np.abs(block[inner]).max(axis=axes, keepdims=True)
        at = _shared(inner, room.shape)
        room[at] = np.maximum(room[at], found)
      del block  # Freed before the next block is read.
    return int8.scales_of(largest)

  def values(box: tuple[slice, ...]) -> np.ndarray:
    block, own = wide[box], scales()[_shared(box, small)]
    found = np.empty(block.shape, np.int8)
    for inner in lazy_array.boxes(block.shape, _VALUES):
      found[inner] = int8.values_of(
        block[inner], own[_shared(inner, own.shape)]
      )
    return found

  whole = tuple(slice(0, size) for size in leaf.shape)
  return int8.Int8(
    lazy_array.Deferred(leaf.shape, np.int8, lambda: values(whole))
    if wide.unit is None
    else lazy_array.Parted(leaf.shape, np.int8, wide.unit, values),
    lazy_array.Deferred(small, np.float32, scales),
  )


def _shared(
  box: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[slice, ...]:
  """Returns the box of the scales that belong to a box of the values."""
  return tuple(
    slice(None) if size == 1 else one
    for one, size in zip(box, shape, strict=True)
  )


def make(dtype: str | None = None, mesh: Mesh | None = None) -> Place:
  """Returns a function that places each parameter on its device or devices.

  Only one parameter at a time is in host memory; with a mesh, only the part of
  one device.

  Args:
    dtype: Type of the matrices of transformer layers: "float32" (or None),
      "bfloat16" or "int8". All other parameters are float32, because tables
      and norms are added to and multiplied with float32 arrays.
    mesh: A mesh with the axes of `rules.MESH_AXES`; None for the default
      device.

  Raises:
    UserError: The dtype is unknown, or the mesh has other axes.
  """
  if dtype is not None and dtype not in DTYPES:
    raise errors.UserError(
      f"dtype={dtype!r} is unknown{errors.closest(str(dtype), DTYPES)}"
      f"; use one of {', '.join(DTYPES)}."
    )
  if mesh is not None and tuple(mesh.axis_names) != rules.MESH_AXES:
    raise errors.UserError(
      f"mesh has the axes {', '.join(map(str, mesh.axis_names))}; make a mesh "
      f"with {', '.join(rules.MESH_AXES)} (genie_jax.sharding.mesh.make)."
    )

  def place(path: str, leaf: Any, axes: tuple[str | None, ...]) -> Any:
    contracted = int8.layer_kernels(path, tuple(leaf.shape))
    if contracted is None or dtype in (None, "float32"):
      return _put(path, leaf, axes, mesh, np.dtype(np.float32))
    if dtype == "bfloat16":
      return _put(path, leaf, axes, mesh, np.dtype(ml_dtypes.bfloat16))
    if not isinstance(leaf, int8.Int8):
      leaf = integers(leaf, contracted)
    # Axes along which the scale is shared have size 1 and cannot be split.
    scale_axes = tuple(
      None if i in contracted else name for i, name in enumerate(axes)
    )
    return int8.Int8(
      _put(path, leaf.values, axes, mesh, np.dtype(np.int8)),
      _put(path, leaf.scales, scale_axes, mesh, np.dtype(np.float32)),
    )

  return place


def _put(
  path: str,
  leaf: Any,
  axes: tuple[str | None, ...],
  mesh: Mesh | None,
  dtype: np.dtype,
) -> jax.Array:
  if mesh is None:
    return jax.device_put(host(leaf, dtype))
  rules.check_divides(leaf.shape, axes, mesh.shape, path)
  return jax.make_array_from_callback(
    tuple(leaf.shape),
    NamedSharding(mesh, rules.spec(axes)),
    # JAX never passes None here, because every local device has a part.
    lambda index: part(leaf, index or (), dtype),
  )
