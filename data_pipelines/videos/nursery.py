"""The process that forks a child for each film; see `contained`.

It imports what the jobs need, once, and starts no thread, so that its forks are
whole. It is started by `contained.Nursery` with the number of a socket.
"""

import ctypes
import functools
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import types
from typing import Any

from data_pipelines.videos import contained

# What the jobs of this folder need; other jobs are imported in the child.
_PRELOAD = ("data_pipelines.videos.cut", "data_pipelines.videos.probe")
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux.


def main(number: int) -> None:
  """Serves requests until the parent closes the socket."""
  for name in _PRELOAD:
    importlib.import_module(name)
  control = socket.socket(fileno=number)
  request = b""
  while True:
    piece, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
    if not piece:
      return
    request += piece
    if descriptors:
      (pipe,) = descriptors
    if not request.endswith(b"\n"):
      continue
    child = os.fork()
    if not child:
      control.close()
      _be_child(pipe, json.loads(request))
      os._exit(0)
    os.close(pipe)
    request = b""
    _answer(control, {"pid": child})
    if not _wait(control, child):
      return


def _wait(control: socket.socket, child: int) -> bool:
  """Waits for the child; returns False if the parent has gone meanwhile."""
  process = os.pidfd_open(child)
  try:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLRDHUP | select.POLLHUP)
    ready = {descriptor for descriptor, _ in poll.poll()}
    gone = control.fileno() in ready
    if gone:
      os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
  finally:
    os.close(process)
  if not gone:
    _answer(control, {"status": status})
  return not gone


def _answer(control: socket.socket, answer: dict[str, Any]) -> None:
  control.sendall(json.dumps(answer).encode() + b"\n")


def _be_child(pipe: int, request: dict[str, Any]) -> None:
  ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGKILL)
  # Uncaught, so that no error is taken for another: whatever a library raises
  # about a film becomes that film's row in the list of bad ones.
  sys.excepthook = functools.partial(_report, pipe, request["memory_mb"])
  module, _, name = request["function"].partition(":")
  function = getattr(importlib.import_module(module), name)
  most = most_data(request["memory_mb"])
  # Not the address space, which libraries reserve without using it.
  resource.setrlimit(resource.RLIMIT_DATA, (most, most))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  function(request["job"], functools.partial(contained.send, pipe))


def most_data(memory_mb: int) -> int:
  """Returns the bytes that a child may use, with those it has already.

  Args:
    memory_mb: MiB that it may use beyond them; less if the machine allows less
      to all processes.
  """
  most = _data_bytes() + memory_mb * 2**20
  _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
  return most if allowed == resource.RLIM_INFINITY else min(most, allowed)


def _data_bytes() -> int:
  """Returns the size of this process's private, writable memory."""
  with open("/proc/self/status", encoding="ascii") as lines:
    for line in lines:
      if line.startswith("VmData:"):
        return int(line.split()[1]) * 1024
  return 0


def _report(
  pipe: int,
  memory_mb: int,
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  """Sends an uncaught error to the parent, then ends the child."""
  del trace
  message = " ".join(str(error).split()) or kind.__name__
  if isinstance(error, MemoryError) or "ENOMEM" in message:
    message = f"needs more than {memory_mb} MiB of memory"
  elif not isinstance(error, (OSError, ValueError)):
    message = f"{kind.__name__}: {message}"
  contained.send(pipe, {"uncaught": message[:500]})
  os._exit(1)


if __name__ == "__main__":
  main(int(sys.argv[1]))
