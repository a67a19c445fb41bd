"""Reads from a Cloud TPU virtual machine's metadata which hosts form its slice.

Machines of queued resources have no environment variables for this; each
machine's metadata server, on a link-local address, has the list of hosts.
"""

import dataclasses
import importlib.util
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping

_ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
_TIMEOUT_SECONDS, _ATTEMPTS = 5, 3


@dataclasses.dataclass(frozen=True)
class Metadata:
  """The hosts of a TPU slice, from the metadata of one of them.

  Attributes:
    workers: Addresses of the hosts, in order.
    worker_id: Index of this machine among them.
    variables: Further values, for example MEGASCALE_NUM_SLICES.
  """

  workers: list[str]
  worker_id: int
  variables: Mapping[str, str]


def has_libtpu(environ: Mapping[str, str]) -> bool:
  """Returns whether JAX would find libtpu."""
  return bool(environ.get("TPU_LIBRARY_PATH")) or (
    importlib.util.find_spec("libtpu") is not None
  )


def read_metadata(
  read: Callable[[str], str | None] | None = None,
) -> Metadata | None:
  """Reads the metadata of this machine's TPU slice.

  Args:
    read: Attribute name -> its text, None if the attribute does not exist;
      queries the metadata server by default.

  Returns:
    The metadata, or None if the server does not answer or the machine has no
    TPU.
  """
  read = read or _query
  worker_id = read("agent-worker-number")
  endpoints = read("worker-network-endpoints") if worker_id else None
  if not worker_id or not endpoints:
    return None
  # The format of an endpoint is ADDRESS or NAME:ID:ADDRESS.
  workers = [word.split(":")[-1] for word in endpoints.strip().split(",")]
  variables = {}
  for line in (read("tpu-env") or "").splitlines():
    name, colon, value = line.partition(":")
    if colon:
      variables[name.strip()] = value.strip().strip("'\"")
  return Metadata(workers, int(worker_id), variables)


def _query(attribute: str) -> str | None:
  """Returns an attribute from the metadata server, None if there is none."""
  host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
  request = urllib.request.Request(
    f"http://{host}{_ATTRIBUTES}{attribute}",
    headers={"Metadata-Flavor": "Google"},
  )
  # The metadata server is reachable from this machine only, not by a proxy.
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  for _ in range(_ATTEMPTS):
    try:
      with opener.open(request, timeout=_TIMEOUT_SECONDS) as reply:
        return reply.read().decode()
    except urllib.error.HTTPError as error:
      if error.code == 404:
        return None
    except (urllib.error.URLError, TimeoutError):
      continue
  return None
