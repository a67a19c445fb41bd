"""Which processes make up a run: found by themselves, joined, and left.

One process is the rule. Many are found from what a launcher leaves in the
environment, and only where it starts two or more; the first that fits wins:

  1. flags, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  2. TPU pods on GKE and XPK: TPU_PROCESS_ADDRESSES or TPU_WORKER_HOSTNAMES,
     TPU_WORKER_ID; over several slices also MEGASCALE_*
  3. Slurm, inside srun: SLURM_JOB_ID, SLURM_STEP_NODELIST, SLURM_PROCID, ...
  4. Open MPI: OMPI_COMM_WORLD_SIZE and _RANK
  5. TPU virtual machines (queued resources), which have nothing in the
     environment: only where the machine has TPU chips and libtpu, its
     metadata server is asked; see `tpu_vm`

JAX's own detection differs in two ways that hurt: under Slurm it gives each
process one GPU even where there is one process a node, and a host that does
not come aborts the others with a stack trace.
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

# JAX's port on TPU pods; nothing agrees on one at run time.
_TPU_PORT = 8482
_LINGER_SECONDS = 3.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The place of this process among all.

  Attributes:
    found_by: What named them, for people.
    coordinator: HOST:PORT where process 0 listens.
    num_processes: How many there are, two or more.
    process_id: Which this one is.
    local_device_ids: GPUs of this process; None for all that it sees.
  """

  found_by: str
  coordinator: str
  num_processes: int
  process_id: int
  local_device_ids: tuple[int, ...] | None = None


class CannotStart(Exception):
  """All processes are here, but JAX could not connect them.

  Attributes:
    process_id: Of this process.
  """

  def __init__(self, message: str, process_id: int):
    super().__init__(message)
    self.process_id = process_id


# A launcher that started one process: no later rule is asked.
_ALONE = Cluster("launcher", "localhost:1", 1, 0)


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  card: Mapping[str, str],
  *,
  initialization_timeout: int = INITIALIZATION_SECONDS,
  heartbeat_timeout: int = HEARTBEAT_SECONDS,
) -> Cluster | None:
  """Finds the processes of this run and connects to them.

  Args:
    coordinator: See `detect`.
    num_processes: See `detect`.
    process_id: See `detect`.
    card: See `start`.
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
    card,
    initialization_timeout=initialization_timeout,
    heartbeat_timeout=heartbeat_timeout,
  )
  return found


def detect(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  environ: Mapping[str, str] | None = None,
  ask_machine: Callable[[], tpu_vm.Answer | None] = tpu_vm.ask,
) -> Cluster | None:
  """Returns the processes of this run, or None where there is one.

  Args:
    coordinator: Flag, HOST:PORT of process 0; alone it replaces the address
      that a launcher gives.
    num_processes: Flag.
    process_id: Flag.
    environ: Environment variables; those of this process by default.
    ask_machine: Asks a TPU virtual machine, see `tpu_vm.ask`.

  Raises:
    UserError: Flags or variables contradict each other, or lack one.
  """
  environ = os.environ if environ is None else environ
  coordinator = coordinator or environ.get("JAX_COORDINATOR_ADDRESS") or None
  if num_processes is None:
    num_processes = _number(environ, "JAX_NUM_PROCESSES")
  if process_id is None:
    process_id = _number(environ, "JAX_PROCESS_ID")
  numbers = (num_processes, process_id)
  if None not in numbers and coordinator:
    found = Cluster("flags", coordinator, num_processes, process_id)
  elif numbers != (None, None):
    raise errors.UserError(
      "--coordinator, --num-processes and --process-id belong together; "
      "give all three (or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and "
      "JAX_PROCESS_ID), or none of them to let the launcher say."
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
      found = _tpu_vm(ask_machine(), environ, coordinator)
    if found is None and coordinator:
      raise errors.UserError(
        f"--coordinator={coordinator} is given, but neither flags nor a "
        "launcher say how many processes there are; add --num-processes "
        "and --process-id."
      )
  if found is None:
    return None
  _check(found)
  return found if found.num_processes > 1 else None


def start(
  cluster: Cluster,
  card: Mapping[str, str],
  *,
  initialization_timeout: int = INITIALIZATION_SECONDS,
  heartbeat_timeout: int = HEARTBEAT_SECONDS,
  shutdown_timeout: int = SHUTDOWN_SECONDS,
) -> None:
  """Meets the other processes, compares cards, and starts jax.distributed.

  Args:
    cluster: From `detect`.
    card: What must be the same on all processes, for example the config's
      fingerprint, by name.
    initialization_timeout: Seconds to wait for the others.
    heartbeat_timeout: Seconds of silence after which a process counts as
      dead, which ends the others.
    shutdown_timeout: Seconds to wait for the others at the end.

  Raises:
    UserError: A process did not come, or runs something else.
    CannotStart: JAX failed to connect the processes, which all came; the
      others wait for this one until they run out of time.
  """
  host, port = split_address(cluster.coordinator)
  rendezvous.meet(
    host,
    port,
    cluster.num_processes,
    cluster.process_id,
    card,
    initialization_timeout,
  )
  # All are alive and run the same thing. What may fail from here on is ours.
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
      "run the same line again on all.",
      cluster.process_id,
    ) from error


def part() -> None:
  """Waits for the others at the regular end of all."""
  jax.distributed.shutdown()


def leave(code: int, process_id: int) -> NoReturn:
  """Ends this process at once, without waiting for the others.

  Python's way out would wait for processes that are blocked in a collective
  with this one, until the shutdown times out.

  Args:
    code: Exit code.
    process_id: Which process this is. JAX is not asked, as it may have failed
      to start.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if process_id == 0:
    # JAX aborts the others as soon as process 0 is gone. Where they are about
    # to leave for the same reason, let them say so.
    time.sleep(_LINGER_SECONDS)
  os._exit(code)


def split_address(address: str) -> tuple[str, int]:
  """Returns host and port of HOST:PORT or [IPV6]:PORT."""
  host, _, port = address.rpartition(":")
  host = host.removeprefix("[").removesuffix("]")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise errors.UserError(
      f"--coordinator={address} is no HOST:PORT; give the address of "
      "process 0 and a free port there, for example 10.0.0.1:8476."
    )
  return host, int(port)


def _check(cluster: Cluster) -> None:
  split_address(cluster.coordinator)
  if not 0 <= cluster.process_id < cluster.num_processes:
    raise errors.UserError(
      f"The {cluster.found_by} call this process {cluster.process_id} of "
      f"{cluster.num_processes}; process ids go from 0 to "
      "num_processes - 1."
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
  text = environ.get(name)
  if text is None:
    return None
  if not text.strip().isdecimal():
    raise errors.UserError(f"{name}={text!r} is no number; mend or unset it.")
  return int(text)


def _needed(environ: Mapping[str, str], name: str, because: str) -> int:
  value = _number(environ, name)
  if value is None:
    raise errors.UserError(
      f"{because}, but {name} is not set; set it, give --coordinator, "
      "--num-processes and --process-id, or --distributed off."
    )
  return value


def _with_port(host: str, environ: Mapping[str, str], default: int) -> str:
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
  return _of_slices(
    "variables of the TPU pod",
    workers.split(","),
    _number(environ, "TPU_WORKER_ID"),
    environ,
    environ,
    coordinator,
  )


def _may_be_tpu_vm(environ: Mapping[str, str]) -> bool:
  """Returns True where JAX would use the chips of a TPU machine."""
  platforms = environ.get("JAX_PLATFORMS", "")
  # JAX sets TPU_SKIP_MDS_QUERY itself, when imported, on a machine without
  # TPU chips; and there is no use of them without libtpu.
  return (
    (not platforms or "tpu" in platforms.split(","))
    and "TPU_SKIP_MDS_QUERY" not in environ
    and tpu_vm.has_libtpu(environ)
  )


def _tpu_vm(
  answer: tpu_vm.Answer | None,
  environ: Mapping[str, str],
  coordinator: str | None,
) -> Cluster:
  if answer is None:
    raise errors.UserError(
      "This machine has TPU chips, but its metadata server does not say "
      "which hosts belong together; give --coordinator, --num-processes "
      "and --process-id, or --distributed off for this host alone."
    )
  return _of_slices(
    "TPU machine's metadata",
    answer.workers,
    answer.worker_id,
    answer.variables,
    environ,
    coordinator,
  )


def _of_slices(
  found_by: str,
  workers: list[str],
  worker_id: int | None,
  variables: Mapping[str, str],
  environ: Mapping[str, str],
  coordinator: str | None,
) -> Cluster:
  slices = _number(variables, "MEGASCALE_NUM_SLICES") or 1
  if len(workers) * slices == 1:
    return _ALONE
  because = f"The {found_by} name {len(workers)} hosts in {slices} slice(s)"
  if worker_id is None:
    worker_id = _needed(variables, "TPU_WORKER_ID", because)
  slice_id = (
    _needed(variables, "MEGASCALE_SLICE_ID", because) if slices > 1 else 0
  )
  # Both forms may carry a port, which is another service's.
  first = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]
  if slices > 1 and not variables.get("MEGASCALE_COORDINATOR_ADDRESS"):
    raise errors.UserError(
      f"{because}, but MEGASCALE_COORDINATOR_ADDRESS is not set; the "
      "launcher of a multi-slice job sets it to the first host."
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
  # The node list of the step is missing in a batch script outside srun, which
  # is one process however many tasks the job has.
  nodes = environ.get("SLURM_STEP_NODELIST")
  if "SLURM_JOB_ID" not in environ or not nodes:
    return None
  because = "This is a Slurm step"
  tasks = _number(environ, "SLURM_STEP_NUM_TASKS") or _needed(
    environ, "SLURM_NTASKS", because
  )
  if tasks == 1:
    return _ALONE
  # As JAX does: a port that jobs on one node are unlikely to share.
  port = 61440 + _needed(environ, "SLURM_JOB_ID", because) % 4096
  ids = None
  if tasks != _number(environ, "SLURM_STEP_NUM_NODES"):
    ids = _one_gpu(environ, _needed(environ, "SLURM_LOCALID", because))
  return Cluster(
    "variables of Slurm",
    coordinator or _with_port(_first_node(nodes), environ, port),
    tasks,
    _needed(environ, "SLURM_PROCID", because),
    ids,
  )


def _first_node(nodes: str) -> str:
  """Returns the first name of a Slurm list such as "gpu[007,9-12],login"."""
  first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
  return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def _open_mpi(
  environ: Mapping[str, str], coordinator: str | None
) -> Cluster | None:
  processes = _number(environ, "OMPI_COMM_WORLD_SIZE")
  if not processes:
    return None
  if processes == 1:
    return _ALONE
  if not coordinator:
    # Its own address of the launcher is gone since version 5, and it never
    # was that of rank 0.
    raise errors.UserError(
      f"Open MPI started {processes} processes but does not say where rank "
      "0 runs; add --coordinator=HOST:PORT with the first host and a free "
      "port."
    )
  because = "This is a process of Open MPI"
  return Cluster(
    "variables of Open MPI",
    coordinator,
    processes,
    _needed(environ, "OMPI_COMM_WORLD_RANK", because),
    _one_gpu(environ, _needed(environ, "OMPI_COMM_WORLD_LOCAL_RANK", because))
    if environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") != "1"
    else None,
  )


def _one_gpu(environ: Mapping[str, str], local: int) -> tuple[int] | None:
  """Returns the GPU of a process that shares its node with others."""
  visible = environ.get("CUDA_VISIBLE_DEVICES", "")
  # The launcher may have bound each process to its own GPU already.
  return None if visible and "," not in visible else (local,)
