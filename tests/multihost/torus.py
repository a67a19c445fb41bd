"""The `genie` command with the devices of a TPU pod's hosts.

    python -m tests.multihost.torus train ...

The devices of a TPU host are a block of the torus and need not be neighbours in
the mesh. The TPU library says which block is whose, and `genie_jax` arranges
the chips as on a pod; then each chip is replaced by a CPU device of the process
with the same number. Digests are recorded as in `tests.multihost.digests`.
"""

import os
import sys

import numpy as np

from genie_jax.cli import main
from genie_jax.plan import topology
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from tests.multihost import digests

# Two hosts of four chips, whose chips alternate along the axis fsdp.
TOPOLOGY = "v5p:2x2x2"


def arrange(devices, shape):
  """Arranges devices as the chips of the TPU topology with the same hosts."""
  # Several processes on one machine load the library.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
  chips = topology.devices(topology.parse(TOPOLOGY))
  numbers = {}  # Chip -> its process and its number there.
  for chip in sorted(chips, key=lambda chip: chip.id):
    process = chip.process_index
    rank = sum(other == process for other, _ in numbers.values())
    numbers[chip] = process, rank
  ours = {}
  for device in sorted(devices, key=lambda device: device.id):
    process = device.process_index
    rank = sum(other == process for other, _ in ours)
    ours[process, rank] = device
  arranged = on_a_pod(chips, shape)
  found = [ours[numbers[chip]] for chip in arranged.flat]
  return np.array(found, object).reshape(arranged.shape)


def print_share(mesh):
  """Prints and returns this process's share."""
  found = share(mesh)
  print(f"parts {found.parts} of {found.count}", flush=True)
  return found


if __name__ == "__main__":
  share, on_a_pod = hosts.share, mesh_lib.arrange
  mesh_lib.arrange, hosts.share = arrange, print_share
  with digests.recorded():
    sys.exit(main.main(sys.argv[1:]))
