"""Runs with several processes: shares of a batch, global arrays, agreement."""

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
  """The rows of every global batch that this process reads.

  A batch is divided into equal parts, one for each group of devices along the
  batch axes of the mesh. The devices of a process need not be neighbours in the
  mesh: the devices of a TPU host are a block of the torus, which a mesh axis
  may cross several times. Processes that hold the same clips, because a clip is
  split over them (axes tensor and frame), have the same share.

  Attributes:
    parts: Indices of the parts that this process reads, in order.
    count: Number of parts of a batch.
  """

  parts: tuple[int, ...] = (0,)
  count: int = 1

  def rows(self, batch_size: int) -> int:
    """Returns the number of rows of a global batch that this process reads."""
    return batch_size // self.count * len(self.parts)


def share(mesh: Mesh, process: int | None = None) -> Share:
  """Returns the share of a batch that a process reads.

  Args:
    mesh: The device mesh.
    process: Index of the process; this one by default.
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
  """Starts the transfer of this process's rows and returns global arrays.

  Args:
    batch: Name -> local rows [local.rows(B), ...] in host memory, ordered by
      part.
    shardings: Name -> layout of the global array.
    local: This process's share.

  Returns:
    Name -> array [B, ...]. The transfer may still be in progress.
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
  """Returns the global array whose local rows are given."""
  size = len(rows) // len(local.parts)  # Rows of a part.
  shape = (size * local.count, *rows.shape[1:])

  def rows_of_device(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None  # The array has at least one dimension.
    start, stop, _ = index[0].indices(shape[0])
    # All rows of a device belong to one part.
    first = local.parts.index(start // size) * size + start % size
    return rows[(slice(first, first + stop - start), *index[1:])]

  return jax.make_array_from_callback(shape, sharding, rows_of_device)


def barrier(name: str) -> None:
  """Waits until every process calls this.

  Args:
    name: Shown in the error message if a process does not call it.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def agree(value: bool) -> bool:
  """Returns whether the value is True on every process."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).all())


def gather(value: float) -> np.ndarray:
  """Returns the values of all processes, float32 [processes]."""
  return np.atleast_1d(
    np.asarray(multihost_utils.process_allgather(np.float32(value)))
  )


def together(make: Callable[[], _T]) -> _T:
  """Returns `make()` if it succeeds on every process, else raises on all.

  Without this, the other processes would wait for one that failed until its
  heartbeat times out.

  Raises:
    UserError: `make` raised it here or on another process.
  """
  try:
    made = make()
  except errors.UserError:
    agree(False)
    raise
  if agree(True):
    return made
  raise errors.UserError(
    "Another process of this run could not start; the last line of its log "
    "gives the reason."
  )


def check_same(number: int, what: str, remedy: str) -> None:
  """Raises, on every process, unless all have the same number.

  Args:
    number: For example the step of the newest checkpoint that this process
      finds.
    what: Description of the number, for the message.
    remedy: How to fix a difference, for the message.

  Raises:
    UserError: The numbers differ.
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
