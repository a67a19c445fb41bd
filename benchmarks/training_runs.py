"""Trains a config with `genie train` and keeps the time of resumed runs."""

import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

from genie_jax.core import files

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _cpu_seconds() -> float:
  """Returns the CPU time of all child processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def train(
  config: str, workdir: pathlib.Path, arguments: Sequence[str]
) -> dict[str, float]:
  """Trains until the config's number of steps is reached.

  Args:
    config: Name of a config in experiments/coinrun with its mode, for example
      "lam.py:tiny".
    workdir: The workdir, which may hold an interrupted run.
    arguments: Further arguments of `genie train`.

  Returns:
    "wall" and "cpu" seconds of the run, interrupted starts included. They are
    stored next to the workdir, in WORKDIR.seconds.json.

  Raises:
    CalledProcessError: The training failed.
  """
  clock = workdir.with_name(f"{workdir.name}.seconds.json")
  seconds = (
    files.read_json(clock) if clock.exists() else {"wall": 0.0, "cpu": 0.0}
  )
  command = [
    *(sys.executable, "-m", "genie_jax", "train"),
    *("--config", f"{ROOT}/experiments/coinrun/{config}"),
    *("--workdir", str(workdir)),
    *arguments,
  ]
  print("$", *command[1:], flush=True)
  wall, cpu = time.monotonic(), _cpu_seconds()
  try:
    subprocess.run(command, check=True)
  finally:
    spent = {"wall": time.monotonic() - wall, "cpu": _cpu_seconds() - cpu}
    seconds = {
      kind: round(before + spent[kind], 1) for kind, before in seconds.items()
    }
    workdir.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(clock, seconds)
  return seconds
