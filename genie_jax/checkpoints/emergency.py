"""Emergency checkpoints: the state on the hosts' own disks, every few steps.

Writing a large state to the workdir takes a while, so it is done rarely. With
two or more replicas of the state, for example one per slice, hosts also save it
on their own disks or in memory, which is fast. If a host or a slice is lost and
the run starts again, a replica whose hosts all still have their part sends it
to the others, and only a few steps are repeated.

Orbax's emergency manager writes, finds and sends the copies. It saves one tree
of arrays, on all replicas but the first. The rest of a checkpoint, such as the
position in the data, is JSON of a few hundred bytes and is saved as an array of
that tree.

Copies serve a restart of the same command on the same number of processes. The
name of their folder depends on both, so others are not found.
"""

import hashlib
import json
import pathlib
import shutil
import socket
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import flags, logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint._src.futures import synchronization
from orbax.checkpoint.experimental.emergency import checkpoint_manager

from genie_jax.checkpoints import fingerprint, reader
from genie_jax.core import buckets, errors
from genie_jax.core import config as config_lib
from genie_jax.sharding import hosts

_FORMAT = 1  # Part of the folder's name: copies of others are not found.
_NOTE_BYTES = 1 << 14
_AXIS = "replica"

Tree = Any
# Trees by name and the note of a checkpoint; None without checkpoint.
_Restored = tuple[dict[str, Tree], dict[str, Any]] | None


def replicas(mesh: Mesh) -> int:
  """Returns the number of groups of processes that hold the whole state each.

  The axis `data` of the mesh has the replicas of the state. Neighbours count as
  one group if a process has devices of both.
  """
  rows = [{device.process_index for device in row.flat} for row in mesh.devices]
  for count in range(len(rows), 0, -1):
    if len(rows) % count:
      continue
    size = len(rows) // count
    groups = [
      set().union(*rows[first : first + size])
      for first in range(0, len(rows), size)
    ]
    if sum(map(len, groups)) == len(set().union(*groups)):
      return count
  raise AssertionError("One group holds all processes.")


def opened(
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  started: float,
  mesh: Mesh,
  like: Mapping[str, Tree],
) -> "EmergencyCheckpoints | NoCopies":
  """Returns the emergency checkpoints that a config asks for.

  All processes must call this together.

  Args:
    config: The whole config; `emergency_every` is the number of steps between
      copies, 0 for none, and `emergency_folder` a folder on each host.
    workdir: The run's folder.
    started: Time of the first start, which tells this run from others in the
      same workdir. Only that of process 0 is used.
    mesh: The device mesh.
    like: Abstract trees by name with their layouts.

  Raises:
    UserError: The folder is not on a disk, or there is one replica only.
  """
  if not config.get("emergency_every", 0):
    return NoCopies()
  folder = config.emergency_folder
  if not folder or buckets.is_remote(folder):
    raise errors.UserError(
      f"config.emergency_folder is {folder!r}; use a folder on each host's own "
      "disk or in its memory, or set config.emergency_every=0."
    )
  if replicas(mesh) < 2:
    raise errors.UserError(
      "config.emergency_every needs two groups of processes that hold the "
      f"whole state each, but config.mesh.data is {mesh.shape['data']} on "
      f"{jax.process_count()} process(es); set config.mesh.data to the number "
      "of slices, or config.emergency_every=0."
    )
  run = f"{started} {config_lib.fingerprint(config_lib.to_dict(config))}"
  return EmergencyCheckpoints(
    folder, config.emergency_every, workdir, run, mesh, like
  )


class NoCopies:
  """No emergency checkpoints; `EmergencyCheckpoints` describes the methods."""

  def is_due(self, step: int) -> bool:
    """Returns False."""
    del step
    return False

  def save(self, fields: Any, data: Any, note: Any) -> None:
    """Does nothing."""

  def settle(self) -> None:
    """Does nothing."""

  def newer(self, restored: _Restored, data: Any) -> _Restored:
    """Returns `restored`."""
    del data
    return restored

  def close(self, finished: bool) -> None:
    """Does nothing."""


class EmergencyCheckpoints:
  """Saves and restores copies of the state on the hosts' own disks.

  All processes must call each method together.
  """

  def __init__(
    self,
    folder: str,
    every: int,
    workdir: epath.Path,
    run: str,
    mesh: Mesh,
    like: Mapping[str, Tree],
  ):
    """Opens the copies of a run.

    Args:
      folder: Folder on each host.
      every: Number of steps between copies.
      workdir: The run's folder.
      run: What tells this run from others in the same workdir.
      mesh: The device mesh, with two or more replicas.
      like: Abstract trees by name with their layouts.
    """
    count = replicas(mesh)
    self._every = every
    self._like = dict(like)
    self._mesh = Mesh(
      mesh.devices.reshape(count, -1, *mesh.devices.shape[1:]),
      (_AXIS, *mesh.axis_names),
      axis_types=(mesh.axis_types[0], *mesh.axis_types),
    )
    self._bytes = _bytes_here(like, mesh)
    owner, name = _names(workdir, run, mesh)
    base = pathlib.Path(folder).absolute()
    self._folder = base / f"{owner}-{name}" / str(_rank_on_host())
    hosts.together(lambda: self._make_folder(base, owner))
    # Orbax would save the whole state here as well, but is never asked to.
    self._unused = base / f"{owner}-{name}" / "unused"
    self._works, self._failure = True, ""
    _prepare_orbax()
    self._manager = self._open()

  def _make_folder(self, base: pathlib.Path, owner: str) -> None:
    try:
      for other in base.glob(f"{owner}-*"):
        if other != self._folder.parent:
          shutil.rmtree(other, ignore_errors=True)
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.UserError(
        f"config.emergency_folder: {base} cannot be used on process "
        f"{jax.process_index()} ({error}); use another folder."
      ) from error

  def _open(self) -> checkpoint_manager.CheckpointManager:
    self._unused.mkdir(exist_ok=True)
    never, always = (lambda step, last: False), (lambda step, last: True)
    return checkpoint_manager.CheckpointManager(
      local_directory=self._folder,
      persistent_directory=self._unused,
      global_mesh=self._mesh,
      abstract_state=self._abstract(),
      options=checkpoint_manager.CheckpointManagerOptions(
        local=checkpoint_manager.LocalCheckpointOptions(
          should_save_fn=always, max_to_keep=1
        ),
        persistent=checkpoint_manager.PersistentCheckpointOptions(
          should_save_fn=never
        ),
        replica_axis_index=0,
      ),
    )

  def is_due(self, step: int) -> bool:
    """Returns whether there is to be a copy of this step."""
    return step % self._every == 0

  def save(
    self, fields: Mapping[str, Tree], data: Any, note: Mapping[str, Any]
  ) -> None:
    """Starts writing a copy, and returns.

    A copy that cannot be written does not end the run: there are no more copies
    until the next start, and a warning says why.

    Args:
      fields: Trees of arrays by name, including the scalar "step".
      data: Iterator with `get_state()`, see `manager.Checkpoints.save`.
      note: JSON to store next to the arrays. That of process 0 is stored.
    """
    if not self._works:
      return
    problem = self._failure or self._problem()
    if not hosts.agree(not problem):
      self._works = False
      logging.warning(
        "No more emergency checkpoints until the next start: %s.",
        problem or "another process cannot write them",
      )
      return
    note = {
      **{name: note[name] for name in note if name != "config"},
      "iterator": data.get_state(),
      "fingerprint": _joint_fingerprint(fields),
    }
    tree = {"fields": jax.tree.map(_plain, dict(fields))}
    tree["note"] = self._whole(_encoded(note))
    self._manager.save(
      int(fields["step"]),
      args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)),
    )

  def settle(self) -> None:
    """Waits for the last copy; must be called before a save to the workdir.

    Orbax numbers its operations in each process and waits only for operations
    of the same number. Processes of the first replica write no copies, so their
    numbers fall behind.
    """
    self._failure = self._failure or self._problem()
    numbers = synchronization.OperationIdGenerator
    here = int(numbers.get_current_operation_id())
    most = multihost_utils.process_allgather(np.array(here, np.int32)).max()
    for _ in range(here, int(most)):
      numbers.next_operation_id()

  def _problem(self) -> str:
    """Waits for the last copy; returns why there cannot be another, or ""."""
    try:
      self._manager.wait_until_finished()
      free = shutil.disk_usage(self._folder).free
    except Exception as error:
      return f"{self._folder}: {reader.one_line(error)}"
    if free < self._bytes:
      return (
        f"{self._folder} has {free / 1e9:.1f} GB free, and a copy needs "
        f"{self._bytes / 1e9:.1f} GB on this host"
      )
    return ""

  def newer(self, restored: _Restored, data: Any) -> _Restored:
    """Returns the newest whole copy if it is newer than a checkpoint.

    Other copies are deleted.

    Args:
      restored: Result of `manager.Checkpoints.restore`.
      data: Iterator with `set_state()`, which is set to the copy's state.

    Returns:
      The trees by name and the note of the copy, or `restored`.

    Raises:
      RunFailed: This process cannot read its copy, which is deleted.
    """
    step = int(restored[0]["step"]) if restored else 0
    newest = self._newest()
    if newest is None or newest <= step:
      self._delete()
      return restored
    tree = self._read(newest)
    fields = jax.tree.map(_like, self._like, tree["fields"])
    note = json.loads(_bytes(tree["note"]))
    if note["fingerprint"] != _joint_fingerprint(fields):
      logging.warning(
        "The emergency checkpoint of step %d is damaged and is not used.",
        newest,
      )
      self._delete()
      return restored
    data.set_state(note["iterator"])
    logging.info(
      "Emergency checkpoint of step %d found; the workdir's newest is of step "
      "%d.",
      newest,
      step,
    )
    return fields, note

  def _newest(self) -> int | None:
    """Returns the newest step of which a replica has all parts."""
    return max(self._manager.all_steps(), default=None)

  def _read(self, step: int) -> dict[str, Tree]:
    try:
      return self._manager.restore(step).state
    except jax.errors.JaxRuntimeError:
      raise  # Another process has failed: this one's copy may be whole.
    except Exception as error:
      shutil.rmtree(self._folder, ignore_errors=True)
      raise errors.RunFailed(
        f"The emergency checkpoint of step {step} in {self._folder} cannot be "
        f"read on process {jax.process_index()} ({reader.one_line(error)}); it "
        "was deleted, and the same command resumes from the workdir."
      ) from error

  def _delete(self) -> None:
    """Deletes all copies, because Orbax saves no step before the newest."""
    self._manager.close()
    shutil.rmtree(self._folder, ignore_errors=True)
    self._folder.mkdir(parents=True, exist_ok=True)
    hosts.barrier("emergency checkpoints deleted")
    self._manager = self._open()
    self.settle()

  def close(self, finished: bool) -> None:
    """Waits for the last copy; deletes those of a run that has finished."""
    self.settle()
    self._manager.close()
    if finished:
      shutil.rmtree(self._folder, ignore_errors=True)

  def _abstract(self) -> dict[str, Tree]:
    """Returns the shapes, dtypes and layouts of a copy, on Orbax's mesh."""

    def leaf(x):
      layout = NamedSharding(self._mesh, x.sharding.spec)
      if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)

    note = jax.ShapeDtypeStruct(
      (_NOTE_BYTES,), np.uint8, sharding=self._replicated()
    )
    return {"fields": jax.tree.map(leaf, self._like), "note": note}

  def _replicated(self) -> NamedSharding:
    return NamedSharding(self._mesh, PartitionSpec())

  def _whole(self, values: np.ndarray) -> jax.Array:
    """Returns process 0's values as an array that every device holds."""
    values = np.asarray(multihost_utils.broadcast_one_to_all(values))
    return jax.make_array_from_callback(
      values.shape, self._replicated(), lambda index: values[index]
    )


def _prepare_orbax() -> None:
  """Tells Orbax how processes and devices are numbered, once per process."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  multihost = ocp.multihost
  if not multihost.is_runtime_to_distributed_ids_initialized():
    multihost.initialize_runtime_to_distributed_ids()
    multihost.initialize_distributed_to_device_ids()


def _names(workdir: epath.Path, run: str, mesh: Mesh) -> tuple[str, str]:
  """Returns the names of a workdir and of a run with its layout."""
  layout = [_FORMAT, run, jax.process_count(), dict(mesh.shape)]
  digests = [
    hashlib.sha256(text.encode()).digest()[:6]
    for text in (str(workdir), json.dumps(layout))
  ]
  both = np.frombuffer(b"".join(digests), np.uint8)
  text = _bytes(multihost_utils.broadcast_one_to_all(both)).hex()
  return f"genie-{text[:12]}", text[12:]


def _rank_on_host() -> int:
  """Returns the number of this process among those of its host."""
  name = hashlib.sha256(socket.gethostname().encode()).digest()
  found = multihost_utils.process_allgather(np.frombuffer(name, np.uint8))
  here = jax.process_index()
  same = (np.asarray(found).reshape(-1, len(name)) == found[here]).all(-1)
  return int(same[:here].sum())


def _bytes_here(like: Mapping[str, Tree], mesh: Mesh) -> int:
  """Returns the size of this process's part of a copy."""
  devices = jax.local_device_count()
  return sum(
    devices
    * int(np.prod(x.sharding.shard_shape(x.shape)))
    * (8 if _is_key(x) else x.dtype.itemsize)
    for x in jax.tree.leaves(dict(like))
  )


def _is_key(x: Any) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _plain(x: jax.Array) -> jax.Array:
  """Returns an array that Orbax can store: keys become integers."""
  if not _is_key(x):
    return x
  return jax.jit(jax.random.key_data, out_shardings=x.sharding)(x)


def _like(like: Any, x: jax.Array) -> jax.Array:
  """Returns an array of Orbax's mesh in the layout of the run's mesh."""
  parts = {shard.device: shard.data for shard in x.addressable_shards}
  found = jax.make_array_from_single_device_arrays(
    x.shape,
    NamedSharding(like.sharding.mesh, like.sharding.spec),
    [parts[device] for device in like.sharding.addressable_devices],
  )
  if not _is_key(like):
    return found
  return jax.jit(jax.random.wrap_key_data, out_shardings=like.sharding)(found)


def _encoded(note: Mapping[str, Any]) -> np.ndarray:
  """Returns JSON as bytes with blanks at the end, uint8 [_NOTE_BYTES]."""
  data = json.dumps(note).encode()
  if len(data) > _NOTE_BYTES:
    raise ValueError(f"A note of {len(data)} bytes; {_NOTE_BYTES} are allowed.")
  return np.frombuffer(data.ljust(_NOTE_BYTES), np.uint8)


def _bytes(values: Any) -> bytes:
  """Returns the content of an array that every device holds, uint8 [N]."""
  if isinstance(values, jax.Array):
    values = values.addressable_shards[0].data
  return np.asarray(values).astype(np.uint8).tobytes()


def _joint_fingerprint(fields: Mapping[str, Tree]) -> str:
  found = json.dumps(fingerprint.arrays(dict(fields)), sort_keys=True)
  return hashlib.sha256(found.encode()).hexdigest()
