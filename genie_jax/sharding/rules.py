"""Logical axis names, and the table that maps them to mesh axes.

Models name the meaning of a dimension ("embed") and never a mesh axis ("fsdp"),
so this table alone determines the layout of every model. The four mesh axes are

  data    replicas of the parameters, across slices first
  fsdp    parameters and optimizer state split over replicas (ZeRO-3)
  tensor  heads, MLP columns and vocabulary split inside a layer
  frame   frames (T) split in spatial layers, tokens of a frame (N) split in
          temporal layers, so that a batch can use more chips than it has clips
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, PartitionSpec

from genie_jax.core import errors

MESH_AXES = ("data", "fsdp", "tensor", "frame")

# Mesh axes that split the clips of a batch.
BATCH_AXES = ("data", "fsdp")

RULES: dict[str, tuple[str, ...]] = {
  # Weights.
  "layers": (),  # scanned: every device runs every layer
  # Chips along frame would otherwise hold the same weights.
  "embed": ("fsdp", "frame"),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "head_dim": (),
  "norm": (),  # a few kB: gathering would cost more than splitting saves
  "vocab": ("tensor",),
  "table": (),  # rows of lookup tables: a lookup gathers a split table
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
    axes: One logical name for each dimension; None if it is never split.

  Raises:
    ValueError: A name is not in the table, or two names map to the same mesh
      axis. Ignoring one of them silently would hide a slow layout.
  """
  entries: list[tuple[str, ...] | None] = []
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
          f"both map to mesh axis {mesh_axis!r}; give None for the one that "
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

  XLA would silently split such a dimension over fewer devices and replicate the
  work.

  Args:
    shape: The array's shape.
    axes: Its logical axes, one for each dimension.
    sizes: Mesh axis -> number of devices.
    what: Description of the array, for the message.

  Raises:
    ValueError: The numbers of dimensions and of axes differ.
    UserError: A dimension does not split evenly.
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
  """Constrains an activation to the layout of its logical axes.

  The names are checked even if no mesh is set, so that a misspelt axis raises
  an error on one device too.

  Args:
    x: Any array, inside a jitted function.
    axes: One logical name or None for each dimension of `x`.

  Returns:
    `x`, constrained if a mesh is set.
  """
  layout = spec(axes)
  mesh = _mesh()
  if mesh is None:
    return x
  check_divides(x.shape, axes, mesh.shape, "an activation")
  return jax.lax.with_sharding_constraint(x, layout)


def gather(weight: jax.Array, axes: Sequence[str | None]) -> jax.Array:
  """Gathers a weight over fsdp and frame (ZeRO-3); tensor still splits it.

  Without this constraint, the partitioner sometimes moves the activations of
  small layers to the shards of their weights instead. The gradient gets the
  layout of the stored weight, so gradients are reduce-scattered and not summed
  on every device.

  Args:
    weight: A weight in the layout of its axes.
    axes: Its logical axes.
  """
  if not is_split():
    return weight
  gathered_axes = [None if name == "embed" else name for name in axes]

  @jax.custom_vjp
  def gathered(weight: jax.Array) -> jax.Array:
    return constrain(weight, gathered_axes)

  gathered.defvjp(
    lambda weight: (constrain(weight, gathered_axes), None),
    lambda _, grad: (constrain(grad, axes),),
  )
  return gathered(weight)


def is_split() -> bool:
  """Returns whether the current mesh has several devices.

  The current mesh is the one that is set while a function is traced. A layer
  may choose another formulation for several devices.
  """
  mesh = _mesh()
  return mesh is not None and mesh.size > 1


def ways(axis: str) -> int:
  """Returns the number of devices that the current mesh splits an axis over.

  Args:
    axis: A logical axis.
  """
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
  """Returns the platform a function is traced for: "tpu", "gpu" or "cpu".

  It is the platform of the current mesh, whose chips need not be attached (see
  `genie plan`), or else of the default device.
  """
  name = _device().platform
  return "gpu" if name in ("cuda", "rocm") else name


def device_kind() -> str:
  """Returns JAX's `device_kind` of the devices a function is traced for."""
  return _device().device_kind


def _device() -> Any:
  """Returns the abstract device of the current mesh, or the default device."""
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.abstract_device is not None:
    return mesh.abstract_device
  return jax.devices()[0]


def per_device(
  function: Callable[..., jax.Array],
  inputs: Sequence[Sequence[str | None]],
  output: Sequence[str | None],
) -> Callable[..., jax.Array]:
  """Returns a function that runs `function` on each device's shards.

  This is for kernels that the compiler cannot partition. The arguments are
  first brought into the layout of their axes; the devices exchange nothing
  while `function` runs.

  Args:
    function: Takes and returns local arrays.
    inputs: Logical axes of each argument.
    output: Logical axes of the result.
  """
  if not is_split():
    return function
  mesh = jax.sharding.get_abstract_mesh()

  def mapped(*arrays: jax.Array) -> jax.Array:
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
