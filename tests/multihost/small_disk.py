"""Runs `genie_jax` with a folder on a disk that is too small.

Run:  SMALL_DISK_FOLDER=DIR SMALL_DISK_BYTES=N \\
          python -m tests.multihost.small_disk ARGUMENTS

The disk is a file system in memory, mounted in a namespace of its own.
"""

import os
import pathlib
import runpy
import sys

from tests.faults import disks

_INSIDE = "SMALL_DISK_INSIDE"


def main() -> None:
  """Enters the namespace, mounts the disk and runs the command."""
  if _INSIDE not in os.environ:
    words = [
      *disks.NAMESPACE,
      sys.executable,
      "-m",
      "tests.multihost.small_disk",
    ]
    os.environ[_INSIDE] = "yes"
    os.execvp(words[0], [*words, *sys.argv[1:]])
  folder = pathlib.Path(os.environ["SMALL_DISK_FOLDER"])
  folder.mkdir(parents=True, exist_ok=True)
  disks.mount(folder, int(os.environ["SMALL_DISK_BYTES"]))
  runpy.run_module("genie_jax", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
