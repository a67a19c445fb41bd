"""Fingerprints of arrays that do not depend on mesh or process count.

A fingerprint is a sum of the raw bits as integers. Integer sums wrap around, so
the order of summation does not matter.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import param_tree

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_SPREAD = np.uint32(2654435761)  # Knuth's multiplicative hash


def arrays(tree: Any) -> dict[str, str]:
  """Returns path -> 16 hexadecimal digits for each array of a tree.

  Args:
    tree: Numpy arrays, or JAX arrays on one mesh, or both.
  """
  flat = {
    param_tree.path_name(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  device = {name: x for name, x in flat.items() if isinstance(x, jax.Array)}
  sums = {name: _words(x, np) for name, x in flat.items() if name not in device}
  if device:
    layout = next(iter(device.values())).sharding
    mesh = layout.mesh if isinstance(layout, NamedSharding) else None
    sums |= jax.device_get(_compiled(mesh)(device))
  return {
    name: f"{int(plain):08x}{int(placed):08x}"
    for name, (plain, placed) in sorted(sums.items())
  }


def part(block: np.ndarray, corner: tuple[int, ...]) -> tuple[int, int]:
  """Returns the contribution of a box of an array to its fingerprint.

  Args:
    block: The values of the box.
    corner: Index in the array of the box's first value.
  """
  plain, placed = _words(block, np, corner)
  return int(plain), int(placed)


def joined(parts: Iterable[tuple[int, int]]) -> str:
  """Returns an array's fingerprint from the contributions of all its boxes."""
  plain, placed = (
    sum(column) & 0xFFFFFFFF for column in zip(*parts, strict=True)
  )
  return f"{plain:08x}{placed:08x}"


def words(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the two sums of an array's fingerprint, uint32 scalars."""
  return _words(x, jnp)


@functools.lru_cache
def _compiled(mesh: Mesh | None):
  """Returns the jitted sums, replicated on all processes of a mesh."""
  layout = None if mesh is None else mesh_lib.replicated(mesh)
  return jax.jit(
    lambda flat: {name: words(x) for name, x in flat.items()},
    out_shardings=layout,
  )


def _words(
  x: Any, xp: Any, corner: tuple[int, ...] | None = None
) -> tuple[Any, Any]:
  """Returns two uint32 sums over an array's bits, plain and by position."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == np.bool_:
    x = x.astype(np.uint8)
  bits = x.view(_BITS[x.dtype.itemsize]).astype(np.uint32)
  # Weights differ by position, so that swapped values are detected as well.
  weight = xp.ones((1,) * bits.ndim, np.uint32)
  for axis, size in enumerate(bits.shape):
    shape = [1] * bits.ndim
    shape[axis] = size
    first = corner[axis] if corner else 0
    places = xp.arange(first, first + size, dtype=np.uint32)
    weight = weight * _SPREAD + places.reshape(shape)
  # With odd weights one flipped bit always changes the sum.
  weight = weight | np.uint32(1)
  return bits.sum(dtype=np.uint32), (bits * weight).sum(dtype=np.uint32)
