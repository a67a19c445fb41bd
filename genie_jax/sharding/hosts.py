"""Many processes: which rows each reads, and local batches made global."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Share:
  """Which rows of every global batch this process reads.

  Processes that hold the same clips, because a clip is split over them
  (tensor or frame axis), have the same share.

  Attributes:
    index: Number of the share.
    count: Number of different shares; each holds batch_size / count rows.
  """
  index: int = 0
  count: int = 1


def share(mesh: Mesh) -> Share:
  """Returns this process's share of the rows of a batch on `mesh`.

  Raises:
    UserError: The process's devices do not hold one run of rows, so that no
      plain loader could feed them.
  """
  ways = mesh_lib.batch_ways(mesh)
  groups = mesh.devices.reshape(ways, -1)
  here = jax.process_index()
  mine = [row for row in range(ways)
          if any(device.process_index == here for device in groups[row])]
  size = len(mine)
  if mine != list(range(mine[0], mine[0] + size)) or mine[0] % size or (
      ways % size):
    raise errors.UserError(
        f"config.mesh gives process {here} the batch rows {mine} of {ways}, "
        "not one aligned run; make tensor x frame divide, or be a multiple "
        "of, the devices of a process.")
  return Share(mine[0] // size, ways // size)


def to_global(
    batch: Mapping[str, np.ndarray],
    shardings: Mapping[str, NamedSharding],
    local: Share,
) -> dict[str, jax.Array]:
  """Starts the transfer of a process's rows and returns global arrays.

  Args:
    batch: Name -> local rows [B / local.count, ...] in host memory.
    shardings: Name -> layout of the global array.
    local: This process's share.

  Returns:
    Name -> array [B, ...]. The transfer may still be under way.
  """
  batch = {name: batch[name] for name in shardings}
  if jax.process_count() == 1:
    return jax.device_put(batch, dict(shardings))
  return {
      name: _assemble(rows, shardings[name], local)
      for name, rows in batch.items()}


def _assemble(
    rows: np.ndarray, sharding: NamedSharding, local: Share
) -> jax.Array:
  shape = (len(rows) * local.count, *rows.shape[1:])
  first = len(rows) * local.index

  def cut(index):
    start, stop, _ = index[0].indices(shape[0])
    return rows[(slice(start - first, stop - first), *index[1:])]

  return jax.make_array_from_callback(shape, sharding, cut)


def barrier(name: str) -> None:
  """Waits until every process is here; `name` is shown when one is not."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(everywhere: bool) -> bool:
  """Returns True where every process says True."""
  if jax.process_count() == 1:
    return everywhere
  return bool(multihost_utils.process_allgather(np.array(everywhere)).all())


def together(make: Callable[[], _T]) -> _T:
  """Returns `make()` where it succeeds on every process.

  Where one process cannot read what it needs, the others would wait for it
  until they take it for dead.

  Raises:
    UserError: That of `make`, or where only other processes raised one.
  """
  made, mistake = None, None
  try:
    made = make()
  except errors.UserError as error:
    mistake = error
  if agree(mistake is None):
    return made
  raise mistake or errors.UserError(
      "Another process of this run could not start; the last line of its log "
      "says why.")


def check_same(number: int, what: str, remedy: str) -> None:
  """Raises where processes do not have the same number.

  Args:
    number: For example the newest checkpoint that this process sees.
    what: What it is, for the message.
    remedy: What to do, for the message.

  Raises:
    UserError: The numbers differ; on every process.
  """
  if jax.process_count() == 1:
    return
  found = multihost_utils.process_allgather(np.array(number, np.int32))
  if (found != found[0]).any():
    other = int(np.argmax(found != found[0]))
    raise errors.UserError(
        f"{what} is {int(found[0])} on process 0, but {int(found[other])} on "
        f"process {other}; {remedy}")
