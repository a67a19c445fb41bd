"""Tests of uploads: conversion, limits, bombs, damaged files."""

import asyncio
import contextlib
import io
import json
import random
import socket
import threading
import time

import fake_world
import numpy as np
import players
import pytest
from damage import damaged, png, sample_pictures
from PIL import Image
from players import Player

from genie_jax.core import errors, images
from genie_jax.serve import app, security
from genie_jax.serve import uploads as uploads_lib


def test_an_upload_is_stopped_before_or_while_it_is_read(host):
  name, port = host.split(":")
  head = f"POST /pictures HTTP/1.1\r\nHost: {host}\r\n"
  with socket.create_connection((name, int(port)), timeout=20) as line:
    line.sendall(
      f"{head}Content-Length: {uploads_lib.MAX_BYTES + 1}\r\n\r\n".encode()
    )
    assert b" 413 " in line.recv(1000)
  # Without a stated length: sent until the server closes the connection.
  with socket.create_connection((name, int(port)), timeout=20) as line:
    line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    piece, sent = b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0
    with pytest.raises(OSError):
      while sent < 64 << 20:
        line.sendall(piece)
        sent += 1 << 16
    assert sent < 32 << 20


def test_bombs_and_files_that_are_not_pictures_get_a_reason(host):
  bomb = png(Image.new("1", (20_000, 20_000)))
  assert len(bomb) < 100_000
  gap = png(Image.new("RGB", (64, 64)))
  for content, reason in (
    (bomb, b"pixels"),
    (b"", b"empty"),
    (b"GIF89a", b"not a picture"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"unknown format"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"unknown format"),
    (gap[:60], b"not a picture"),
    (bytes(1000), b"unknown format"),
  ):
    status, _, body = players.post(host, content)
    assert status == 415 and reason in body, body
    assert len(json.loads(body)["error"].splitlines()) == 1


def test_a_photo_of_fifty_megapixels_is_read_small(host):
  photo = png(Image.linear_gradient("L").resize((8192, 6144)), "JPEG")
  assert len(photo) < uploads_lib.MAX_BYTES
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
    "half": np.where(np.arange(width) < 12, 0, 255)[None, :, None]
    .repeat(height, 0)
    .repeat(3, 2),
  }
  for content, name in (
    (png(base), "base"),
    (png(base, "BMP"), "base"),
    (png(base, "TIFF"), "base"),
    (png(clear), "white"),
    (png(deep), "white"),
    (png(Image.fromarray(odd), "TIFF"), "half"),
    (png(base, "WEBP", lossless=True), "base"),
    (
      png(base.transpose(Image.Transpose.ROTATE_90), exif=turned.tobytes()),
      "base",
    ),
    (png(base, "PNG", save_all=True, append_images=[clear]), "base"),
  ):
    status, _, body = players.post(host, content)
    assert status == 200, body
    np.testing.assert_array_equal(
      images.from_png(body), wanted[name], err_msg=name
    )
  assert players.post(host, png(base.convert("CMYK"), "JPEG"))[0] == 200
  assert players.post(host, png(base.convert("P"), "GIF"))[0] == 200


def test_pictures_sent_too_fast_are_refused(host):
  small = png(Image.new("RGB", (4, 4)))
  found = [players.post(host, small)[0] for _ in range(40)]
  assert found[0] == 200 and 429 in found


def read_damaged(seed, count):
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


@pytest.fixture()
def patient(monkeypatch):
  """Disables the rate limit, which would hide the effect of the uploads."""
  monkeypatch.setattr(security.TokenBucket, "take", lambda self, now: True)


def upload_damaged(host, seed, count, done):
  """Posts damaged files, and plays from some of those that can be read."""
  choose, samples = random.Random(seed), sample_pictures()
  try:
    with Player(host) as guest:
      token = {"X-Session": guest.welcome["token"]}
      taken = 0
      for _ in range(count):
        content = damaged(choose.choice(samples), choose)
        status, headers, body = players.post(host, content, **token)
        assert status in (200, 415), (status, body)
        if status == 415:
          assert len(json.loads(body)["error"].splitlines()) == 1
          continue
        taken += 1
        if taken % 50 == 1:
          frame = images.from_png(body)
          guest.send(type="start", picture=headers["X-Picture"], seed=seed)
          run = guest.until("line")["run"]
          shown = images.from_png(guest.until_frame(0, run)[1])
          np.testing.assert_array_equal(
            shown, fake_world.solo(frame, seed, [])[0]
          )
      assert count // 10 < taken < count
    assert players.post(host, samples[0])[0] == 200
    done.append("whole")
  finally:
    done.append("over")


def play_during_damaged_uploads(host, seed, count):
  """Plays while damaged files are posted, which must not affect the game."""
  choose, done, actions = random.Random(seed), [], []
  uploads = threading.Thread(
    target=upload_damaged, args=(host, seed, count, done)
  )
  with Player(host) as honest:
    honest.start(prompt=0, seed=seed)
    uploads.start()
    while not done and len(actions) < 15_000:  # A run has 20,000 frames.
      burst = [choose.randrange(4) for _ in range(choose.randrange(1, 7))]
      honest.play(burst, first_seq=len(actions) + 1)
      actions += burst
      time.sleep(0.05)
    uploads.join(600)
    assert done == ["whole", "over"]
    headers = [header for header, _ in honest.frames]
    # No frame is lost, duplicated, out of order or of another game.
    assert [header.frame for header in headers] == list(range(len(actions) + 1))
    assert [header.action for header in headers[1:]] == actions
    np.testing.assert_array_equal(
      [images.from_png(content) for _, content in honest.frames],
      fake_world.solo(fake_world.picture(0), seed, actions),
    )
    assert not honest.others
  return len(actions)


def test_three_hundred_damaged_uploads_disturb_no_game(patient, host):
  assert play_during_damaged_uploads(host, 2, 300) > 5


@pytest.mark.slow
def test_three_thousand_damaged_uploads_disturb_no_game(patient, host):
  assert play_during_damaged_uploads(host, 3, 3000) > 50


def name_of(answer):
  status, headers, body = answer
  assert status == 200, body
  return headers["X-Picture"]


def test_a_visitor_who_sends_too_many_pictures_blocks_no_other(host):
  small = png(Image.new("RGB", (4, 4)))
  with Player(host) as greedy, Player(host) as modest:
    tokens = [each.welcome["token"] for each in (greedy, modest)]
    own = name_of(players.post(host, small, **{"X-Session": tokens[1]}))
    found = [
      players.post(host, small, **{"X-Session": tokens[0]})[0]
      for _ in range(40)
    ]
    assert found[0] == 200 and found[-1] == 429
    # Other sessions, and visitors without a session, are not affected.
    name_of(players.post(host, small, **{"X-Session": tokens[1]}))
    name_of(players.post(host, small))
    name_of(players.post(host, small, **{"X-Session": "made up"}))
    modest.send(type="start", picture=own)
    modest.until_frame(0)


def test_a_visitor_without_a_session_is_identified_by_the_address(host):
  small = png(Image.new("RGB", (4, 4)))
  found = [
    players.post(host, small, **{"X-Session": f"no {number}"})[0]
    for number in range(40)
  ]
  assert found[0] == 200 and 429 in found


@pytest.mark.parametrize(
  "one, other, same",
  [
    ("192.0.2.1", "192.0.2.2", False),
    ("192.0.2.1", "192.0.2.1", True),
    ("2001:db8::1", "2001:db8::ffff:1", True),
    ("2001:db8::1", "2001:db8:0:1::1", False),
    ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
    ("", "testclient", False),
  ],
)
def test_one_network_of_ipv6_is_one_visitor(one, other, same):
  assert (security.network(one) == security.network(other)) == same


def test_all_visitors_together_have_a_limit_too():
  limiter = uploads_lib.Limiter(0.0)

  def tried(visitor, now):
    try:
      with limiter.take(visitor, now):
        return True
    except uploads_lib.TooMany:
      return False

  assert sum(tried("greedy", 0.0) for _ in range(100)) == 20
  assert sum(tried(f"visitor {n}", 0.0) for n in range(200)) == 80
  # Tokens come back: 20 per second for all, 2 per second for each.
  assert sum(tried(f"visitor {n}", 1.0) for n in range(200)) == 20
  assert sum(tried("greedy", 3.0) for _ in range(100)) == 6
  # Visitors whose buckets are full again are removed.
  assert tried("late", 1000.0) and set(limiter._buckets) == {"late"}


def test_the_number_of_uploads_in_memory_is_limited():
  limiter = uploads_lib.Limiter(0.0)
  with contextlib.ExitStack() as held:
    for visitor in range(6):
      for _ in range(4):
        held.enter_context(limiter.take(f"visitor {visitor}", 0.0))
      with (
        pytest.raises(uploads_lib.TooMany),
        limiter.take(f"visitor {visitor}", 0),
      ):
        pass
    with pytest.raises(uploads_lib.TooMany), limiter.take("one more", 0.0):
      pass
  with limiter.take("one more", 0.0):
    assert limiter._reading == {"one more": 1}


def test_no_visitor_displaces_the_pictures_of_another():
  small = png(Image.new("RGB", (4, 4)))
  store = uploads_lib.Pictures(16, 24)

  async def fill():
    add = lambda visitor: store.add(small, visitor)
    first, _ = await add("modest")
    greedy = [(await add("greedy"))[0] for _ in range(300)]
    assert store.get(first) is not None
    assert [store.get(name) is not None for name in greedy] == (
      [False] * 284 + [True] * 16
    )  # 16 of each visitor.
    for number in range(20):
      for _ in range(16):
        await add(f"visitor {number}")
    assert store.get(first) is not None  # 256 are kept in all, with this one.
    assert len(store._frames) == 256

  asyncio.run(fill())
  store.close()


def test_an_upload_that_takes_too_long_is_ended(host, monkeypatch):
  monkeypatch.setattr(app, "_UPLOAD_SECONDS", 0.5)
  name, port = host.split(":")
  with socket.create_connection((name, int(port)), timeout=20) as line:
    line.sendall(
      f"POST /pictures HTTP/1.1\r\nHost: {host}\r\n"
      "Content-Length: 1000\r\n\r\nsome".encode()
    )
    answer = b""
    while piece := line.recv(1000):  # Up to the end of the connection.
      answer += piece
  assert b" 408 " in answer and b"make it smaller" in answer
