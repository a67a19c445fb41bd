"""Tests of the rendezvous, with threads in place of processes."""

import concurrent.futures
import contextlib
import json
import socket
import struct
import time

import pytest

from genie_jax.core import errors
from genie_jax.sharding import rendezvous

SETTINGS = {"config": "aaa", "version": "1"}
# The message of process 1 of 3, with old settings.
HELLO = (
  b'{"hello": "genie_jax rendezvous 1", "process": 1, "processes": 3, '
  b'"card": {"config": "old"}}\n'
)


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def meet(port, processes, timeout=10.0):
  """Runs a rendezvous; returns the error message or None of each process.

  Args:
    port: The port of process 0.
    processes: (number, settings, number of processes) of each process.
    timeout: Seconds.
  """

  def run(process):
    number, settings, total = process
    try:
      rendezvous.meet("127.0.0.1", port, total, number, settings, timeout)
    except errors.UserError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    return list(pool.map(run, processes))


def test_processes_with_equal_settings_can_start(port):
  processes = [(number, SETTINGS, 4) for number in range(4)]
  assert meet(port, processes) == [None] * 4
  assert meet(port, processes) == [None] * 4  # and the port is free again


def test_all_processes_report_different_settings_with_both_values(port):
  processes = [(number, SETTINGS, 4) for number in range(4)]
  processes[1] = (1, SETTINGS | {"config": "bbb"}, 4)
  messages = meet(port, processes)
  assert len(set(messages)) == 1
  message = messages[0]
  assert "config is aaa on process 0, 2, 3, but bbb on process 1" in message
  assert "version" not in message and len(message.splitlines()) == 1


def test_missing_processes_are_reported_after_the_timeout(port):
  begin = time.monotonic()
  messages = meet(port, [(0, SETTINGS, 4), (2, SETTINGS, 4)], timeout=1.0)
  assert time.monotonic() - begin < 5
  assert messages[0] == messages[1]
  assert (
    "2 of 4 processes connected within 1 s; process 1, 3 did not" in messages[0]
  )
  assert "--initialization-timeout" in messages[0]


def test_without_process_0_the_others_report_its_address(port):
  (message,) = meet(port, [(1, SETTINGS, 2)], timeout=0.5)
  assert f"could not reach process 0 at 127.0.0.1:{port} within 0.5" in message


def test_an_unknown_host_name_is_reported_in_one_line(unknown_host):
  with pytest.raises(errors.UserError, match=rf"{unknown_host}:1 within"):
    rendezvous.meet(unknown_host, 1, 2, 1, SETTINGS, 0.3)


def test_different_numbers_of_processes_are_reported(port):
  messages = meet(port, [(0, SETTINGS, 2), (1, SETTINGS, 3)])
  assert messages[0] == messages[1]
  assert "started with 3 processes, process 0 with 2" in messages[0]


def test_two_processes_with_the_same_number_are_reported(port, monkeypatch):
  monkeypatch.setattr(rendezvous, "_DETECTION_SECONDS", 0.5)
  messages = meet(port, [(0, SETTINGS, 3), (1, SETTINGS, 3), (1, SETTINGS, 3)])
  assert len(set(messages)) == 1 and "have the number 1" in messages[0]


def test_a_used_port_is_reported_in_one_line(port):
  with (
    socket.create_server(("127.0.0.1", port)),
    pytest.raises(errors.UserError, match=f"listen on port {port}"),
  ):
    rendezvous.meet("127.0.0.1", port, 2, 0, SETTINGS, 1.0)


def test_other_messages_are_ignored_and_a_restart_is_counted_once(port):
  hello = json.loads(HELLO)
  invalid = [
    hello | {"process": 1.5},
    hello | {"process": [1]},
    hello | {"process": -1},
    hello | {"processes": "3"},
    hello | {"card": "aaa"},
    hello | {"card": {"config": 1}},
  ]
  invalid += [
    {n: x for n, x in hello.items() if n != name}
    for name in ("process", "processes", "card")
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(
      rendezvous.meet, "127.0.0.1", port, 2, 0, SETTINGS, 10.0
    )
    for message in (
      b"GET / HTTP/1.0\r\n\r\n",
      b"{}\n",
      b"[1]\n",
      b"",
      b"[" * 50_000 + b"\n",
      *(json.dumps(x).encode() + b"\n" for x in invalid),
    ):
      send(port, message)
    # None of these messages counts as process 1.
    assert not first.done()
    rendezvous.meet("127.0.0.1", port, 2, 1, SETTINGS, 10.0)
    assert first.result() is None


def test_a_restarted_process_replaces_the_ended_one(port):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    meet = lambda n: pool.submit(
      rendezvous.meet, "127.0.0.1", port, 3, n, SETTINGS, 10.0
    )
    first = meet(0)
    send(port, HELLO)
    # With process 2 all numbers have connected once, but process 1 has ended.
    rest = [meet(2)]
    time.sleep(0.5)
    rest.append(meet(1))
    assert [x.result() for x in (first, *rest)] == [None] * 3


def test_a_process_whose_connection_turns_out_dead_is_replaced(port):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(
      rendezvous.meet, "127.0.0.1", port, 3, 0, SETTINGS, 10.0
    )
    lost = connect(port)
    lost.sendall(HELLO)
    again = pool.submit(
      rendezvous.meet, "127.0.0.1", port, 3, 1, SETTINGS, 10.0
    )
    time.sleep(0.5)
    assert not first.done() and not again.done()
    # Lets process 0 see an error, as after unanswered keepalive probes.
    lost.setsockopt(
      socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    lost.close()
    rendezvous.meet("127.0.0.1", port, 3, 2, SETTINGS, 10.0)
    assert first.result() is None and again.result() is None


def test_keepalive_is_enabled_and_fits_the_detection_time():
  with socket.socket() as connection:
    rendezvous._enable_keepalive(connection)
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = [
      getattr(socket, name)
      for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
      if hasattr(socket, name)
    ]
    found = [connection.getsockopt(socket.IPPROTO_TCP, x) for x in options]
  if len(options) == 3:
    idle, interval, probes = found
    assert idle + interval * probes < rendezvous._DETECTION_SECONDS


def connect(port):
  """Connects to a port; retries while nothing listens there yet."""
  for _ in range(50):
    try:
      return socket.create_connection(("127.0.0.1", port), timeout=5)
    except ConnectionRefusedError:
      time.sleep(0.1)
  raise AssertionError("Nothing listens on the port.")


def send(port, message):
  """Sends bytes and closes the connection."""
  with connect(port) as connection, contextlib.suppress(ConnectionError):
    connection.sendall(message)
