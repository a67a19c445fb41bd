"""`genie train` in which process 1 reads each batch slowly."""

import sys
import time

from genie_jax.cli import main
from genie_jax.data import loader

SECONDS = 0.3


def read_slowly() -> None:
  """Delays the batches of this process."""
  read = loader.BatchIterator.__next__

  def slowly(self):
    time.sleep(SECONDS)
    return read(self)

  loader.BatchIterator.__next__ = slowly


if __name__ == "__main__":
  if sys.argv[sys.argv.index("--process-id") + 1] == "1":
    read_slowly()
  sys.exit(main.main(sys.argv[1:]))
