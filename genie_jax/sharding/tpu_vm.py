"""What a Cloud TPU virtual machine says of the pod that it belongs to.

Queued resources put nothing into the environment; each machine's metadata
server, which answers on a link of its own, has the list of hosts.
"""

import dataclasses
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

_ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
_SECONDS, _TRIES = 5, 3


@dataclasses.dataclass(frozen=True)
class Answer:
  """A machine's place.

  Attributes:
    workers: Addresses of the hosts of this slice, in order.
    worker_id: Which of them this is.
    variables: The rest, for example MEGASCALE_NUM_SLICES.
  """

  workers: list[str]
  worker_id: int
  variables: Mapping[str, str]


def has_libtpu(environ: Mapping[str, str]) -> bool:
  """Returns True where JAX would find libtpu."""
  return bool(environ.get("TPU_LIBRARY_PATH")) or (
    importlib.util.find_spec("libtpu") is not None
  )


def ask(read: Callable[[str], str | None] | None = None) -> Answer | None:
  """Asks the metadata server.

  Args:
    read: Attribute name -> its text, None where there is none; reads from the
      server by default.

  Returns:
    The answer, or None where the server is silent or knows of no TPU.
  """
  read = read or _read
  worker_id = read("agent-worker-number")
  endpoints = read("worker-network-endpoints") if worker_id else None
  if not endpoints:
    return None
  # Each is an address, or name:id:address.
  workers = [word.split(":")[-1] for word in endpoints.strip().split(",")]
  variables = {}
  for line in (read("tpu-env") or "").splitlines():
    name, colon, value = line.partition(":")
    if colon:
      variables[name.strip()] = value.strip().strip("'\"")
  return Answer(workers, int(worker_id), variables)


def _read(attribute: str) -> str | None:
  host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{host}{_ATTRIBUTES}{attribute}",
    headers={"Metadata-Flavor": "Google"},
  )
  # A proxy would be asked for what only this machine knows.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  for _ in range(_TRIES):
    try:
      with opener.open(request, timeout=_SECONDS) as reply:
        return reply.read().decode()
    except urllib.error.HTTPError as error:
      if error.code == 404:
        return None
    except (urllib.error.URLError, TimeoutError):
      continue
  return None
