"""Detects the processes of a run, connects them and disconnects them.

By default a run is one process. It has several if a launcher has started two or
more, which its environment variables show. The first rule that applies is used:

  1. flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  2. TPU pods on GKE and XPK: TPU_PROCESS_ADDRESSES or TPU_WORKER_HOSTNAMES,
     TPU_WORKER_ID; for several slices also MEGASCALE_*
  3. Slurm, inside srun: SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_PROCID, ...
  4. Open MPI: OMPI_COMM_WORLD_SIZE and _RANK
  5. TPU virtual machines (queued resources), which set no variables: if the
     machine has TPU chips and libtpu, its metadata server is queried; see
     `tpu_vm`

JAX's own detection is not used for two reasons: under Slurm it gives each
process one GPU even if a node has only one process, and a missing host aborts
the others with a stack trace.
"""

import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import jax
from absl import logging

from genie_jax.core import errors
from genie_jax.sharding import rendezvous, tpu_vm

HEARTBEAT_SECONDS = 60
SHUTDOWN_SECONDS = 30
INITIALIZATION_SECONDS = 300

# JAX's port on TPU pods. It is fixed, as hosts cannot negotiate one at start.
_TPU_PORT = 8482
_EXIT_DELAY_SECONDS = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run and the number of this one.

  Attributes:
    found_by: Where the values come from, for the log and for messages.
    coordinator: HOST:PORT where process 0 listens.
    num_processes: Number of processes, two or more.
    process_id: Number of this process.
    local_device_ids: GPUs of this process; None for all visible ones.
  """

  found_by: str
  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] | None = None


class CannotStart(Exception):
  """All processes are present, but JAX could not connect them.

  Attributes:
    process_id: Of this process.
  """

  def __init__(self, message: str, process_id: int):
    super().__init__(message)
    self.process_id = process_id


# The result for a launcher that started one process; later rules are skipped.
_SINGLE = Cluster("launcher", "localhost:1", 1, 0)


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  settings: rendezvous.Settings,
  *,
  initialization_timeout: int = INITIALIZATION_SECONDS,
  heartbeat_timeout: int = HEARTBEAT_SECONDS,
) -> Cluster | None:
  """Finds the processes of this run and connects to them.

  Args:
    coordinator: See `detect`.
    num_processes: See `detect`.
    process_id: See `detect`.
    settings: See `start`.
    initialization_timeout: See `start`.
    heartbeat_timeout: See `start`.

  Returns:
    The processes, or None where there is only this one.

  Raises:
    UserError: As `detect` and `start` do.
    CannotStart: As `start` does.
  """
  found = detect(coordinator, num_processes, process_id)
  if found is None:
    return None
  logging.info(
    "Process %d of %d (by %s), process 0 at %s.",
    found.process_id,
    found.num_processes,
    found.found_by,
    found.coordinator,
  )
  start(
    found,
    settings,
    initialization_timeout=initialization_timeout,
    heartbeat_timeout=heartbeat_timeout,
  )
  return found


def detect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environ: Mapping[str, str] | None = None,
  read_metadata: Callable[[], tpu_vm.Metadata | None] = tpu_vm.read_metadata,
) -> Cluster | None:
  """Returns the processes of this run, or None if this is the only one.

  Args:
    coordinator: Flag, HOST:PORT of process 0; if it is given without the other
      two flags, it replaces the launcher's address.
    num_processes: Flag.
    process_id: Flag.
    environ: Environment variables; those of this process by default.
    read_metadata: Reads the metadata of a TPU virtual machine.

  Raises:
    UserError: Flags or variables are inconsistent or incomplete.
  """
  environ = os.environ if environ is None else environ
  coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS") or None
  if num_processes is None:
    num_processes = _number(environ, "JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number(environ, "JAX_PROCESS_ID")
  if num_processes is not None and process_id is not None and coordinator:
    found = Cluster("flags", coordinator, num_processes, process_id)
  elif num_processes is not None or process_id is not None:
    raise errors.UserError(
      "--coordinator, --num-processes and --process-id belong together; "
      "give all three (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID), or none of them to use the launcher's values."
    )
  else:
    found = next(
      (
        cluster
        for rule in (_tpu_pod, _slurm, _open_mpi)
        if (cluster := rule(environ, coordinator))
      ),
      None,
    )
    if found is None and _may_be_tpu_vm(environ):
      found = _tpu_vm(read_metadata(), environ, coordinator)
    if found is None and coordinator:
      raise errors.UserError(
        f"--coordinator={coordinator} is given, but neither flags nor a "
        "launcher give the number of processes; add --num-processes and "
        "--process-id."
      )
  if found is None:
    return None
  _check(found)
  return found if found.num_processes > 1 else None


def start(
  cluster: Cluster,
  settings: rendezvous.Settings,
  *,
  initialization_timeout: int = INITIALIZATION_SECONDS,
  heartbeat_timeout: int = HEARTBEAT_SECONDS,
  shutdown_timeout: int = SHUTDOWN_SECONDS,
) -> None:
  """Waits for all processes, compares settings, and starts jax.distributed.

  Args:
    cluster: From `detect`.
    settings: Name -> value that must be the same on all processes, for example
      the config's fingerprint.
    initialization_timeout: Seconds to wait for the other processes at start.
    heartbeat_timeout: Seconds without a heartbeat after which a process counts
      as dead, which ends the others.
    shutdown_timeout: Seconds to wait for the other processes at the end.

  Raises:
    UserError: A process is missing, or has other settings.
    CannotStart: All processes were present, but JAX failed to connect them; the
      others wait for this process until the timeout.
  """
  host, port = split_address(cluster.coordinator)
  rendezvous.meet(
    host,
    port,
    cluster.num_processes,
    cluster.process_id,
    settings,
    initialization_timeout,
  )
  # All processes are present with equal settings, so an error from here on is
  # not due to the user's input.
  try:
    jax.distributed.initialize(
      cluster.coordinator,
      cluster.num_processes,
      cluster.process_id,
      local_device_ids=cluster.local_device_ids,
      cluster_detection_method="deactivate",
      coordinator_bind_address=(
        cluster.coordinator if host in _LOOPBACK else None
      ),
      initialization_timeout=initialization_timeout,
      heartbeat_timeout_seconds=heartbeat_timeout,
      shutdown_timeout_seconds=shutdown_timeout,
    )
  except RuntimeError as error:
    raise CannotStart(
      f"JAX could not connect process {cluster.process_id} of "
      f"{cluster.num_processes} through {cluster.coordinator} ({error}); "
      "run the same command again on all hosts.",
      cluster.process_id,
    ) from error


def shut_down() -> None:
  """Disconnects after a regular end, when all other processes do so too."""
  jax.distributed.shutdown()


def exit_now(code: int, process_id: int) -> NoReturn:
  """Ends this process immediately, without waiting for the others.

  A regular exit of Python would wait for processes that are blocked in a
  collective with this one, until the shutdown times out.

  Args:
    code: Exit code.
    process_id: Number of this process. It is a parameter because JAX, which
      also knows it, may have failed to start.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if process_id == 0:
    # JAX aborts the other processes as soon as process 0 ends. The delay lets
    # processes that end for the same reason print their own message first.
    time.sleep(_EXIT_DELAY_SECONDS)
  os._exit(code)


def split_address(address: str) -> tuple[str, int]:
  """Splits HOST:PORT or [IPV6]:PORT into host and port."""
  host, _, port = address.rpartition(":")
  host = host.removeprefix("[").removesuffix("]")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.UserError(
      f"--coordinator={address} is not of the form HOST:PORT; give the address "
      "of process 0 and a free port there, for example 10.0.0.1:8476."
    )
  return host, int(port)


def _check(cluster: Cluster) -> None:
  split_address(cluster.coordinator)
  if not 0 <= cluster.process_id < cluster.num_processes:
    raise errors.UserError(
      f"According to the {cluster.found_by}, this is process "
      f"{cluster.process_id} of {cluster.num_processes}; process ids range "
      "from 0 to num_processes - 1."
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
  """Returns the value of a variable, None if it is not set."""
  text = environ.get(name)
  if text is None:
    return None
  if not text.strip().isdecimal():
    raise errors.UserError(
      f"{name}={text!r} is not a number; correct or unset it."
    )
  return int(text)


def _required(environ: Mapping[str, str], name: str, because: str) -> int:
  """Returns the value of a variable; `because` opens the error message."""
  value = _number(environ, name)
  if value is None:
    raise errors.UserError(
      f"{because}, but {name} is not set; set it, give --coordinator, "
      "--num-processes and --process-id, or use --distributed off."
    )
  return value


def _with_port(host: str, environ: Mapping[str, str], default: int) -> str:
  """Returns HOST:PORT with JAX_COORDINATOR_PORT or the default port."""
  port = _number(environ, "JAX_COORDINATOR_PORT") or default
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tpu_pod(
  environ: Mapping[str, str], coordinator: str | None
) -> Cluster | None:
  workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get(
    "TPU_WORKER_HOSTNAMES"
  )
  if not workers:
    return None
  return _from_slices(
    "variables of the TPU pod",
    workers.split(","),
    _number(environ, "TPU_WORKER_ID"),
    environ,
    environ,
    coordinator,
  )


def _may_be_tpu_vm(environ: Mapping[str, str]) -> bool:
  """Returns whether JAX would use the TPU chips of this machine, if any."""
  platforms = environ.get("JAX_PLATFORMS", "")
  # On a machine without TPU chips JAX sets TPU_SKIP_MDS_QUERY when it is
  # imported. JAX cannot use TPU chips without libtpu.
  return (
    (not platforms or "tpu" in platforms.split(","))
    and "TPU_SKIP_MDS_QUERY" not in environ
    and tpu_vm.has_libtpu(environ)
  )


def _tpu_vm(
  metadata: tpu_vm.Metadata | None,
  environ: Mapping[str, str],
  coordinator: str | None,
) -> Cluster:
  if metadata is None:
    raise errors.UserError(
      "This machine has TPU chips, but its metadata server does not list the "
      "hosts of its slice; give --coordinator, --num-processes and "
      "--process-id, or use --distributed off for this host alone."
    )
  return _from_slices(
    "metadata of the TPU machine",
    metadata.workers,
    metadata.worker_id,
    metadata.variables,
    environ,
    coordinator,
  )


def _from_slices(
  found_by: str,
  workers: list[str],
  worker_id: int | None,
  variables: Mapping[str, str],
  environ: Mapping[str, str],
  coordinator: str | None,
) -> Cluster:
  """Returns the processes of one or several TPU slices.

  Args:
    found_by: See `Cluster`.
    workers: Addresses of the hosts of this slice.
    worker_id: Number of this host in its slice.
    variables: Has MEGASCALE_*, if there are several slices.
    environ: Environment variables.
    coordinator: HOST:PORT given by the user.
  """
  slices = _number(variables, "MEGASCALE_NUM_SLICES") or 1
  if len(workers) * slices == 1:
    return _SINGLE
  because = (
    f"According to the {found_by}, there are {len(workers)} hosts in each of "
    f"{slices} slice(s)"
  )
  if worker_id is None:
    worker_id = _required(variables, "TPU_WORKER_ID", because)
  slice_id = (
    _required(variables, "MEGASCALE_SLICE_ID", because) if slices > 1 else 0
  )
  # Either address may include a port, which belongs to another service.
  first = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
  if slices > 1 and not variables.get("MEGASCALE_COORDINATOR_ADDRESS"):
    raise errors.UserError(
      f"{because}, but MEGASCALE_COORDINATOR_ADDRESS is not set; set it to the "
      "address of the first host, as launchers of multi-slice jobs do."
    )
  return Cluster(
    found_by,
    coordinator or _with_port(first.split(":")[0], environ, _TPU_PORT),
    len(workers) * slices,
    slice_id * len(workers) + worker_id,
  )


def _slurm(
  environ: Mapping[str, str], coordinator: str | None
) -> Cluster | None:
  # A batch script outside srun has no node list of a step. It is one process,
  # whatever number of tasks the job has.
  nodes = environ.get("SLURM_STEP_NODELIST")
  if "SLURM_JOB_ID" not in environ or not nodes:
    return None
  because = "This process is part of a Slurm step"
  tasks = _number(environ, "SLURM_STEP_NUM_TASKS") or _required(
    environ, "SLURM_NTASKS", because
  )
  if tasks == 1:
    return _SINGLE
  # JAX's rule: two jobs on one node are unlikely to get the same port.
  port = 61440 + _required(environ, "SLURM_JOB_ID", because) % 4096
  ids = None
  if tasks != _number(environ, "SLURM_STEP_NUM_NODES"):
    ids = _one_gpu(environ, _required(environ, "SLURM_LOCALID", because))
  return Cluster(
    "variables of Slurm",
    coordinator or _with_port(_first_node(nodes), environ, port),
    tasks,
    _required(environ, "SLURM_PROCID", because),
    ids,
  )


def _first_node(nodes: str) -> str:
  """Returns the first name of a Slurm list such as "gpu[007,9-12],login"."""
  first = re.split(r",(?![^\[]*\])", nodes)[0]  # At commas outside brackets.
  return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _open_mpi(
  environ: Mapping[str, str], coordinator: str | None
) -> Cluster | None:
  processes = _number(environ, "OMPI_COMM_WORLD_SIZE")
  if not processes:
    return None
  if processes == 1:
    return _SINGLE
  if not coordinator:
    # Versions before 5 give the launcher's address, which need not be that of
    # rank 0.
    raise errors.UserError(
      f"Open MPI started {processes} processes but does not give the host of "
      "rank 0; add --coordinator=HOST:PORT with the first host and a free "
      "port."
    )
  because = "This process was started by Open MPI"
  return Cluster(
    "variables of Open MPI",
    coordinator,
    processes,
    _required(environ, "OMPI_COMM_WORLD_RANK", because),
    _one_gpu(environ, _required(environ, "OMPI_COMM_WORLD_LOCAL_RANK", because))
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") != "1"
    else None,
  )


def _one_gpu(environ: Mapping[str, str], local_id: int) -> tuple[int] | None:
  """Returns the GPU of a process that shares its node with others.

  Returns None if the launcher has already bound the process to one GPU.
  """
  visible = environ.get("CUDA_VISIBLE_DEVICES", "")
  return None if visible and "," not in visible else (local_id,)
