"""Tests of how processes meet, with threads for processes."""

import concurrent.futures
import contextlib
import json
import socket
import struct
import time

import pytest

from genie_jax.core import errors
from genie_jax.sharding import rendezvous

CARD = {"config": "aaa", "version": "1"}
# Of process 1 of 3, which shows an old card.
HELLO = (
  b'{"hello": "genie_jax rendezvous 1", "process": 1, "processes": 3, '
  b'"card": {"config": "old"}}\n'
)


@pytest.fixture
def port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def meet(port, places, timeout=10.0):
  """Lets (id, card, total) meet; returns each one's complaint or None."""

  def one(place):
    number, card, total = place
    try:
      rendezvous.meet("127.0.0.1", port, total, number, card, timeout)
    except errors.UserError as error:
      return str(error)
    return None

  with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    return list(pool.map(one, places))


def test_all_that_show_the_same_card_go_on(port):
  places = [(number, CARD, 4) for number in range(4)]
  assert meet(port, places) == [None] * 4
  assert meet(port, places) == [None] * 4  # and the port is free again


def test_a_different_card_is_named_with_both_values_on_all(port):
  odd = CARD | {"config": "bbb"}
  said = meet(port, [(0, CARD, 4), (1, odd, 4), (2, CARD, 4), (3, CARD, 4)])
  assert len(set(said)) == 1
  assert "config is aaa on process 0, 2, 3, but bbb on process 1" in said[0]
  assert "version" not in said[0] and len(said[0].splitlines()) == 1


def test_a_process_that_does_not_come_is_named_within_the_time(port):
  begin = time.monotonic()
  said = meet(port, [(0, CARD, 4), (2, CARD, 4)], timeout=1.0)
  assert time.monotonic() - begin < 5
  assert said[0] == said[1]
  assert "2 of 4 processes came within 1 s; process 1, 3 did not" in said[0]
  assert "--initialization-timeout" in said[0]


def test_without_process_0_the_others_name_its_address(port):
  (said,) = meet(port, [(1, CARD, 2)], timeout=0.5)
  assert f"could not reach process 0 at 127.0.0.1:{port} within 0.5 s" in said


def test_a_host_without_a_name_is_one_clear_line():
  with pytest.raises(errors.UserError, match=r"nobody\.invalid:1 within"):
    rendezvous.meet("nobody.invalid", 1, 2, 1, CARD, 0.3)


def test_different_numbers_of_processes_are_named(port):
  said = meet(port, [(0, CARD, 2), (1, CARD, 3)])
  assert said[0] == said[1]
  assert "told of 3 processes, process 0 of 2" in said[0]


def test_two_with_one_number_are_told(port, monkeypatch):
  monkeypatch.setattr(rendezvous, "_GONE_SECONDS", 0.5)
  said = meet(port, [(0, CARD, 3), (1, CARD, 3), (1, CARD, 3)])
  assert len(set(said)) == 1 and "call themselves number 1" in said[0]


def test_a_busy_port_is_one_clear_line(port):
  with (
    socket.create_server(("127.0.0.1", port)),
    pytest.raises(errors.UserError, match=f"listen on port {port}"),
  ):
    rendezvous.meet("127.0.0.1", port, 2, 0, CARD, 1.0)


def test_strangers_are_not_counted_and_a_restarted_process_is_once(port):
  hello = json.loads(HELLO)
  odd = [
    hello | {"process": 1.5},
    hello | {"process": [1]},
    hello | {"process": -1},
    hello | {"processes": "3"},
    hello | {"card": "aaa"},
    hello | {"card": {"config": 1}},
  ]
  odd += [
    {n: x for n, x in hello.items() if n != name}
    for name in ("process", "processes", "card")
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(rendezvous.meet, "127.0.0.1", port, 2, 0, CARD, 10.0)
    for message in (
      b"GET / HTTP/1.0\r\n\r\n",
      b"{}\n",
      b"[1]\n",
      b"",
      b"[" * 50_000 + b"\n",
      *(json.dumps(x).encode() + b"\n" for x in odd),
    ):
      knock(port, message)
    # A process that came and died before all were there.
    assert not first.done()
    rendezvous.meet("127.0.0.1", port, 2, 1, CARD, 10.0)
    assert first.result() is None


def test_a_process_that_was_started_again_replaces_itself(port):
  with concurrent.futures.ThreadPoolExecutor(3) as pool:
    meet = lambda n: pool.submit(
      rendezvous.meet, "127.0.0.1", port, 3, n, CARD, 10.0
    )
    first = meet(0)
    knock(port, HELLO)
    # All numbers have come once now, but the first to bear 1 is gone.
    rest = [meet(2)]
    time.sleep(0.5)
    rest.append(meet(1))
    assert [x.result() for x in (first, *rest)] == [None] * 3


def test_a_process_whose_machine_turns_out_gone_is_replaced(port):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(rendezvous.meet, "127.0.0.1", port, 3, 0, CARD, 10.0)
    lost = reach(port)
    lost.sendall(HELLO)
    again = pool.submit(rendezvous.meet, "127.0.0.1", port, 3, 1, CARD, 10.0)
    time.sleep(0.5)
    assert not first.done() and not again.done()
    # What process 0 sees once the system found nobody there: an error.
    lost.setsockopt(
      socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    lost.close()
    rendezvous.meet("127.0.0.1", port, 3, 2, CARD, 10.0)
    assert first.result() is None and again.result() is None


def test_the_system_is_told_to_ask_for_silent_processes():
  with socket.socket() as end:
    rendezvous._keep_asking(end)
    assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    asked = [
      getattr(socket, name)
      for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
      if hasattr(socket, name)
    ]
    quiet = [end.getsockopt(socket.IPPROTO_TCP, name) for name in asked]
  if len(asked) == 3:
    assert quiet[0] + quiet[1] * quiet[2] < rendezvous._GONE_SECONDS


def reach(port):
  """Returns a connection to who listens, who may begin to a little later."""
  for _ in range(50):
    try:
      return socket.create_connection(("127.0.0.1", port), timeout=5)
    except ConnectionRefusedError:
      time.sleep(0.1)
  raise AssertionError("Nobody listens.")


def knock(port, message):
  """Sends bytes and hangs up."""
  with reach(port) as end, contextlib.suppress(ConnectionError):
    end.sendall(message)
