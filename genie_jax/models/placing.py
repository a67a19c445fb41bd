"""Where the parameters of a loaded model go: one device, or a mesh."""

from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Mesh, NamedSharding

from genie_jax.core import errors
from genie_jax.models import leaves, saved
from genie_jax.nn import quantized
from genie_jax.sharding import rules


def make(dtype: str | None = None, mesh: Mesh | None = None) -> saved.Place:
  """Returns what puts each parameter straight to its device or devices.

  Host memory holds one parameter at a time, on a mesh one device's part of it.

  Args:
    dtype: How matrices of transformer layers are held: "float32" (or None),
      "bfloat16" or "int8". All else is float32, as tables and norms are added
      to and multiplied with what is float32.
    mesh: With the axes of `rules.MESH_AXES`; None for the default device.

  Raises:
    UserError: The dtype is unknown or the mesh is of another kind.
  """
  if dtype is not None and dtype not in saved.DTYPES:
    raise errors.UserError(
        f"dtype={dtype!r} is unknown{errors.closest(str(dtype), saved.DTYPES)}"
        f"; use one of {', '.join(saved.DTYPES)}.")
  if mesh is not None and tuple(mesh.axis_names) != rules.MESH_AXES:
    raise errors.UserError(
        f"mesh has the axes {', '.join(map(str, mesh.axis_names))}; make one "
        f"with {', '.join(rules.MESH_AXES)} (genie_jax.sharding.mesh.make).")

  def place(path: str, leaf: Any, axes: tuple[str | None, ...]) -> Any:
    contracted = quantized.layer_kernels(path, tuple(leaf.shape))
    if contracted is None or dtype in (None, "float32"):
      return _put(path, leaf, axes, mesh, np.dtype(np.float32))
    if dtype == "bfloat16":
      return _put(path, leaf, axes, mesh, np.dtype(ml_dtypes.bfloat16))
    if not isinstance(leaf, quantized.Int8):
      leaf = leaves.integers(leaf, contracted)
    # An axis that shares one scale cannot be split.
    scale_axes = tuple(
        None if i in contracted else name for i, name in enumerate(axes))
    return quantized.Int8(
        _put(path, leaf.values, axes, mesh, np.dtype(np.int8)),
        _put(path, leaf.scales, scale_axes, mesh, np.dtype(np.float32)))

  return place


def _put(
    path: str, leaf: Any, axes: tuple[str | None, ...], mesh: Mesh | None,
    dtype: np.dtype,
) -> jax.Array:
  if mesh is None:
    return jax.device_put(leaves.host(leaf, dtype))
  rules.check_divides(leaf.shape, axes, mesh.shape, path)
  return jax.make_array_from_callback(
      tuple(leaf.shape), NamedSharding(mesh, rules.spec(axes)),
      lambda index: leaves.part(leaf, index, dtype))
