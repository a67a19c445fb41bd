"""Tests that clients which misuse their connection exclude nobody else.

127.0.0.1 is the owner; 127.0.0.2 and so on stand for strangers.
"""

import contextlib
import http.client
import socket
import time

import fake_world
import players
import pytest
from players import Player
from websockets import exceptions

from genie_jax.serve import app, connection, gate, scheduler, security
from genie_jax.serve import server as server_lib

# A client that reads nothing by itself, and does not wait for the end.
UNREAD = {"max_queue": 1, "close_timeout": 0.1}


@pytest.fixture(autouse=True)
def strangers(monkeypatch):
  monkeypatch.setattr(
    security, "is_loopback", lambda address: address == "127.0.0.1"
  )


def connect(host, source="127.0.0.1"):
  name, port = host.split(":")
  try:
    return socket.create_connection((name, int(port)), 20, (source, 0))
  except OSError as error:
    if source == "127.0.0.1":
      raise
    pytest.skip(f"{source} is not an address of this machine: {error}")


def upgrade(host, source="127.0.0.1"):
  """Opens a WebSocket that sends and reads nothing; returns its socket."""
  line = connect(host, source)
  line.sendall(
    f"GET /play HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
  )
  assert b" 101 " in line.recv(1000)
  return line


def status(host, source="127.0.0.1"):
  """Returns the status of the page, None if the connection is refused."""
  name, port = host.split(":")
  page = http.client.HTTPConnection(
    name, int(port), timeout=20, source_address=(source, 0)
  )
  with contextlib.closing(page):
    try:
      page.request("GET", "/")
      return page.getresponse().status
    except OSError:  # The server closes without waiting for the request.
      return None


def seconds_until_closed(line, message=b"", pause=0.1):
  """Sends a message byte by byte, and waits until the server closes."""
  began = time.monotonic()
  line.settimeout(pause)
  for number in range(round(20 / pause)):
    try:
      line.sendall(message[number : number + 1])
      if not line.recv(1 << 16):
        break
    except TimeoutError:
      continue
    except OSError:
      break
  else:
    raise AssertionError("The connection is still open.")
  return time.monotonic() - began


def until(what, seconds=20):
  """Waits until something is true."""
  deadline = time.monotonic() + seconds
  while not what():
    assert time.monotonic() < deadline
    time.sleep(0.01)


@pytest.fixture()
def heavy(monkeypatch):
  """Makes frames large; decoders ignore bytes after a PNG."""
  to_png, ballast = scheduler.images.to_png, bytes(1 << 18)
  monkeypatch.setattr(
    scheduler.images, "to_png", lambda frame: to_png(frame) + ballast
  )


def test_frames_for_clients_that_do_not_read_are_not_queued(heavy, server):
  server, host = server
  with contextlib.ExitStack() as stack:
    slow = [stack.enter_context(Player(host, **UNREAD)) for _ in range(3)]
    for player in slow:
      player.start(actions=[2] * 12)
      player.until_frame(12)
      player.frames.clear()
    connections = [session.connection for session in server.hub]
    most = 0
    for player in slow:
      for _ in range(50):  # 3 x 170 MB, if each queued the frames.
        player.send(type="switch", line=0)
    for _ in range(50):
      most = max(most, *(each.unsent_bytes for each in connections))
      time.sleep(0.01)
    assert 1 << 20 < most < 6 << 20
    # Frames of the newest run come completely, once the client reads.
    while not isinstance(last := slow[0].take(), dict) or last["run"] < 51:
      pass
    slow[0].frames.clear()
    slow[0].until_frame(12)
    assert [each.frame for each, _ in slow[0].frames] == list(range(13))


def test_a_queue_of_other_messages_has_a_limit_in_bytes(monkeypatch):
  monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 1 << 20)
  with (
    players.serving(fake_world.make_engine()) as (server, host),
    Player(host, **UNREAD) as slow,
  ):
    slow.start(actions=[2] * 20_000)
    [session] = server.hub
    queue = session.connection
    most, deadline = 0, time.monotonic() + 20
    while queue._ending is None and time.monotonic() < deadline:
      slow.send(type="switch", line=0, have=20_000)  # Answered by 60 KB.
      most = max(most, queue.unsent_bytes)
      time.sleep(0.005)
    assert queue._ending == (1008, "The client does not read its messages.")
    assert 1 << 18 < most <= 1 << 20
    assert queue.unsent_bytes == 0


def test_a_client_that_reads_nothing_is_disconnected(heavy, monkeypatch):
  monkeypatch.setattr(server_lib, "_PING_SECONDS", 0.5)
  monkeypatch.setattr(gate, "CLOSE_SECONDS", 0.1)
  with (
    players.serving(fake_world.make_engine()) as (server, host),
    Player(host, **UNREAD) as slow,
  ):
    slow.start(actions=[2] * 100)
    [session] = server.hub
    until(lambda: session.connection is None)


def test_a_client_that_leaves_without_reading_is_disconnected(
  heavy, monkeypatch
):
  monkeypatch.setattr(connection, "_CLOSE_SECONDS", 0.1)
  with (
    players.serving(fake_world.make_engine()) as (server, host),
    contextlib.closing(upgrade(host)) as line,
  ):

    def send(text):
      line.sendall(bytes([0x81, 0xFE, 0, len(text)]) + bytes(4) + text)

    send(b'{"type": "hello", "version": 1}'.ljust(126))
    until(lambda: len(server.hub) == 1)
    [session] = server.hub
    actions = str([1] * 40).encode()
    send(b'{"type": "start", "prompt": 0, "actions": ' + actions + b"}")
    for _ in range(100):
      send(b'{"type": "switch", "line": 0}'.ljust(126))
    until(lambda: session.connection.unsent_bytes > 0)
    line.sendall(b"\x88\x80" + bytes(4))  # Close.
    until(lambda: session.connection is None)


def test_silent_connections_exclude_nobody(host):
  with contextlib.ExitStack() as stack:
    for _ in range(230):
      stack.enter_context(contextlib.closing(connect(host)))
    assert status(host) == 200
    with Player(host) as player:
      player.start()
      player.play([1, 2])


def test_a_request_must_arrive_in_time(host, monkeypatch):
  monkeypatch.setattr(gate, "REQUEST_SECONDS", 0.5)
  request = f"GET / HTTP/1.1\r\nHost: {host}\r\nA: {'a' * 999}".encode()
  for message in (b"", request):
    with contextlib.closing(connect(host)) as line:
      assert 0.3 < seconds_until_closed(line, message) < 10


def test_an_answer_must_be_read_in_time(host, monkeypatch):
  monkeypatch.setattr(gate, "EXCHANGE_SECONDS", 0.5)
  request = f"GET /play.css HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
  with contextlib.closing(connect(host)) as line, pytest.raises(OSError):
    line.settimeout(5)
    for _ in range(100_000):
      line.sendall(request)


def test_one_address_has_a_limit_and_others_are_not_affected(host, monkeypatch):
  monkeypatch.setattr(gate, "MOST_OF_ADDRESS", 5)
  with contextlib.ExitStack() as stack:
    for _ in range(5):
      stack.enter_context(contextlib.closing(upgrade(host, "127.0.0.2")))
    assert status(host, "127.0.0.2") in (503, None)
    assert status(host, "127.0.0.3") == 200
    assert status(host) == 200


def test_strangers_cannot_take_the_connections_of_this_machine(monkeypatch):
  monkeypatch.setattr(gate, "MOST_OF_ADDRESS", 1000)
  monkeypatch.setattr(app, "_MAX_WAITING", 1000)
  with (
    players.serving(fake_world.make_engine(), max_sessions=1) as (_, host),
    contextlib.ExitStack() as stack,
  ):
    for _ in range(64 + 8 - gate.RESERVED):
      stack.enter_context(contextlib.closing(upgrade(host, "127.0.0.2")))
    assert status(host, "127.0.0.3") in (503, None)
    assert status(host) == 200
    with Player(host) as player:
      player.start()


def test_websockets_that_send_no_hello_exclude_nobody(host):
  with contextlib.ExitStack() as stack:
    lines = [
      stack.enter_context(contextlib.closing(upgrade(host))) for _ in range(70)
    ]
    with Player(host) as player:
      player.start()
      # The oldest gave way, with code 4000.
      assert b"\x0f\xa0Too many" in lines[0].recv(1000)
      player.play([1])


def test_a_hello_must_arrive_in_time(host, monkeypatch):
  monkeypatch.setattr(app, "_HELLO_SECONDS", 0.5)
  monkeypatch.setattr(gate, "CLOSE_SECONDS", 0.1)
  with contextlib.closing(upgrade(host)) as line:
    # Parts of a message do not put the end off.
    assert 0.3 < seconds_until_closed(line, b"\x81\xfe\xff" + bytes(999)) < 20


def test_the_owner_takes_the_place_of_a_stranger():
  with (
    players.serving(fake_world.make_engine(), max_sessions=1) as (_, host),
    Player(host, sock=connect(host, "127.0.0.2")) as stranger,
  ):
    stranger.start()
    with Player(host, hello=False, sock=connect(host, "127.0.0.3")) as other:
      other.send(type="hello", version=1)
      assert "places are taken" in other.until("error")["error"]
    with Player(host) as owner:
      owner.start()
      with pytest.raises(exceptions.ConnectionClosed) as closed:
        stranger.until("nothing")
      assert closed.value.rcvd.code == 4000


@pytest.mark.parametrize("message", ['{"type": "ping"}', b"\0", "{"])
def test_few_messages_are_taken_before_a_hello(host, message):
  with Player(host, hello=False) as player:
    with pytest.raises(exceptions.ConnectionClosed) as closed:
      for _ in range(50):
        player.socket.send(message)
        player.take()
    assert closed.value.rcvd.code == 1008
    assert len(player.texts) <= connection.MAX_BEFORE_HELLO


@pytest.mark.parametrize("head", [b"\x89\x80", b"\x8a\x80", b"\x00\x80"])
def test_control_frames_and_parts_of_messages_are_limited(host, head):
  frame = head + bytes(4)
  with contextlib.closing(upgrade(host)) as line:
    if head[0] == 0:
      line.sendall(b"\x01\x80" + bytes(4))  # The first part of a text.
    with pytest.raises(OSError):
      for _ in range(100):
        line.sendall(frame * 100)
        time.sleep(0.02)
  with Player(host) as player:
    player.start()


def test_an_upload_of_a_few_bytes_a_second_ends(host, monkeypatch):
  monkeypatch.setattr(app, "_UPLOAD_SECONDS", 0.5)
  head = f"POST /pictures HTTP/1.1\r\nHost: {host}\r\nContent-Length: 999\r\n"
  with contextlib.closing(connect(host)) as line:
    line.sendall(f"{head}\r\n".encode())
    assert 0.3 < seconds_until_closed(line, bytes(999)) < 10
