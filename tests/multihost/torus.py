"""The `genie` line where the devices of a process lie apart in the mesh.

    python -m tests.multihost.torus train ...

So do those of every host of a TPU pod, which are a block of a torus. Digests
are kept as in `tests.multihost.digests`.
"""

import sys

import numpy as np

from genie_jax.cli import main
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from tests.multihost import digests


def arrange(devices, shape):
  """Lays out devices as if each process had two of every four."""
  pairs = np.array(devices).reshape(2, -1, 2).swapaxes(0, 1)
  return pairs.reshape(tuple(shape.values()))


def say_share(mesh):
  """Prints and returns this process's share."""
  found = share(mesh)
  print(f"parts {found.parts} of {found.count}", flush=True)
  return found


if __name__ == "__main__":
  share = hosts.share
  mesh_lib.arrange, hosts.share = arrange, say_share
  with digests.kept():
    sys.exit(main.main(sys.argv[1:]))
