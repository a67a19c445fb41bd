"""Checks that all processes of a run are present and configured alike.

This happens before JAX starts. `jax.distributed` aborts every process with a
stack trace when one of them is missing, and it does not compare
configurations. Here process 0 first listens on the coordinator's port, every
other process sends its number and its settings, and process 0 sends the same
verdict to all. Then the port is free for JAX.

A message is one line of JSON. Any other data that arrives at the port is
ignored.

A process that connects a second time replaces its first connection only if
that connection is dead; two live processes with the same number are an error. A
machine that loses power does not close its connections, so both ends enable TCP
keepalive, which detects this.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import errors

# Name -> value of what must be equal on all processes.
Settings = Mapping[str, str]

_RETRY_SECONDS = 0.2
_MAX_MESSAGE_BYTES = 1 << 16
# Identifies the messages of this protocol among others that reach the port.
_HELLO = "genie_jax rendezvous 1"
# How much longer than its timeout a process waits for a message.
_GRACE_SECONDS = 5.0
# TCP keepalive: probes start after an idle time and follow at an interval;
# after this number of unanswered probes the connection is dead.
_KEEPALIVE_IDLE_SECONDS, _KEEPALIVE_INTERVAL_SECONDS = 4, 2
_KEEPALIVE_PROBES = 3
# Time within which a dead connection is detected.
_DETECTION_SECONDS = (
  _KEEPALIVE_IDLE_SECONDS
  + _KEEPALIVE_INTERVAL_SECONDS * _KEEPALIVE_PROBES
  + 2.0
)
# Number of process ids that a message lists.
_MAX_LISTED = 8


def meet(
  host: str,
  port: int,
  num_processes: int,
  process_id: int,
  settings: Settings,
  timeout: float,
) -> None:
  """Returns when all processes are present and have the same settings.

  Args:
    host: Where process 0 listens.
    port: The port where process 0 listens.
    num_processes: Number of processes, including process 0.
    process_id: Number of this process.
    settings: Name -> short text that must be the same on all processes.
    timeout: Seconds to wait.

  Raises:
    UserError: A process is missing or has other settings. All processes that
      are present raise this error at about the same time.
  """
  deadline = time.monotonic() + timeout
  if process_id == 0:
    verdict = _collect(host, port, num_processes, settings, deadline, timeout)
  else:
    verdict = _join(
      host, port, num_processes, process_id, settings, deadline, timeout
    )
  if verdict:
    raise errors.UserError(verdict)


def differences(settings: Mapping[int, Settings]) -> str:
  """Returns a line that describes differing settings, or "".

  Args:
    settings: Number of each process -> its settings.
  """
  names = sorted({name for found in settings.values() for name in found})
  parts = []
  for name in names:
    owners: dict[str, list[int]] = {}
    for number in sorted(settings):
      owners.setdefault(settings[number].get(name, "none"), []).append(number)
    if len(owners) > 1:
      parts.append(
        f"{name} is "
        + ", but ".join(
          f"{value} on process {_list(numbers)}"
          for value, numbers in owners.items()
        )
      )
  if not parts:
    return ""
  return (
    f"The processes differ: {'; '.join(parts)}. Start all of them with "
    "the same command, config files and package."
  )


def _list(numbers: Sequence[int]) -> str:
  """Returns numbers separated by commas, shortened if there are many."""
  more = len(numbers) - _MAX_LISTED
  return ", ".join(map(str, numbers[:_MAX_LISTED])) + (
    f" and {more} more" if more > 0 else ""
  )


def _collect(
  host: str,
  port: int,
  num_processes: int,
  settings: Settings,
  deadline: float,
  timeout: float,
) -> str:
  """Process 0: receives from all processes, answers them, returns the verdict.

  The verdict is "" if the run can start, else an error message.
  """
  known: dict[int, Settings] = {0: dict(settings)}
  connections: dict[int, socket.socket] = {}
  verdict = ""
  try:
    server = _listen(host, port)
  except OSError as error:
    raise errors.UserError(
      f"Process 0 cannot listen on port {port} ({error.strerror}); end the "
      "program that uses it, or choose another port with --coordinator or "
      "JAX_COORDINATOR_PORT."
    ) from error
  with contextlib.ExitStack() as stack:
    stack.enter_context(server)
    while len(known) < num_processes and not verdict:
      left = deadline - time.monotonic()
      if left <= 0:
        missing = [n for n in range(num_processes) if n not in known]
        verdict = (
          f"{len(known)} of {num_processes} processes connected within "
          f"{timeout:g} s; process {_list(missing)} did not. Look at its "
          "log and start all of them again, or raise "
          "--initialization-timeout."
        )
        break
      server.settimeout(left)
      with contextlib.suppress(TimeoutError):
        connection = stack.enter_context(server.accept()[0])
        verdict = _register(
          connection, num_processes, known, connections, deadline
        )
      if len(known) == num_processes and not verdict:
        _drop_closed(known, connections)
    verdict = verdict or differences(known)
    for connection in connections.values():
      with contextlib.suppress(OSError):  # The process may have ended.
        _send(connection, {"verdict": verdict})
  return verdict


def _register(
  connection: socket.socket,
  num_processes: int,
  known: dict[int, Settings],
  connections: dict[int, socket.socket],
  deadline: float,
) -> str:
  """Reads the hello of one process and records its settings.

  Args:
    connection: A new connection, which may belong to an unrelated program.
    num_processes: Number of processes of the run.
    known: Number -> settings of the processes that are present; is updated.
    connections: Number -> connection; is updated.
    deadline: When process 0 stops waiting.

  Returns:
    An error message if the run cannot start, else "".
  """
  connection.settimeout(_GRACE_SECONDS)
  try:
    _enable_keepalive(connection)
    message = _receive(connection)
  except (OSError, ValueError, RecursionError):
    return ""  # Not a process of this project.
  if not _is_hello(message):
    return ""
  number, total = message["process"], message["processes"]
  # A launcher may restart a process while the others wait for it.
  restarted = number in connections and _is_dead(connections[number], deadline)
  duplicate = number in known and not restarted
  if not duplicate:
    known[number] = message["card"]
  # Both processes with the same number must receive the verdict, so the second
  # connection is stored under another key.
  connections[-1 if duplicate else number] = connection
  if total != num_processes:
    return (
      f"Process {number} was started with {total} processes, process 0 with "
      f"{num_processes}; start all with the same --num-processes."
    )
  if duplicate:
    return (
      f"Two processes have the number {number} of {total}; give each process "
      "a different --process-id."
    )
  return ""


def _is_hello(message: object) -> bool:
  """Returns whether a message has the format that `_join` sends."""
  if not isinstance(message, dict) or message.get("hello") != _HELLO:
    return False
  number, total = message.get("process"), message.get("processes")
  settings = message.get("card")
  return (
    type(number) is int
    and type(total) is int
    and 0 <= number < total
    and isinstance(settings, dict)
    and all(isinstance(value, str) for value in settings.values())
  )


def _enable_keepalive(connection: socket.socket) -> None:
  """Lets the operating system detect that the other machine is gone."""
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
    ("TCP_KEEPIDLE", _KEEPALIVE_IDLE_SECONDS),
    ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL_SECONDS),
    ("TCP_KEEPCNT", _KEEPALIVE_PROBES),
  ):
    if hasattr(socket, name):  # Some operating systems lack some of them.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_dead(connection: socket.socket, deadline: float) -> bool:
  """Returns whether the process at the other end has ended.

  A process that ends closes its connection immediately. The connection of a
  machine without power stays open until keepalive detects it, so this waits for
  up to `_DETECTION_SECONDS`.
  """
  deadline = min(deadline, time.monotonic() + _DETECTION_SECONDS)
  while not (dead := _is_closed(connection)) and time.monotonic() < deadline:
    time.sleep(_RETRY_SECONDS)
  return dead


def _drop_closed(
  known: dict[int, Settings], connections: dict[int, socket.socket]
) -> None:
  """Removes the processes that have ended since they connected.

  The launcher restarts each of them. If the ended process were counted, the
  restarted one would not get an answer.
  """
  for number in [n for n, end in connections.items() if _is_closed(end)]:
    del known[number], connections[number]


def _is_closed(connection: socket.socket) -> bool:
  """Returns whether the connection is closed, without waiting."""
  connection.setblocking(False)
  try:
    return connection.recv(1) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    connection.setblocking(True)


def _join(
  host: str,
  port: int,
  num_processes: int,
  process_id: int,
  settings: Settings,
  deadline: float,
  timeout: float,
) -> str:
  """Other processes: sends the settings to process 0, returns its verdict."""
  why = "no answer"
  message = {
    "hello": _HELLO,
    "process": process_id,
    "processes": num_processes,
    # The protocol's name for the settings.
    "card": dict(settings),
  }
  while (left := deadline - time.monotonic()) > 0:
    try:
      # Until process 0 is up, its host name may not resolve and its port is
      # closed.
      with socket.create_connection((host, port), timeout=left) as connection:
        _enable_keepalive(connection)
        _send(connection, message)
        # Process 0 may have started to wait later than this process.
        connection.settimeout(timeout + _GRACE_SECONDS)
        return _receive(connection)["verdict"]
    except (OSError, ValueError) as error:
      why = str(error)
      time.sleep(_RETRY_SECONDS)
  return (
    f"Process {process_id} of {num_processes} could not reach process 0 at "
    f"{host}:{port} within {timeout:g} s ({why}); look at the log of process "
    "0, check the address, or raise --initialization-timeout."
  )


def _listen(host: str, port: int) -> socket.socket:
  """Returns a socket that listens on a port.

  For a loopback address it accepts connections of this machine only, otherwise
  of all interfaces.
  """
  if host in ("127.0.0.1", "localhost"):
    return socket.create_server(("127.0.0.1", port), backlog=4096)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
    )
  return socket.create_server(("", port), backlog=4096)


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
  connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> Any:
  """Returns the JSON value of one message.

  Raises:
    ValueError: The message is not JSON, too long, or incomplete.
  """
  data = b""
  while not data.endswith(b"\n"):
    block = connection.recv(4096)
    if not block or len(data) > _MAX_MESSAGE_BYTES:
      raise ValueError("the connection was closed")
    data += block
  return json.loads(data)
