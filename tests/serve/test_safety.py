"""Tests of what the server refuses: foreign pages, bombs, nonsense."""

import http.client
import io
import json
import random
import socket
import time

import fake_world
import numpy as np
import players
import pytest
from PIL import Image
from players import Player
from websockets import exceptions

from genie_jax.core import images
from genie_jax.serve import guard, pictures, protocol


def get(host, path, **headers):
  """Returns status, headers and body, with any Host that is asked for."""
  connection = http.client.HTTPConnection(host, timeout=20)
  connection.request("GET", path, headers=headers)
  answer = connection.getresponse()
  found = answer.status, answer.headers, answer.read()
  connection.close()
  return found


def png(picture, kind="PNG", **options):
  buffer = io.BytesIO()
  picture.save(buffer, kind, **options)
  return buffer.getvalue()


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
    # The name space of SVG is no request.
    text = content.decode().replace("http://www.w3.org/2000/svg", "")
    assert "://" not in text.replace("`${scheme}://${location.host}", "")
  assert get(host, "/prompts/0.png")[2] == images.to_png(
      fake_world.picture(0))


@pytest.mark.parametrize("path", [
    "/no", "/../app.py", "/%2e%2e/app.py", "/prompts/3.png", "/prompts/x.png",
    "/page/index.html", "//etc/passwd", "/play.js/"])
def test_nothing_else_is_served(host, path):
  status, _, body = get(host, path)
  assert status == 404, body


@pytest.mark.parametrize("name, allowed", [
    ("localhost:1", True), ("127.0.0.1", True), ("[::1]:8000", True),
    ("192.168.1.5:8000", True), ("LOCALHOST", True), ("play.example", True),
    ("evil.example", False), ("127.0.0.1.evil.example", False), ("", False),
    ("localhost.evil.example", False), ("a@localhost", False),
    ("localhost/x", False), ("[", False), ("localhost:x", False)])
def test_only_known_hosts_are_answered(name, allowed):
  # A foreign name that points here is how DNS rebinding comes in.
  found = guard.Guard(None, ["play.example"]).refusal({"host": name})
  assert (found is None) == allowed


@pytest.mark.parametrize("headers, allowed", [
    ({}, True), ({"origin": "http://localhost:8000"}, True),
    ({"origin": "https://localhost:8000"}, True),
    ({"origin": "http://localhost:9000"}, False),
    ({"origin": "http://evil.example"}, False), ({"origin": "null"}, False),
    ({"origin": "file://"}, False),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, True)])
def test_only_the_servers_own_page_may_ask(headers, allowed):
  found = guard.Guard(None, []).refusal({"host": "localhost:8000", **headers})
  assert (found is None) == allowed


def test_a_foreign_page_reaches_neither_socket_nor_uploads(host):
  with pytest.raises(exceptions.InvalidStatus) as refused:
    Player(host, origin="http://evil.example")
  assert refused.value.response.status_code == 403
  with pytest.raises(exceptions.InvalidStatus):
    Player(host, additional_headers={"Sec-Fetch-Site": "cross-site"})
  picture = png(Image.new("RGB", (4, 4)))
  status, _, body = players.post(host, picture, Origin="http://evil.example")
  assert status == 403 and b"Origin" in body
  assert get(host, "/", Host="evil.example")[0] == 403
  with Player(host, origin=f"http://{host}") as player:
    player.start()
  assert players.post(host, picture, Origin=f"http://{host}")[0] == 200


def test_an_upload_is_stopped_before_or_while_it_is_read(host):
  name, port = host.split(":")
  head = f"POST /pictures HTTP/1.1\r\nHost: {host}\r\n"
  with socket.create_connection((name, int(port)), timeout=20) as line:
    line.sendall(
        f"{head}Content-Length: {pictures.MAX_BYTES + 1}\r\n\r\n".encode())
    assert b" 413 " in line.recv(1000)
  # Without a stated length: sent until the server hangs up.
  with socket.create_connection((name, int(port)), timeout=20) as line:
    line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece, sent = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0
    with pytest.raises(OSError):
      while sent < 64 << 20:
        line.sendall(piece)
        sent += 1 << 16
    assert sent < 32 << 20


def test_bombs_and_what_is_no_picture_get_a_reason(host):
  bomb = png(Image.new("1", (20_000, 20_000)))
  assert len(bomb) < 100_000
  gap = png(Image.new("RGB", (64, 64)))
  for content, reason in (
      (bomb, b"pixels"), (b"", b"empty"), (b"GIF89a", b"not a picture"),
      (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"unknown format"),
      (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"unknown format"),
      (gap[:60], b"not a picture"), (bytes(1000), b"unknown format")):
    status, _, body = players.post(host, content)
    assert status == 415 and reason in body, body
    assert len(json.loads(body)["error"].splitlines()) == 1


def test_a_photo_of_fifty_megapixels_is_read_small(host):
  photo = png(Image.linear_gradient("L").resize((8192, 6144)), "JPEG")
  assert len(photo) < pictures.MAX_BYTES
  began = time.monotonic()
  status, _, body = players.post(host, photo)
  assert status == 200 and time.monotonic() - began < 20
  frame = images.from_png(body)
  assert frame[-1].mean() > frame[0].mean() + 150


def test_every_kind_of_picture_becomes_a_frame(host):
  height, width = fake_world.SHAPE[:2]
  base = Image.fromarray(fake_world.picture(5))
  clear = base.convert("RGBA")
  clear.putalpha(0)
  turned = Image.Exif()
  turned[0x0112] = 6  # The camera was held upright.
  deep = Image.fromarray(np.full((height, width), 65535, np.uint16))
  odd = np.full((height, width), np.nan, np.float32)
  odd[:, 12:] = 1.0
  wanted = {
      "white": np.full((height, width, 3), 255),
      "base": np.asarray(base),
      "half": np.where(np.arange(width) < 12, 0, 255)[None, :, None].repeat(
          height, 0).repeat(3, 2)}
  for content, name in (
      (png(base), "base"), (png(base, "BMP"), "base"),
      (png(base, "TIFF"), "base"), (png(clear), "white"), (png(deep), "white"),
      (png(Image.fromarray(odd), "TIFF"), "half"),
      (png(base, "WEBP", lossless=True), "base"),
      (png(base.transpose(Image.Transpose.ROTATE_90), exif=turned.tobytes()),
       "base"),
      (png(base, "PNG", save_all=True, append_images=[clear]), "base")):
    status, _, body = players.post(host, content)
    assert status == 200, body
    np.testing.assert_array_equal(
        images.from_png(body), wanted[name], err_msg=name)
  assert players.post(host, png(base.convert("CMYK"), "JPEG"))[0] == 200
  assert players.post(host, png(base.convert("P"), "GIF"))[0] == 200


def test_pictures_sent_too_fast_are_refused(host):
  small = png(Image.new("RGB", (4, 4)))
  found = [players.post(host, small)[0] for _ in range(40)]
  assert found[0] == 200 and 429 in found


@pytest.mark.parametrize("text, reason", [
    ("", "not JSON"), ("{", "not JSON"), ("[]", "JSON object"),
    ("NaN", "not JSON"), ("[" * 50_000, "not JSON"), ("null", "JSON object"),
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
    ('{"type": "start"}', "one of both"),
    ('{"type": "start", "prompt": 0, "picture": "x"}', "one of both"),
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
    ('{"type": "hello", "version": 1}', "hello already"),
])
def test_a_malformed_message_gets_a_reason_and_play_goes_on(
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
    assert "first message is a hello" in player.until("error")["error"]
    player.send(type="hello", version=2)
    assert "speaks version 1" in player.until("error")["error"]
    player.send(type="hello", version=1)
    player.until("welcome")
    player.socket.send(b"\x00\xff")
    assert "are texts" in player.until("error")["error"]


def sample_pictures():
  """Returns valid files of every format that is read."""
  random_ = np.random.default_rng(0)
  noise = Image.fromarray(random_.integers(0, 256, (24, 32, 3), np.uint8))
  return [
      png(noise), png(noise.convert("P")), png(noise.convert("LA")),
      png(noise, "JPEG"), png(noise.convert("CMYK"), "JPEG"),
      png(noise, "JPEG", progressive=True), png(noise, "GIF"),
      png(noise, "GIF", save_all=True, append_images=[noise]),
      png(noise, "WEBP"), png(noise, "WEBP", lossless=True),
      png(noise, "BMP"), png(noise, "TIFF"), png(noise, "PPM"),
      png(noise, "TIFF", compression="tiff_lzw"),
      png(noise.convert("F"), "TIFF"), png(noise.convert("I;16"), "TIFF"),
      png(noise.convert("1"), "TIFF", compression="group4")]


def damaged(content, choose):
  """Returns bytes like these, with something wrong."""
  content = bytearray(content)
  for _ in range(choose.choice([1, 1, 2, 5, 30])):
    where = choose.randrange(len(content) or 1)
    kind = choose.randrange(5)
    if kind == 0 and content:
      content[where] = choose.choice([0, 1, 127, 128, 255,
                                      choose.randrange(256)])
    elif kind == 1:
      del content[where:]
    elif kind == 2:
      content[where:where] = choose.randbytes(choose.randrange(9))
    elif kind == 3:
      del content[where:where + choose.randrange(9)]
    else:
      content[where:where + 4] = choose.choice(
          [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"])
  return bytes(content)


def read_damaged(seed, count):
  from genie_jax.core import errors

  choose, samples, refused = random.Random(seed), sample_pictures(), 0
  for _ in range(count):
    content = damaged(choose.choice(samples), choose)
    try:
      frame = images.read_prompt(io.BytesIO(content), 16, 24, "It")
      assert frame.shape == (16, 24, 3) and frame.dtype == np.uint8
    except errors.UserError as error:
      assert "\n" not in str(error)
      refused += 1
  assert count // 4 < refused < count


def test_two_thousand_damaged_pictures_are_read_or_refused():
  read_damaged(0, 2000)


@pytest.mark.slow
def test_forty_thousand_damaged_pictures_are_read_or_refused():
  read_damaged(1, 40_000)


def test_damaged_uploads_leave_the_server_up(server, monkeypatch):
  found, host = server
  monkeypatch.setattr(found._uploads, "take", lambda now: True)
  choose, samples = random.Random(2), sample_pictures()
  for _ in range(300):
    content = damaged(choose.choice(samples), choose)
    status, _, body = players.post(host, content)
    assert status in (200, 415), body
  assert players.post(host, samples[0])[0] == 200


def mutated(choose):
  """Returns a message that is valid, nearly valid, or neither."""
  values = [0, 1, 3, 4, -1, 2**32, 1.5, "x", "", None, True, [], [0, 9], {},
            "a" * 300, 1e300, 20_000]
  message = choose.choice([
      {"type": "act", "action": 1, "seq": 10**6 + choose.randrange(10**8)},
      {"type": "start", "prompt": 1, "seed": 5, "actions": [0, 1]},
      {"type": "start", "picture": "x"}, {"type": "rewind", "frame": 1},
      {"type": "branch", "frame": 0}, {"type": "switch", "line": 0},
      {"type": "compare", "frame": 0, "frames": 1}, {"type": "ping"},
      {"type": "record", "format": "gif", "last": 1}, {"type": "hello"}])
  for _ in range(choose.randrange(3)):
    key = choose.choice([*message, choose.choice(["x", "token", "frame"])])
    if choose.random() < 0.3:
      message.pop(key, None)
    else:
      message[key] = choose.choice(values)
  text = json.dumps(message)
  if choose.random() < 0.15:
    text = damaged(text.encode(), choose).decode("utf-8", "replace")
  return text


def flood(host, seed, count):
  """Sends nonsense beside a game; the game must not notice."""
  choose = random.Random(seed)
  with Player(host) as honest, Player(host) as fuzzer:
    honest.start(prompt=0, seed=seed)
    actions = []
    for number in range(count):
      fuzzer.socket.send(mutated(choose))
      if number % 100 == 99:
        actions.append(choose.randrange(4))
        honest.play(actions[-1:], first_seq=len(actions))
        # All that was sent was answered or ignored, and the line is up.
        fuzzer.send(type="ping", time=number)
        while fuzzer.until("pong")["time"] != number:
          pass
    np.testing.assert_array_equal(
        [images.from_png(content) for _, content in honest.frames],
        fake_world.solo(fake_world.picture(0), seed, actions))
    # Not one frame of the honest game was sent to the other.
    theirs = {content for _, content in honest.frames[1:]}
    assert not theirs & {
        content for header, content in fuzzer.frames + fuzzer.others
        if header.frame > 0}
    assert any("error" in text for text in fuzzer.texts)


@pytest.fixture()
def patient(monkeypatch):
  """No limit on messages a second, which would hide what they do."""
  monkeypatch.setattr(guard.Bucket, "take", lambda self, now: True)


def test_two_thousand_strange_messages_disturb_no_other_game(patient, host):
  flood(host, 7, 2000)


@pytest.mark.slow
def test_twenty_thousand_strange_messages_disturb_no_other_game(
    patient, host
):
  flood(host, 8, 20_000)


def test_every_strange_message_is_parsed_or_refused_in_one_line():
  choose = random.Random(3)
  for _ in range(5000):
    try:
      message = protocol.parse(mutated(choose))
      assert message["type"] in protocol.MESSAGES
    except protocol.Malformed as error:
      assert "\n" not in str(error) and len(str(error)) < 400
