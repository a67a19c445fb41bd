"""The device mesh, which always has the same four axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genie_jax.core import errors
from genie_jax.sharding import rules


def sizes(config: Mapping[str, int], num_devices: int) -> dict[str, int]:
  """Returns the size of every mesh axis.

  Args:
    config: `config.mesh`: the sizes of data, fsdp, tensor and frame. One of
      them may be -1: that axis gets all remaining devices.
    num_devices: Number of devices of the mesh.

  Raises:
    UserError: An axis is unknown or missing, or the product of the sizes is not
      the number of devices.
  """
  found = dict(config)
  for name in found:
    if name not in rules.MESH_AXES:
      raise errors.UserError(
        f"config.mesh.{name} is not a mesh axis"
        f"{errors.closest(name, rules.MESH_AXES)}; the axes are "
        f"{', '.join(rules.MESH_AXES)}."
      )
  for name in rules.MESH_AXES:
    if name not in found:
      raise errors.UserError(
        f"config.mesh lacks the axis {name!r}; set it to 1 if it is unused."
      )
    if found[name] < 1 and found[name] != -1:
      raise errors.UserError(
        f"config.mesh.{name} is {found[name]}; give a positive size, or -1 "
        "for all remaining devices."
      )
  free = [name for name, size in found.items() if size == -1]
  fixed = math.prod(size for size in found.values() if size != -1)
  if len(free) > 1:
    raise errors.UserError(
      f"config.mesh has -1 for {' and '.join(free)}; only one axis can be -1 "
      "and get the remaining devices."
    )
  if free and num_devices % fixed == 0:
    found[free[0]] = num_devices // fixed
  if math.prod(found.values()) != num_devices:
    text = ", ".join(f"{name}={found[name]}" for name in rules.MESH_AXES)
    raise errors.UserError(
      f"config.mesh ({text}) needs a multiple of {fixed} devices, but there "
      f"are {num_devices}; change config.mesh."
      if free
      else f"config.mesh ({text}) multiplies to {fixed} devices, but there are "
      f"{num_devices}; change config.mesh, or set one axis to -1."
    )
  return {name: found[name] for name in rules.MESH_AXES}


def arrange(devices: Sequence[Any], shape: Mapping[str, int]) -> np.ndarray:
  """Arranges devices so that axes with much traffic use the fast links.

  Slices communicate over the data-centre network, which is slower than the
  interconnect of the chips of one slice. Only the axis `data` is split over
  slices: it exchanges gradients once per step, whereas the other axes exchange
  data in every layer.

  Args:
    devices: All devices of the mesh.
    shape: Size of each mesh axis, from `sizes`.

  Returns:
    Devices as an array [data, fsdp, tensor, frame].

  Raises:
    UserError: The axis `data` is not a multiple of the number of slices.
  """
  dims = tuple(shape[name] for name in rules.MESH_AXES)
  # The slice index of a GPU is that of its host and does not matter here.
  slices = {
    getattr(device, "slice_index", 0)
    for device in devices
    if device.platform == "tpu"
  } or {0}
  if len(slices) == 1:
    # Allows an axis to use a part of a torus dimension, such as 2 of 8 chips.
    return mesh_utils.create_device_mesh(
      dims, devices=list(devices), allow_split_physical_axes=True
    )
  if dims[0] % len(slices):
    raise errors.UserError(
      f"config.mesh.data is {dims[0]}, which does not split over "
      f"{len(slices)} slices; make it a multiple."
    )
  return mesh_utils.create_hybrid_device_mesh(
    (dims[0] // len(slices), *dims[1:]),
    (len(slices), 1, 1, 1),
    devices=list(devices),
    allow_split_physical_axes=True,
  )


def make(
  config: Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns the mesh that `config.mesh` describes.

  The axes have the type Auto, because Linen modules do not work with the type
  Explicit, which `jax.make_mesh` would use.

  Args:
    config: `config.mesh`, see `sizes`.
    devices: Defaults to all devices of all processes.
  """
  devices = jax.devices() if devices is None else devices
  shape = sizes(config, len(devices))
  return Mesh(
    arrange(devices, shape),
    rules.MESH_AXES,
    axis_types=(AxisType.Auto,) * len(rules.MESH_AXES),
  )


def without_frames(mesh: Mesh) -> Mesh:
  """Returns a mesh of the same devices whose axis frame has size 1.

  Sampling draws one frame at a time, so frames cannot be split. The axis frame
  is merged into fsdp, so that every parameter stays on the same devices.
  """
  data, fsdp, tensor, frame = mesh.devices.shape
  devices = mesh.devices.transpose(0, 1, 3, 2).reshape(
    data, fsdp * frame, tensor, 1
  )
  return Mesh(devices, rules.MESH_AXES, axis_types=mesh.axis_types)


def sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
  """Returns the layout of an array with these logical axes."""
  return NamedSharding(mesh, rules.spec(axes))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the layout that keeps a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
  """Returns the number of groups of devices that a batch is split over."""
  return math.prod(mesh.shape[name] for name in rules.BATCH_AXES)
