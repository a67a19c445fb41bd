"""Tests that the server refuses foreign pages and malformed messages."""

import http.client
import json
import random

import damage
import fake_world
import numpy as np
import players
import pytest
from PIL import Image
from players import Player
from websockets import exceptions

from genie_jax.core import images
from genie_jax.serve import protocol, security


def get(host, path, **headers):
  """Sends a GET request; returns status, headers and body."""
  connection = http.client.HTTPConnection(host, timeout=20)
  connection.request("GET", path, headers=headers)
  answer = connection.getresponse()
  found = answer.status, answer.headers, answer.read()
  connection.close()
  return found


def test_the_page_and_all_it_needs_come_from_the_server_alone(host):
  status, headers, body = get(host, "/")
  assert status == 200 and b"<canvas" in body
  policy = headers["content-security-policy"]
  assert "default-src 'none'" in policy and "unsafe" not in policy
  assert "frame-ancestors 'none'" in policy
  assert headers["x-content-type-options"] == "nosniff"
  names = {path.name for path in players.page_folder().iterdir()}
  for name in names - {"index.html"}:
    status, headers, content = get(host, f"/{name}")
    assert status == 200, name
    assert "default-src 'none'" in headers["content-security-policy"]
    # The namespace of SVG is not a request.
    text = content.decode().replace("http://www.w3.org/2000/svg", "")
    assert "://" not in text.replace("`${scheme}://${location.host}", "")
  assert get(host, "/prompts/0.png")[2] == images.to_png(fake_world.picture(0))


@pytest.mark.parametrize(
  "path",
  [
    "/no",
    "/../app.py",
    "/%2e%2e/app.py",
    "/prompts/3.png",
    "/prompts/x.png",
    "/page/index.html",
    "//etc/passwd",
    "/play.js/",
  ],
)
def test_nothing_else_is_served(host, path):
  status, _, body = get(host, path)
  assert status == 404, body


@pytest.mark.parametrize(
  "name, allowed",
  [
    ("localhost:1", True),
    ("127.0.0.1", True),
    ("[::1]:8000", True),
    ("192.168.1.5:8000", True),
    ("LOCALHOST", True),
    ("play.example", True),
    ("evil.example", False),
    ("127.0.0.1.evil.example", False),
    ("", False),
    ("localhost.evil.example", False),
    ("a@localhost", False),
    ("localhost/x", False),
    ("[", False),
    ("localhost:x", False),
  ],
)
def test_only_known_hosts_are_answered(name, allowed):
  # DNS rebinding uses a foreign name that points to this machine.
  found = security.Guard(None, ["play.example"]).refusal({"host": name})
  assert (found is None) == allowed


@pytest.mark.parametrize(
  "headers, allowed",
  [
    ({}, True),
    ({"origin": "http://localhost:8000"}, True),
    ({"origin": "https://localhost:8000"}, True),
    ({"origin": "http://localhost:9000"}, False),
    ({"origin": "http://evil.example"}, False),
    ({"origin": "null"}, False),
    ({"origin": "file://"}, False),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True),
  ],
)
def test_only_the_servers_own_page_may_send_requests(headers, allowed):
  found = security.Guard(None, []).refusal(
    {"host": "localhost:8000", **headers}
  )
  assert (found is None) == allowed


def test_a_foreign_page_reaches_neither_socket_nor_uploads(host):
  with pytest.raises(exceptions.InvalidStatus) as refused:
    Player(host, origin="http://evil.example")
  assert refused.value.response.status_code == 403
  with pytest.raises(exceptions.InvalidStatus):
    Player(host, additional_headers={"Sec-Fetch-Site": "cross-site"})
  picture = damage.png(Image.new("RGB", (4, 4)))
  status, _, body = players.post(host, picture, Origin="http://evil.example")
  assert status == 403 and b"Origin" in body
  assert get(host, "/", Host="evil.example")[0] == 403
  with Player(host, origin=f"http://{host}") as player:
    player.start()
  assert players.post(host, picture, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "not JSON"),
    ("{", "not JSON"),
    ("[]", "JSON object"),
    ("NaN", "not JSON"),
    ("[" * 50_000, "not JSON"),
    ("null", "JSON object"),
    ('{"type": "jump"}', "Unknown message type 'jump'"),
    ('{"type": ["act"]}', "Unknown message type"),
    ('{"type": "act", "seq": 1}', "'action' is missing"),
    ('{"type": "act", "action": 1.5, "seq": 1}', "whole number"),
    ('{"type": "act", "action": true, "seq": 1}', "whole number"),
    ('{"type": "act", "action": -1, "seq": 1}', "whole number"),
    ('{"type": "act", "action": 1e400, "seq": 1}', "whole number"),
    ('{"type": "act", "action": 4, "seq": 1}', "out of range"),
    ('{"type": "act", "action": 0, "seq": 1, "sqe": 2}', "did you mean 'seq'"),
    ('{"type": "act", "action": ' + "9" * 5000 + ', "seq": 1}', ""),
    ('{"type": "start"}', "either a prompt"),
    ('{"type": "start", "prompt": 0, "picture": "x"}', "either a prompt"),
    ('{"type": "start", "prompt": 3}', "no prompt 3"),
    ('{"type": "start", "picture": "../x"}', "no such picture"),
    ('{"type": "start", "prompt": 0, "actions": [0, 4]}', "out of range"),
    ('{"type": "start", "prompt": 0, "seed": 4294967296}', "whole number"),
    ('{"type": "rewind", "frame": 5}', "not kept"),
    ('{"type": "branch", "frame": 5}', "not kept"),
    ('{"type": "switch", "line": 9}', "no line 9"),
    ('{"type": "compare", "frame": 0, "frames": 33}', "whole number"),
    ('{"type": "record", "format": "avi", "last": 0}', "gif, mp4"),
    ('{"type": "record", "format": "gif", "first": 1, "last": 0}', "kept"),
    ('{"type": "hello", "version": 1}', "already sent a hello"),
  ],
)
def test_a_malformed_message_gets_a_reason_and_play_continues(
  host, text, reason
):
  with Player(host) as player:
    player.start()
    player.socket.send(text)
    error = player.until("error")["error"]
    assert reason in error and len(error) < 300 and "\n" not in error
    player.play([1, 2])


def test_binary_messages_and_other_versions_get_a_reason(host):
  with Player(host, hello=False) as player:
    player.send(type="start", prompt=0)
    assert "first message must be a hello" in player.until("error")["error"]
    player.send(type="hello", version=2)
    assert "speaks version 1" in player.until("error")["error"]
    player.send(type="hello", version=1)
    player.until("welcome")
    player.socket.send(b"\x00\xff")
    assert "must be text" in player.until("error")["error"]


def mutated(choose):
  """Returns a message that is valid, nearly valid, or neither."""
  values = [
    0,
    1,
    3,
    4,
    -1,
    2**32,
    1.5,
    "x",
    "",
    None,
    True,
    [],
    [0, 9],
    {},
    "a" * 300,
    1e300,
    20_000,
  ]
  message = choose.choice(
    [
      {"type": "act", "action": 1, "seq": 10**6 + choose.randrange(10**8)},
      {"type": "start", "prompt": 1, "seed": 5, "actions": [0, 1]},
      {"type": "start", "picture": "x"},
      {"type": "rewind", "frame": 1},
      {"type": "branch", "frame": 0},
      {"type": "switch", "line": 0},
      {"type": "compare", "frame": 0, "frames": 1},
      {"type": "ping"},
      {"type": "record", "format": "gif", "last": 1},
      {"type": "hello"},
    ]
  )
  for _ in range(choose.randrange(3)):
    key = choose.choice([*message, choose.choice(["x", "token", "frame"])])
    if choose.random() < 0.3:
      message.pop(key, None)
    else:
      message[key] = choose.choice(values)
  text = json.dumps(message)
  if choose.random() < 0.15:
    text = damage.damaged(text.encode(), choose).decode("utf-8", "replace")
  return text


def flood(host, seed, count):
  """Sends malformed messages during a game, which they must not affect."""
  choose = random.Random(seed)
  with Player(host) as honest, Player(host) as fuzzer:
    honest.start(prompt=0, seed=seed)
    actions = []
    for number in range(count):
      fuzzer.socket.send(mutated(choose))
      if number % 100 == 99:
        actions.append(choose.randrange(4))
        honest.play(actions[-1:], first_seq=len(actions))
        # All messages were answered or ignored, and the connection is open.
        fuzzer.send(type="ping", time=number)
        while fuzzer.until("pong")["time"] != number:
          pass
    np.testing.assert_array_equal(
      [images.from_png(content) for _, content in honest.frames],
      fake_world.solo(fake_world.picture(0), seed, actions),
    )
    # Not one frame of the honest game was sent to the other.
    theirs = {content for _, content in honest.frames[1:]}
    assert not theirs & {
      content
      for header, content in fuzzer.frames + fuzzer.others
      if header.frame > 0
    }
    assert any("error" in text for text in fuzzer.texts)


@pytest.fixture()
def patient(monkeypatch):
  """Disables the rate limit, which would hide the effect of the messages."""
  monkeypatch.setattr(security.TokenBucket, "take", lambda self, now: True)


def test_two_thousand_strange_messages_disturb_no_other_game(patient, host):
  flood(host, 7, 2000)


@pytest.mark.slow
def test_twenty_thousand_strange_messages_disturb_no_other_game(patient, host):
  flood(host, 8, 20_000)


def test_every_strange_message_is_parsed_or_refused_in_one_line():
  choose = random.Random(3)
  for _ in range(5000):
    try:
      message = protocol.parse(mutated(choose))
      assert message["type"] in protocol.MESSAGES
    except protocol.Malformed as error:
      assert "\n" not in str(error) and len(str(error)) < 400
