"""The `genie` command with a mesh that separates the devices of a process.

    python -m tests.multihost.torus train ...

The devices of a TPU host, which are a block of the torus, need not be
neighbours in the mesh either. Digests are recorded as in
`tests.multihost.digests`.
"""

import sys

import numpy as np

from genie_jax.cli import main
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from tests.multihost import digests


def arrange(devices, shape):
  """Arranges devices so that each process has two of every four."""
  pairs = np.array(devices).reshape(2, -1, 2).swapaxes(0, 1)
  return pairs.reshape(tuple(shape.values()))


def print_share(mesh):
  """Prints and returns this process's share."""
  found = share(mesh)
  print(f"parts {found.parts} of {found.count}", flush=True)
  return found


if __name__ == "__main__":
  share = hosts.share
  mesh_lib.arrange, hosts.share = arrange, print_share
  with digests.recorded():
    sys.exit(main.main(sys.argv[1:]))
