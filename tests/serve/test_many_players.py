"""Tests of several players: order, fairness, isolation, limits."""

import contextlib
import json
import random
import threading
import time

import fake_world
import numpy as np
import players
import pytest
from players import Player
from websockets import exceptions

from genie_jax.core import images
from genie_jax.serve import protocol, scheduler
from genie_jax.worlds import world


def play_at_random(host, seed, count, found):
  """Plays and rewinds; stores (frames, prompt, actions) in `found[seed]`."""
  choose = random.Random(seed)
  prompt = seed % 3
  with Player(host) as player:
    player.start(prompt=prompt, seed=seed)
    actions, seq = [], 0
    for _ in range(count):
      burst = [choose.randrange(4) for _ in range(choose.randrange(1, 7))]
      player.play(burst, first_seq=seq + 1)
      seq += len(burst)
      actions += burst
      if choose.random() < 0.2:
        frame = choose.randrange(len(actions))
        player.send(type="rewind", frame=frame)
        player.until("line")
        actions = actions[:frame]
        player.frames = player.frames[: frame + 1]
      if choose.random() < 0.1:
        player.send(type="compare", frame=len(actions), frames=2)
    found[seed] = (list(player.frames), prompt, actions)


@pytest.mark.parametrize("batches", [world.BATCHES, (1,)])
def test_sixteen_players_see_their_own_frames_in_order(batches):
  made, found = fake_world.make_engine(batches=batches), {}
  with players.serving(made, max_sessions=16) as (_, host):
    threads = [
      threading.Thread(target=play_at_random, args=(host, seed, 8, found))
      for seed in range(16)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
  assert sorted(found) == list(range(16))
  for seed, (frames, prompt, actions) in found.items():
    headers = [header for header, _ in frames]
    assert [header.frame for header in headers] == list(range(len(headers)))
    assert [header.action for header in headers[1:]] == actions
    seqs = [header.seq for header in headers[1:]]
    assert seqs == sorted(set(seqs))
    np.testing.assert_array_equal(
      [images.from_png(content) for _, content in frames],
      fake_world.solo(fake_world.picture(prompt), seed, actions),
    )
  assert (max(made.world.batches) > 1) == (batches != (1,))


@pytest.mark.parametrize("batches", [world.BATCHES, (1,)])
def test_many_waiting_actions_delay_no_other_player(batches):
  made = fake_world.make_engine(seconds=0.01, batches=batches)
  with (
    players.serving(made) as (_, host),
    Player(host) as greedy,
    Player(host) as modest,
  ):
    greedy.start()
    modest.start()
    for seq in range(1, 61):
      greedy.send(type="act", action=0, seq=seq)
    greedy.send(type="compare", frame=0, frames=32)
    greedy.until_frame(1)
    modest.play([1, 1, 1])
    # Most of what was sent before is still waiting.
    assert sum(made.world.batches) < (60 + 32 * fake_world.NUM_ACTIONS) / 2
    greedy.until_frame(60)


def test_a_client_that_reads_nothing_blocks_nobody_and_loses_nothing(
  monkeypatch,
):
  made = fake_world.make_engine()
  # More than network buffers hold; decoders ignore bytes after a PNG.
  to_png, ballast = scheduler.images.to_png, bytes(1 << 16)
  monkeypatch.setattr(
    scheduler.images, "to_png", lambda frame: to_png(frame) + ballast
  )
  with (
    players.serving(made) as (server, host),
    Player(host, max_queue=1) as slow,
    Player(host) as quick,
  ):
    slow.start(seed=3, actions=[2] * 400)
    quick.start()
    quick.play([0, 1, 2, 3] * 12)
    time.sleep(1)
    quick.play([0, 1, 2, 3] * 12, first_seq=49)
    waiting = next(
      each for each in server.hub if each.token == slow.welcome["token"]
    )
    # Its game waits, so that few messages are queued.
    assert waiting.line.end < 400 and waiting.connection.unsent < 64
    slow.until_frame(400)
    assert [header.frame for header, _ in slow.frames] == list(range(401))


def test_too_many_actions_ahead_are_refused_by_number():
  made = fake_world.make_engine(seconds=0.02)
  with players.serving(made) as (_, host), Player(host) as player:
    player.start()
    for seq in range(1, 80):
      player.send(type="act", action=0, seq=seq)
    assert "actions are waiting" in player.until("error")["error"]
    assert player.texts[-1]["seq"] > 64
    player.until_frame(64)


def test_the_session_limit_holds_and_a_free_place_can_be_taken():
  with players.serving(fake_world.make_engine(), max_sessions=2) as (
    server,
    host,
  ):
    with Player(host) as first, Player(host):
      with Player(host, hello=False) as third:
        third.send(type="hello", version=1)
        assert "2 places are taken" in third.until("error")["error"]
        with pytest.raises(exceptions.ConnectionClosed) as closed:
          third.take()
        assert closed.value.rcvd.code == 4000
      first.send(type="stop")
      with pytest.raises(exceptions.ConnectionClosed):
        first.until("nothing")
      with Player(host) as third:
        third.start()
    # A disconnected player keeps the place until another player needs it.
    with Player(host), Player(host) as last:
      last.start()
    assert len(server.hub) == 2


def test_a_session_that_plays_nothing_expires(monkeypatch):
  from genie_jax.serve import app

  monkeypatch.setattr(app, "_EXPIRE_SECONDS", 0.1)
  with (
    players.serving(fake_world.make_engine(), session_minutes=0.01) as (
      server,
      host,
    ),
    Player(host) as player,
  ):
    player.start()
    with pytest.raises(exceptions.ConnectionClosed) as closed:
      while True:
        # Keeps the connection, but not the session.
        player.send(type="ping", time=0)
        player.take()
        time.sleep(0.05)
    assert closed.value.rcvd.code == 4002
    assert len(server.hub) == 0


def test_a_session_that_expires_when_another_begins_is_closed(monkeypatch):
  from genie_jax.serve import app

  monkeypatch.setattr(app, "_EXPIRE_SECONDS", 1000.0)
  with (
    players.serving(fake_world.make_engine(), session_minutes=0.005) as (
      server,
      host,
    ),
    Player(host) as player,
  ):
    player.start()
    time.sleep(0.6)
    with Player(host) as other:
      other.start()
      with pytest.raises(exceptions.ConnectionClosed) as closed:
        player.play([1])
      assert closed.value.rcvd.code == 4002
      assert [each.token for each in server.hub] == [other.welcome["token"]]


def test_a_flood_of_messages_is_dropped_and_then_disconnected(host):
  with Player(host) as player:
    player.start()
    with pytest.raises(exceptions.ConnectionClosed) as closed:
      # The server may close before all are sent; what it said is still read.
      with contextlib.suppress(exceptions.ConnectionClosed):
        for _ in range(3000):
          player.send(type="ping", time=1)
      while True:
        player.take()
    assert closed.value.rcvd.code == 1008
    assert any(
      "messages per second" in text.get("error", "") for text in player.texts
    )
  with Player(host) as other:
    other.start()


def test_a_message_that_is_too_long_ends_only_that_connection(host):
  with Player(host) as good, Player(host) as bad:
    good.start()
    with pytest.raises(exceptions.ConnectionClosed) as closed:
      bad.socket.send(
        json.dumps({"type": "act", "x": "x" * protocol.MAX_MESSAGE_BYTES})
      )
      while True:
        bad.take()
    assert closed.value.rcvd.code == 1009
    good.play([1])


def test_a_failure_of_the_model_ends_the_server(caplog):
  failures = []
  made = fake_world.make_engine()
  made.world._step = lambda states, actions: 1 // 0
  with (
    pytest.raises(AssertionError),
    players.serving(made, failed=lambda: failures.append(1)) as (_, host),
  ):
    with Player(host) as player:
      player.start()
      player.send(type="act", action=0, seq=1)
      deadline = time.monotonic() + 20
      while not failures and time.monotonic() < deadline:
        time.sleep(0.01)
    raise AssertionError
  assert failures == [1]
