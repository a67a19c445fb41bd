"""Matrices kept as 8-bit integers with one scale for each output channel.

Each output channel of a matrix is w = scale * value with value in -127..127
and scale = max |w| / 127: symmetric, so that zero stays zero and a product
needs no correction. Half a step is the largest error of any weight.

Only the matrices of transformer layers are kept so. They are nearly all of a
large model; embeddings, norms, biases, codebooks and the maps at a model's
two ends are small, and what they lose shows at once.
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

# A map's kernel in a scanned stack: axis 0 counts layers, then come the
# contracted axes, of which the way out of attention has two (head, channel).
_KERNEL = re.compile(r"(^|/)layers/(\w+/)*(?P<map>\w+)/kernel$")
_TWO_INPUTS = ("out",)

# `which(path, shape) -> contracted axes`, or None for what stays in float.
Which = Callable[[str, tuple[int, ...]], tuple[int, ...] | None]


@flax.struct.dataclass
class Int8:
  """A matrix as integers and scales.

  Attributes:
    values: int8 [...]; an array of JAX or numpy, or a `lazy_array.Lazy`.
    scales: float32, of the same rank and kind, with size 1 on the contracted
      axes.
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
  """Returns the contracted axes of a matrix inside a transformer's layers.

  Args:
    path: A parameter's path, keys joined with "/".
    shape: Its shape.

  Returns:
    The axes, or None for every other parameter.
  """
  found = _KERNEL.search(path)
  if found is None or len(shape) < 3:
    return None
  return (1, 2) if found["map"] in _TWO_INPUTS else (1,)


def quantize_leaf(leaf: Any, axes: tuple[int, ...]) -> Int8:
  """Returns one matrix as integers; numpy arrays stay on the host.

  Args:
    leaf: Float array.
    axes: Its contracted axes, which share a scale.
  """
  xp = jnp if isinstance(leaf, jax.Array) else np
  wide = xp.asarray(leaf).astype(np.float32)
  scales = scales_of(xp.abs(wide).max(axis=axes, keepdims=True))
  return Int8(values_of(wide, scales), scales)


def scales_of(largest: Any) -> Any:
  """Returns the scales of channels.

  Args:
    largest: Float32, the largest |w| of each; of numpy or JAX.
  """
  xp = jnp if isinstance(largest, jax.Array) else np
  scales = largest / np.float32(_LEVELS)
  # A channel of zeros has no scale; any will do.
  return xp.where(scales > 0, scales, np.float32(1)).astype(np.float32)


def values_of(weights: Any, scales: Any) -> Any:
  """Returns int8 values of float32 weights, or of any part of a matrix.

  Args:
    weights: Float32, of numpy or JAX.
    scales: Float32, with size 1 on the contracted axes.
  """
  xp = jnp if isinstance(weights, jax.Array) else np
  values = xp.clip(xp.round(weights / scales), -_LEVELS, _LEVELS)
  return values.astype(np.int8)


def quantize(tree: Any, which: Which = layer_kernels) -> Any:
  """Returns a tree whose chosen matrices are `Int8`.

  Args:
    tree: Nested dicts of float arrays.
    which: Names the contracted axes of each matrix to be chosen.
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
    tree: Any tree; leaves that are not `Int8` come back as they are.
    dtype: Of the matrices that were `Int8`.
  """
  return jax.tree.map(
    lambda x: x.dequantize(dtype) if _is_int8(x) else x, tree, is_leaf=_is_int8
  )


def num_bytes(tree: Any) -> int:
  """Returns how much memory the arrays of a tree take."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def _is_int8(x: Any) -> bool:
  return isinstance(x, Int8)


def _name(path: tuple[Any, ...]) -> str:
  return "/".join(str(key.key) for key in path)
