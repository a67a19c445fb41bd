"""Logical axis names and the one table that maps them to mesh axes.

Models name what a dimension is ("embed"), never where it lives ("fsdp"), so
one edit of this table lays every model out anew. The four mesh axes are

  data    replicas of the parameters, across slices first
  fsdp    parameters and optimizer state split over replicas (ZeRO-3)
  tensor  heads, MLP columns and vocabulary split inside a layer
  frame   T split inside spatial layers, N split inside temporal ones, so that
          more chips than clips can work on a batch
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from genie_jax.core import errors

MESH_AXES = ("data", "fsdp", "tensor", "frame")

# Mesh axes that split the clips of a batch.
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, tuple[str, ...]] = {
  # Weights.
  "layers": (),  # scanned: every device runs every layer
  # Chips that share a clip would hold the same weights: they split them too.
  "embed": ("fsdp", "frame"),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "head_dim": (),
  "norm": (),  # a few kB; gathering them would cost more than they save
  "vocab": ("tensor",),
  "table": (),  # rows that are looked up: a split table is gathered whole
  # Activations.
  "act_batch": BATCH_AXES,
  "act_time": ("frame",),
  "act_space": ("frame",),
  "act_embed": (),
  "act_heads": ("tensor",),
  "act_mlp": ("tensor",),
}


def spec(axes: Sequence[str | None]) -> PartitionSpec:
  """Returns the partition spec of an array with these logical axes.

  Args:
    axes: One logical name for each dimension; None where it is never split.

  Raises:
    ValueError: A name is not in the table, or two names want one mesh axis,
      of which silently dropping one would hide a slow layout.
  """
  entries = []
  owner: dict[str, str] = {}
  for name in axes:
    if name is None:
      entries.append(None)
      continue
    if name not in RULES:
      raise ValueError(
        f"Unknown logical axis {name!r} in {tuple(axes)}"
        f"{errors.closest(name, RULES)}; the table is "
        "genie_jax.sharding.rules.RULES."
      )
    for mesh_axis in RULES[name]:
      if mesh_axis in owner:
        raise ValueError(
          f"Logical axes {owner[mesh_axis]!r} and {name!r} of {tuple(axes)} "
          f"both map to mesh axis {mesh_axis!r}; name None for the one that "
          "is not split here."
        )
      owner[mesh_axis] = name
    entries.append(RULES[name] or None)
  return PartitionSpec(*entries)


def check_divides(
  shape: Sequence[int],
  axes: Sequence[str | None],
  sizes: Mapping[str, int],
  what: str,
) -> None:
  """Raises unless each named dimension splits evenly over its mesh axes.

  XLA would quietly split such a dimension less, and replicate the work.

  Args:
    shape: The array's shape.
    axes: Its logical axes, of the same length.
    sizes: Mesh axis name to its number of devices.
    what: How the message calls the array.
  """
  if len(shape) != len(axes):
    raise ValueError(
      f"{what} has shape {tuple(shape)} but {len(axes)} logical axes "
      f"{tuple(axes)}; name every dimension."
    )
  spec(axes)
  for dim, (size, name) in enumerate(zip(shape, axes, strict=True)):
    mesh_axes = RULES[name] if name else ()
    ways = math.prod(sizes[mesh_axis] for mesh_axis in mesh_axes)
    if size % ways:
      raise errors.UserError(
        f"Dimension {dim} ({name!r}) of {what} is {size}, which does not "
        f"split over {ways} devices of mesh axes {mesh_axes}; change that "
        "size or config.mesh."
      )


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Asks for the layout that the table gives to an activation.

  The names are checked even where no mesh is set and nothing is constrained,
  so that a misspelt axis fails on a laptop and not first on a pod.

  Args:
    x: Any array, inside a jitted function.
    axes: One logical name or None for each dimension of `x`.

  Returns:
    `x`, constrained when a mesh is set.
  """
  layout = spec(axes)
  mesh = _mesh()
  if mesh is None:
    return x
  check_divides(x.shape, axes, mesh.shape, "an activation")
  return jax.lax.with_sharding_constraint(x, layout)


def gather(weight: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Returns a weight whole but for what the axis tensor splits (ZeRO-3).

  Left to itself the partitioner sometimes moves the activations of small
  layers to the parts of their weights. The gradient comes back in the
  weight's own layout, so it is scattered and not summed everywhere.

  Args:
    weight: In the layout of its axes.
    axes: Its logical axes.
  """
  if not is_split():
    return weight
  kept = [None if name == "embed" else name for name in axes]

  @jax.custom_vjp
  def whole(weight):
    return constrain(weight, kept)

  whole.defvjp(
    lambda weight: (constrain(weight, kept), None),
    lambda _, grad: (constrain(grad, axes),),
  )
  return whole(weight)


def is_split() -> bool:
  """Returns whether the mesh in force splits arrays over devices.

  Reads what is set while a function is traced, as `constrain` does; a layer
  may choose a formulation by it that suits one device or many.
  """
  mesh = _mesh()
  return mesh is not None and mesh.size > 1


def ways(axis: str) -> int:
  """Returns over how many devices the mesh in force splits a logical axis."""
  spec((axis,))
  mesh = _mesh()
  if mesh is None:
    return 1
  return math.prod(mesh.shape[name] for name in RULES[axis])


def _mesh() -> AbstractMesh | None:
  """Returns the mesh in force if the compiler splits arrays over our axes.

  None where no mesh is set, where a program that uses these models has set one
  with axes of its own, and inside of a `shard_map`, where a function sees one
  device's part of each array.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not set(MESH_AXES) <= set(mesh.axis_names) or mesh.manual_axes:
    return None
  return mesh


def platform() -> str:
  """Returns for what a function is being traced: "tpu", "gpu" or "cpu".

  That of the mesh in force, which may be of chips that are not there (see
  `genie plan`), or of the default device.
  """
  name = _device().platform
  return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
  """Returns JAX's name of the devices that a function is being traced for."""
  return _device().device_kind


def _device():
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.abstract_device is not None:
    return mesh.abstract_device
  return jax.devices()[0]


def per_device(
  function: Callable[..., jax.Array],
  inputs: Sequence[Sequence[str | None]],
  output: Sequence[str | None],
) -> Callable[..., jax.Array]:
  """Returns `function` run by each device on its own part of the arrays.

  For kernels that the compiler cannot split. The arrays are laid out as the
  table says first; nothing is exchanged while `function` runs.

  Args:
    function: Takes and returns local arrays.
    inputs: Logical axes of each argument.
    output: Logical axes of the result.
  """
  if not is_split():
    return function
  mesh = jax.sharding.get_abstract_mesh()

  def mapped(*arrays):
    for x, axes in zip(arrays, inputs, strict=True):
      check_divides(x.shape, axes, mesh.shape, "an argument of a kernel")
    return jax.shard_map(
      function,
      mesh=mesh,
      in_specs=tuple(spec(axes) for axes in inputs),
      out_specs=spec(output),
      check_vma=False,
    )(*arrays)

  return mapped
