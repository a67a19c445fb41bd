"""Finds chips whose copies of an array differ.

On most meshes several chips hold the same part of an array and compute the same
updates of it. A chip that computes wrongly without any error (silent data
corruption) shows in its copy, long before it shows in the loss.
"""

import collections
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genie_jax.checkpoints import fingerprint
from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import param_tree

Device = Any  # jax.Device, which is no type.


class Differ(errors.RunFailed):
  """Chips that must hold the same values do not."""


def check(tree: Any, step: int) -> None:
  """Compares all copies of all arrays by checksums; called on all processes.

  Each chip reads its arrays once and computes two 32-bit sums for each, which
  find every single flipped bit. The copies themselves are not moved.

  Args:
    tree: JAX arrays on one mesh.
    step: The step, for the message.

  Raises:
    Differ: Copies differ; names the array and the chips in the minority, or
      all of them where there is none.
  """
  flat = {
    param_tree.path_name(path): x
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }
  layouts = {name: x.sharding for name, x in flat.items()}
  mesh = next(iter(layouts.values())).mesh
  if mesh.size == 1:
    return
  specs = tuple((name, layout.spec) for name, layout in layouts.items())
  sums = jax.device_get(_compiled(mesh, specs)(flat))
  bad: dict[str, list[Device]] = {}
  for number, (name, x) in enumerate(flat.items()):
    devices = _odd_ones(mesh, layouts[name], x.shape, sums[:, number])
    if devices:
      bad[name] = devices
  if bad:
    raise Differ(_message(bad, len(flat), step))


@functools.lru_cache
def _compiled(mesh: Mesh, specs: tuple[tuple[str, PartitionSpec], ...]):
  """Returns the jitted sums, uint32 [devices, arrays, 2], on all processes."""

  def local(flat: Mapping[str, jax.Array]) -> jax.Array:
    words = [fingerprint.words(flat[name]) for name, _ in specs]
    return jnp.array(words, jnp.uint32)[None]

  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(dict(specs),),
      out_specs=PartitionSpec(mesh.axis_names),
      check_vma=False,
    ),
    out_shardings=mesh_lib.replicated(mesh),
  )


def _odd_ones(
  mesh: Mesh, layout: NamedSharding, shape: tuple[int, ...], sums: np.ndarray
) -> list[Device]:
  """Returns the devices whose part differs from that of most others.

  Args:
    mesh: The mesh.
    layout: Layout of the array.
    shape: Shape of the array.
    sums: Checksums by device, uint32 [devices, 2].
  """
  found: dict[str, list[tuple[Device, tuple]]] = collections.defaultdict(list)
  parts = layout.devices_indices_map(shape)
  for device, words in zip(mesh.devices.flat, sums, strict=True):
    found[str(parts[device])].append((device, tuple(words)))
  odd = []
  for copies in found.values():
    counts = collections.Counter(words for _, words in copies).most_common()
    if len(counts) == 1:
      continue
    (usual, most), (_, next_most) = counts[:2]
    if most == next_most:
      odd += [device for device, _ in copies]
    else:
      odd += [device for device, words in copies if words != usual]
  return odd


def _message(
  bad: Mapping[str, list[Device]], num_arrays: int, step: int
) -> str:
  devices = {device.id: device for found in bad.values() for device in found}
  names = ", ".join(
    f"{device} of process {device.process_index}"
    for _, device in sorted(devices.items())
  )
  return (
    f"At step {step} the copies of {len(bad)} of {num_arrays} arrays differ "
    f"between chips, for example {next(iter(bad))}; odd are {names}. A chip, "
    "its memory or its links are faulty. This step is not saved; run the same "
    "command to resume from the last checkpoint, without this host if it "
    "happens again."
  )
