"""Processes meet before JAX starts, so that mistakes end in one clear line.

`jax.distributed` aborts all with a stack trace when one does not come, and
knows nothing of configs. So process 0 first listens on the coordinator's port,
each other process sends its number and its card, and process 0 answers all of
them with the same verdict. Then the port is JAX's.

A message is one line of JSON. Whatever else comes over the port is ignored.

A process that comes a second time replaces the first only where that one is
surely gone: two that live and bear one number are a mistake. A machine that
loses its power says no goodbye, so both ends let the system ask whether the
other one is still there (TCP keepalive).
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence

from genie_jax.core import errors

Card = Mapping[str, str]

_RETRY_SECONDS = 0.2
_MESSAGE_BYTES = 1 << 16
# A word at the start, so that a stray client of the port is not counted.
_HELLO = "genie_jax rendezvous 1"
# Process 0 may take that long to be heard after it ran out of time.
_GRACE_SECONDS = 5.0
# After so much silence the system asks the other end, every so often, and so
# many times before it takes it for gone.
_QUIET_SECONDS, _ASK_SECONDS, _ASKS = 4, 2, 3
_GONE_SECONDS = _QUIET_SECONDS + _ASK_SECONDS * _ASKS + 2.0
_SHOWN = 8


def meet(
  host: str,
  port: int,
  num_processes: int,
  process_id: int,
  card: Card,
  timeout: float,
) -> None:
  """Returns when all processes are here and show the same card.

  Args:
    host: Where process 0 listens.
    port: On which port.
    num_processes: How many must come, process 0 included.
    process_id: Which this is.
    card: What must be the same everywhere, name -> short text.
    timeout: Seconds to wait.

  Raises:
    UserError: Somebody did not come or shows another card; on all processes
      that came, at about the same time.
  """
  deadline = time.monotonic() + timeout
  if process_id == 0:
    verdict = _receive_all(host, port, num_processes, card, deadline, timeout)
  else:
    verdict = _ask(
      host, port, num_processes, process_id, card, deadline, timeout
    )
  if verdict:
    raise errors.UserError(verdict)


def differences(cards: Mapping[int, Card]) -> str:
  """Returns a line on what differs between the processes' cards, or ""."""
  names = sorted({name for card in cards.values() for name in card})
  parts = []
  for name in names:
    owners: dict[str, list[int]] = {}
    for number in sorted(cards):
      owners.setdefault(cards[number].get(name, "none"), []).append(number)
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
  more = len(numbers) - _SHOWN
  return ", ".join(map(str, numbers[:_SHOWN])) + (
    f" and {more} more" if more > 0 else ""
  )


def _receive_all(
  host: str,
  port: int,
  num_processes: int,
  card: Card,
  deadline: float,
  timeout: float,
) -> str:
  """Hears every process, answers all of them, and returns the verdict."""
  cards, ends, verdict = {0: dict(card)}, {}, ""
  try:
    server = _listen(host, port)
  except OSError as error:
    raise errors.UserError(
      f"Process 0 cannot listen on port {port} ({error.strerror}); end what "
      "uses it, or give another port with --coordinator or "
      "JAX_COORDINATOR_PORT."
    ) from error
  with contextlib.ExitStack() as stack:
    stack.enter_context(server)
    while len(cards) < num_processes and not verdict:
      left = deadline - time.monotonic()
      if left <= 0:
        missing = [n for n in range(num_processes) if n not in cards]
        verdict = (
          f"{len(cards)} of {num_processes} processes came within "
          f"{timeout:g} s; process {_list(missing)} did not. Look at its "
          "log and start all of them again, or raise "
          "--initialization-timeout."
        )
        break
      server.settimeout(left)
      with contextlib.suppress(TimeoutError):
        end = stack.enter_context(server.accept()[0])
        verdict = _hear(end, num_processes, cards, ends, deadline)
      if len(cards) == num_processes and not verdict:
        _forget_gone(cards, ends)
    verdict = verdict or differences(cards)
    for end in ends.values():
      with contextlib.suppress(OSError):  # It may be gone by now.
        _send(end, {"verdict": verdict})
  return verdict


def _hear(
  end: socket.socket,
  num_processes: int,
  cards: dict[int, Card],
  ends: dict[int, socket.socket],
  deadline: float,
) -> str:
  """Adds the card of one process; returns a verdict where none can be good."""
  end.settimeout(_GRACE_SECONDS)
  try:
    _keep_asking(end)
    message = _receive(end)
  except (OSError, ValueError, RecursionError):
    return ""  # Not one of ours.
  if not _is_hello(message):
    return ""
  number, total = message["process"], message["processes"]
  # A launcher may start a process again while the others wait for it.
  again = number in ends and _is_gone(ends[number], deadline)
  known = number in cards and not again
  if not known:
    cards[number] = message["card"]
  # The second of two has a key of its own, as both must hear the verdict.
  ends[-1 if known else number] = end
  if total != num_processes:
    return (
      f"Process {number} was told of {total} processes, process 0 of "
      f"{num_processes}; start all with the same --num-processes."
    )
  if known:
    return (
      f"Two processes call themselves number {number} of {total}; give "
      "each its own --process-id."
    )
  return ""


def _is_hello(message: object) -> bool:
  """Returns True for what `_ask` sends."""
  if not isinstance(message, dict) or message.get("hello") != _HELLO:
    return False
  number, total, card = map(message.get, ("process", "processes", "card"))
  return (
    type(number) is int
    and type(total) is int
    and 0 <= number < total
    and isinstance(card, dict)
    and all(isinstance(value, str) for value in card.values())
  )


def _keep_asking(end: socket.socket) -> None:
  """Lets the system find out when the other end's machine is gone."""
  end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
    ("TCP_KEEPIDLE", _QUIET_SECONDS),
    ("TCP_KEEPINTVL", _ASK_SECONDS),
    ("TCP_KEEPCNT", _ASKS),
  ):
    if hasattr(socket, name):  # Not every system has each of them.
      end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_gone(end: socket.socket, deadline: float) -> bool:
  """Returns True where a process ended, after asking for as long as it takes.

  A process that ends closes its connection at once. That of a machine without
  power stays open until nobody answers for some seconds.
  """
  deadline = min(deadline, time.monotonic() + _GONE_SECONDS)
  while not (gone := _is_closed(end)) and time.monotonic() < deadline:
    time.sleep(_RETRY_SECONDS)
  return gone


def _forget_gone(
  cards: dict[int, Card], ends: dict[int, socket.socket]
) -> None:
  """Drops the processes that have ended since they came.

  A launcher starts each of them again; to count the ended one would leave the
  new one without an answer.
  """
  for number in [n for n, end in ends.items() if _is_closed(end)]:
    del cards[number], ends[number]


def _is_closed(end: socket.socket) -> bool:
  """Returns True where the process at the other end is gone."""
  end.setblocking(False)
  try:
    return end.recv(1) == b""
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    end.setblocking(True)


def _ask(
  host: str,
  port: int,
  num_processes: int,
  process_id: int,
  card: Card,
  deadline: float,
  timeout: float,
) -> str:
  """Shows this process's card to process 0 and returns its verdict."""
  why = "no answer"
  message = {
    "hello": _HELLO,
    "process": process_id,
    "processes": num_processes,
    "card": dict(card),
  }
  while (left := deadline - time.monotonic()) > 0:
    try:
      # Its name may not be known, nor its port open, before it is up.
      with socket.create_connection((host, port), timeout=left) as end:
        _keep_asking(end)
        _send(end, message)
        # Process 0 may have begun to wait later than this one.
        end.settimeout(timeout + _GRACE_SECONDS)
        return _receive(end)["verdict"]
    except (OSError, ValueError) as error:
      why = str(error)
      time.sleep(_RETRY_SECONDS)
  return (
    f"Process {process_id} of {num_processes} could not reach process 0 at "
    f"{host}:{port} within {timeout:g} s ({why}); look at that process's "
    "log, check the address, or raise --initialization-timeout."
  )


def _listen(host: str, port: int) -> socket.socket:
  # On a loopback address nobody from outside needs to be heard.
  if host in ("127.0.0.1", "localhost"):
    return socket.create_server(("127.0.0.1", port), backlog=4096)
  if socket.has_dualstack_ipv6():
    return socket.create_server(
      ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
    )
  return socket.create_server(("", port), backlog=4096)


def _send(end: socket.socket, message: Mapping) -> None:
  end.sendall(json.dumps(message).encode() + b"\n")


def _receive(end: socket.socket) -> dict:
  """Returns one message.

  Raises:
    ValueError: It is no JSON, too long, or cut short.
  """
  data = b""
  while not data.endswith(b"\n"):
    piece = end.recv(4096)
    if not piece or len(data) > _MESSAGE_BYTES:
      raise ValueError("the connection was closed")
    data += piece
  return json.loads(data)
