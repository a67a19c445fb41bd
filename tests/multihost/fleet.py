"""Starts several processes on this machine that train together."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax

ROOT = pathlib.Path(__file__).parents[2]
# Generous, since other tests may use the same cores.
TIMEOUT = 900.0
_PORT_IN_USE = ("listen on port", "Address already in use", "Failed to bind")


class Fleet:
  """Processes whose output is written to files."""

  def __init__(
    self,
    folder: pathlib.Path,
    commands: Sequence[Sequence[str]],
    devices: int,
    folders: Sequence[pathlib.Path] | None = None,
    variables: Sequence[Mapping[str, str]] | None = None,
    module: str = "genie_jax",
  ):
    """Starts one process per command.

    Args:
      folder: Folder of the output files.
      commands: Arguments of each process.
      devices: Number of CPU devices of each process.
      folders: Working folder of each process.
      variables: Further environment variables of each process.
      module: The module that `python -m` runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    env = {
      name: value
      for name, value in os.environ.items()
      if not name.lower().endswith("_proxy") and name != "XLA_FLAGS"
    }
    env |= {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
      "PYTHONPATH": str(ROOT),
      "PYTHONUNBUFFERED": "1",
      "OMP_NUM_THREADS": "1",
      "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    self.begin = time.monotonic()
    self.seconds: list[float | None] = [None] * len(commands)
    self.logs = [folder / f"{index}.log" for index in range(len(commands))]
    self.processes = []
    folders = folders or [ROOT] * len(commands)
    variables = variables or [{}] * len(commands)
    for log, command, here, more in zip(
      self.logs, commands, folders, variables, strict=True
    ):
      # The output goes to a file because a full pipe would block the process.
      with open(log, "w") as out:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, "-m", module, "train", *command],
            env=env | more,
            cwd=here,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
          )
        )

  def text(self, index: int) -> str:
    """Returns the output of a process so far."""
    return self.logs[index].read_text()

  def wait_for(self, index: int, text: str, timeout: float = TIMEOUT) -> None:
    """Waits until a process has printed something."""
    end = time.monotonic() + timeout
    while text not in self.text(index):
      assert self.processes[index].poll() is None, self.text(index)[-3000:]
      assert time.monotonic() < end, self.text(index)[-3000:]
      time.sleep(0.05)

  def codes(self, timeout: float = TIMEOUT, without=()) -> list[int | None]:
    """Waits for all processes except `without`; returns all exit codes."""
    end = time.monotonic() + timeout
    waited = [n for n in range(len(self.processes)) if n not in without]
    while time.monotonic() < end and any(
      self.seconds[n] is None for n in waited
    ):
      for n in waited:
        if self.seconds[n] is None and self.processes[n].poll() is not None:
          self.seconds[n] = time.monotonic() - self.begin
      time.sleep(0.05)
    return [process.poll() for process in self.processes]

  def kill(self) -> None:
    """Kills the processes that are still running."""
    for process in self.processes:
      if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running(
  folder: pathlib.Path,
  count: int,
  *args: str,
  devices: int = 4,
  extra: Sequence[Sequence[str]] | None = None,
  folders: Sequence[pathlib.Path] | None = None,
  launch: Callable[[], Sequence[Mapping[str, str]]] | None = None,
  variables: Sequence[Mapping[str, str]] | None = None,
  module: str = "genie_jax",
) -> Iterator[Fleet]:
  """Runs `genie train ARGS` as several processes, which are killed at the end.

  Args:
    folder: Folder of the output files.
    count: Number of processes.
    *args: Arguments of all processes.
    devices: Number of CPU devices of each process.
    extra: Further arguments of each process.
    folders: Working folder of each process.
    launch: Returns environment variables that give each process its number; if
      it is None, flags give the numbers.
    variables: Environment variables of each process, without `launch`.
    module: The module that `python -m` runs.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  flags = lambda index: (
    ()
    if launch
    else (
      "--coordinator",
      f"127.0.0.1:{port}",
      "--num-processes",
      str(count),
      "--process-id",
      str(index),
    )
  )
  commands = [
    [*args, *flags(index), *(extra[index] if extra else ())]
    for index in range(count)
  ]
  fleet = Fleet(
    folder,
    commands,
    devices,
    folders,
    launch() if launch else variables,
    module,
  )
  try:
    yield fleet
  finally:
    fleet.kill()


def train(
  folder: pathlib.Path, count: int, *args: str, devices: int, **options
) -> Fleet:
  """Trains to the end and returns the fleet.

  If another program takes the chosen port before it is used, all processes are
  started again. For `options` see `running`.
  """
  for attempt in range(3):
    with running(
      folder / str(attempt), count, *args, devices=devices, **options
    ) as fleet:
      codes = fleet.codes()
    output = "".join(fleet.text(index) for index in range(count))
    if codes != [0] * count and any(text in output for text in _PORT_IN_USE):
      continue
    assert codes == [0] * count, (codes, output[-4000:])
    return fleet
  raise AssertionError("Every chosen port was taken by another program.")
