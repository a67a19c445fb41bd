"""The `genie` line on a machine that takes itself for a host of a TPU slice.

    python -m tests.launch.tpu_machine train ...

Only the look for chips is replaced: JAX says on import that there are none.
What its metadata server says is asked for as on such a machine.
"""

import sys

from genie_jax.cli import main
from genie_jax.sharding import cluster

if __name__ == "__main__":
  cluster._may_be_tpu_vm = lambda environ: True
  sys.exit(main.main(sys.argv[1:]))
