"""The `genie` command on a simulated host of a TPU slice.

    python -m tests.launch.tpu_machine train ...

Only the check for TPU chips is replaced, since JAX reports on import that there
are none. The metadata server is queried as on a real host.
"""

import sys

from genie_jax.cli import main
from genie_jax.sharding import cluster

if __name__ == "__main__":
  cluster._may_be_tpu_vm = lambda environ: True
  sys.exit(main.main(sys.argv[1:]))
