"""The environments that launchers set, for processes on one machine.

Each launcher sets the environment of every process, with a free port of this
machine. No process gets flags with its number.
"""

import contextlib
import dataclasses
import http.server
import socket
import threading
from collections.abc import Callable, Mapping

Variables = list[dict[str, str]]

_ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
# The range of ports that `cluster` uses under Slurm.
_SLURM_PORTS = range(61440, 61440 + 4096)


@dataclasses.dataclass(frozen=True)
class Launcher:
  """How one recipe's processes find each other.

  Attributes:
    found_by: See `cluster.Cluster`; it appears in the log.
    variables: `(count, stack) -> environment of each process`, with a new free
      port. Servers that it starts are ended by the stack.
    module: The module that runs the command.
  """

  found_by: str
  variables: Callable[[int, contextlib.ExitStack], Variables]
  module: str = "genie_jax"


def free_port(ports=(0,)) -> int:
  """Returns the first unused port of this machine; 0 stands for any port."""
  for port in ports:
    with socket.socket() as free, contextlib.suppress(OSError):
      free.bind(("127.0.0.1", port))
      return free.getsockname()[1]
  raise AssertionError("All ports are in use.")


def _gke(count, stack) -> Variables:
  port = str(free_port())
  return [
    {
      "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * count),
      "TPU_WORKER_ID": str(index),
      "JAX_COORDINATOR_PORT": port,
    }
    for index in range(count)
  ]


def _xpk(count, stack) -> Variables:
  port = str(free_port())
  addresses = [f"localhost:{8476 + index}" for index in range(count)]
  return [
    {
      "TPU_PROCESS_ADDRESSES": ",".join(addresses),
      "TPU_WORKER_ID": str(index),
      "MEGASCALE_NUM_SLICES": "1",
      "JAX_COORDINATOR_PORT": port,
    }
    for index in range(count)
  ]


def _slurm(count, stack) -> Variables:
  # The port is determined by the number of the job.
  job = 17 * len(_SLURM_PORTS) + free_port(_SLURM_PORTS) - _SLURM_PORTS[0]
  return [
    {
      "SLURM_JOB_ID": str(job),
      "SLURM_PROCID": str(index),
      "SLURM_STEP_NODELIST": ",".join(["localhost"] * count),
      "SLURM_STEP_NUM_TASKS": str(count),
      "SLURM_STEP_NUM_NODES": str(count),
      "SLURM_LOCALID": "0",
    }
    for index in range(count)
  ]


def _queued_resource(count, stack) -> Variables:
  port = str(free_port())
  endpoints = ",".join(f"unknown:{index}:localhost" for index in range(count))
  return [
    {
      "GCE_METADATA_IP": stack.enter_context(
        _metadata_server(
          {
            "agent-worker-number": str(index),
            "worker-network-endpoints": endpoints,
            "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\n",
          }
        )
      ),
      "JAX_COORDINATOR_PORT": port,
    }
    for index in range(count)
  ]


@contextlib.contextmanager
def _metadata_server(attributes: Mapping[str, str]):
  """Runs the metadata server of one machine; yields HOST:PORT."""

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      name = self.path.removeprefix(_ATTRIBUTES)
      known = name in attributes and self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if known else 404)
      self.end_headers()
      self.wfile.write(attributes[name].encode() if known else b"")

    def log_message(self, *args):
      """Logs nothing."""

  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
      yield f"127.0.0.1:{server.server_port}"
    finally:
      server.shutdown()
      thread.join()


# Name of a recipe -> its launcher.
LAUNCHERS = {
  "jobset.sh": Launcher("variables of the TPU pod", _gke),
  "xpk.sh": Launcher("variables of the TPU pod", _xpk),
  "queued_resource.sh": Launcher(
    "metadata of the TPU machine",
    _queued_resource,
    "tests.launch.tpu_machine",
  ),
  "slurm.sbatch": Launcher("variables of Slurm", _slurm),
}
