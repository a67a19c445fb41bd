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

  A batch is cut into equal parts, one for each group of devices that takes
  clips. The devices of a process need not be neighbours in the mesh: those of
  a TPU host are a block of the torus, which a mesh axis crosses several times.
  Processes that hold the same clips, because a clip is split over them
  (tensor or frame axis), have the same share.

  Attributes:
    parts: Numbers of the parts that this process reads, in order.
    count: Number of parts of a batch.
  """

  parts: tuple[int, ...] = (0,)
  count: int = 1

  def rows(self, batch_size: int) -> int:
    """Returns how many rows of a global batch this process reads."""
    return batch_size // self.count * len(self.parts)


def share(mesh: Mesh, process: int | None = None) -> Share:
  """Returns a process's share of the rows of a batch on `mesh`.

  Args:
    mesh: The device mesh.
    process: Which process; this one when left out.
  """
  ways = mesh_lib.batch_ways(mesh)
  here = jax.process_index() if process is None else process
  parts = tuple(
    part
    for part, group in enumerate(mesh.devices.reshape(ways, -1))
    if any(device.process_index == here for device in group)
  )
  return Share() if len(parts) == ways else Share(parts, ways)


def to_global(
  batch: Mapping[str, np.ndarray],
  shardings: Mapping[str, NamedSharding],
  local: Share,
) -> dict[str, jax.Array]:
  """Starts the transfer of a process's rows and returns global arrays.

  Args:
    batch: Name -> local rows [local.rows(B), ...] in host memory, part after
      part.
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
    for name, rows in batch.items()
  }


def _assemble(
  rows: np.ndarray, sharding: NamedSharding, local: Share
) -> jax.Array:
  size = len(rows) // len(local.parts)  # Rows of a part.
  shape = (size * local.count, *rows.shape[1:])

  def cut(index):
    start, stop, _ = index[0].indices(shape[0])
    # A device's rows lie within one part.
    first = local.parts.index(start // size) * size + start % size
    return rows[(slice(first, first + stop - start), *index[1:])]

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
    "says why."
  )


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
      f"process {other}; {remedy}"
    )
