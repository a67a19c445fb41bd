"""Matrices stored as 8-bit integers with one scale per output channel.

Each weight is w = scale * value with value in -127..127, and the scale of its
output channel is max |w| / 127. This is symmetric, so zero stays zero and
products need no correction. The error of a weight is at most half a scale.

Only the matrices of transformer layers are quantized. They are nearly all of a
large model's parameters. Embeddings, norms, biases, codebooks and the first
and last projections of a model are small, and errors in them are visible.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_LEVELS = 127

# A projection's kernel in a scanned stack. Axis 0 is the layer, followed by the
# contracted axes. The output projection of attention has two of these (head and
# channel), all others have one.
_KERNEL = re.compile(r"(^|/)layers/(\w+/)*(?P<map>\w+)/kernel$")
_TWO_INPUTS = ("out",)

# `which(path, shape) -> contracted axes`, or None to keep the array in float.
Which = Callable[[str, tuple[int, ...]], tuple[int, ...] | None]


@flax.struct.dataclass
class Int8:
  """A matrix as integers and scales.

  Attributes:
    values: int8 [...]; a JAX or numpy array, or a `lazy_array.Lazy`.
    scales: float32; the same kind of array and the same rank, with size 1 on
      the contracted axes.
  """

  values: Any
  scales: Any

  @property
  def shape(self) -> tuple[int, ...]:
    return self.values.shape

  def dequantize(self, dtype: Any = jnp.float32) -> jax.Array:
    """Returns values * scales, multiplied in float32, as `dtype`."""
    return (self.values.astype(jnp.float32) * self.scales).astype(dtype)


def layer_kernels(path: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
  """Returns the contracted axes of a matrix in a transformer's layers.

  Args:
    path: A parameter's path, keys joined with "/".
    shape: The parameter's shape.

  Returns:
    The axes, or None for all other parameters.
  """
  found = _KERNEL.search(path)
  if found is None or len(shape) < 3:
    return None
  return (1, 2) if found["map"] in _TWO_INPUTS else (1,)


def quantize_leaf(leaf: Any, axes: tuple[int, ...]) -> Int8:
  """Quantizes one matrix; numpy arrays stay on the host.

  Args:
    leaf: Float array.
    axes: The contracted axes, which share a scale.
  """
  xp = jnp if isinstance(leaf, jax.Array) else np
  wide = xp.asarray(leaf).astype(np.float32)
  scales = scales_of(xp.abs(wide).max(axis=axes, keepdims=True))
  return Int8(values_of(wide, scales), scales)


def scales_of(largest: Any) -> Any:
  """Returns the scales of channels.

  Args:
    largest: Float32, the largest |w| of each channel; numpy or JAX.
  """
  xp = jnp if isinstance(largest, jax.Array) else np
  scales = largest / np.float32(_LEVELS)
  # For a channel of zeros any positive scale is right.
  return xp.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def values_of(weights: Any, scales: Any) -> Any:
  """Returns int8 values of float32 weights, which may be a part of a matrix.

  Args:
    weights: Float32, numpy or JAX.
    scales: Float32, with size 1 on the contracted axes.
  """
  xp = jnp if isinstance(weights, jax.Array) else np
  values = xp.clip(xp.round(weights / scales), -_LEVELS, _LEVELS)
  return values.astype(np.int8)


def quantize(tree: Any, which: Which = layer_kernels) -> Any:
  """Returns a tree with the selected matrices as `Int8`.

  Args:
    tree: Nested dicts of float arrays.
    which: Selects the matrices; returns their contracted axes.
  """

  def convert(path, leaf):
    axes = (
      None if isinstance(leaf, Int8) else which(_name(path), tuple(leaf.shape))
    )
    return leaf if axes is None else quantize_leaf(leaf, axes)

  return jax.tree_util.tree_map_with_path(convert, tree, is_leaf=_is_int8)


def dequantize(tree: Any, dtype: Any = jnp.float32) -> Any:
  """Returns a tree without `Int8`, for use inside a compiled function.

  Args:
    tree: Any tree; leaves that are not `Int8` are returned unchanged.
    dtype: Dtype of the dequantized matrices.
  """
  return jax.tree.map(
    lambda x: x.dequantize(dtype) if _is_int8(x) else x, tree, is_leaf=_is_int8
  )


def num_bytes(tree: Any) -> int:
  """Returns the size of the arrays of a tree, in bytes."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _is_int8(x: Any) -> bool:
  return isinstance(x, Int8)


def _name(path: tuple[Any, ...]) -> str:
  return "/".join(str(key.key) for key in path)
