"""Tests of the protocol: order, rewinding, sharing, reconnecting."""

import base64
import io
import time

import av
import fake_world
import numpy as np
import players
import pytest
from PIL import Image
from players import Player
from websockets import exceptions

from genie_jax.core import images
from genie_jax.serve import branch, protocol

PROMPT = fake_world.picture(1)


def shown(player):
  return [images.from_png(content) for _, content in player.frames]


def test_frames_are_those_of_a_solo_run_in_order_with_their_actions(host):
  actions = [0, 1, 2, 3, 3, 2, 1, 0] * 4
  with Player(host) as player:
    player.start(prompt=1, seed=7)
    player.play(actions)
    headers = [header for header, _ in player.frames]
    assert [header.frame for header in headers] == list(range(33))
    assert [header.seq for header in headers] == list(range(33))
    assert [header.action for header in headers[1:]] == actions
    np.testing.assert_array_equal(
      shown(player), fake_world.solo(PROMPT, 7, actions)
    )


def test_frames_that_a_rewind_deleted_have_no_effect(host):
  with Player(host) as player:
    player.start(prompt=1)
    player.play([0] * 40)
    for frame in (39, 17, 8, 3):
      player.send(type="rewind", frame=frame)
      told = player.until("line")
      assert (told["reason"], told["end"]) == ("rewound", frame)
      player.send(type="act", action=2, seq=1000 - frame)
      _, content = player.until_frame(frame + 1, told["run"])
      np.testing.assert_array_equal(
        images.from_png(content),
        fake_world.solo(PROMPT, 0, [0] * frame + [2])[-1],
      )


def test_a_branch_keeps_the_line_it_left(host):
  with Player(host) as player:
    player.start(prompt=1)
    player.play([0] * 12)
    player.send(type="branch", frame=5)
    told = player.until("line")
    assert told["reason"] == "branched" and told["end"] == 5
    assert [each["end"] for each in told["lines"]] == [12, 5]
    player.play([3, 3], first_seq=100)
    np.testing.assert_array_equal(
      shown(player)[-1], fake_world.solo(PROMPT, 0, [0] * 5 + [3, 3])[-1]
    )
    player.send(type="switch", line=0, have=12)
    assert player.until("line")["actions"] == [0] * 12
    player.play([1], first_seq=200)
    np.testing.assert_array_equal(
      shown(player)[-1], fake_world.solo(PROMPT, 0, [0] * 12 + [1])[-1]
    )
    # A page without frames of the other line receives all of them.
    player.frames.clear()
    player.send(type="switch", line=1)
    run = player.until("line")["run"]
    player.until_frame(7, run)
    np.testing.assert_array_equal(
      shown(player), fake_world.solo(PROMPT, 0, [0] * 5 + [3, 3])
    )


@pytest.mark.parametrize("frame", [20, 9])
def test_a_comparison_holds_each_button_and_changes_nothing(host, frame):
  with Player(host) as player:
    player.start(prompt=1, seed=3)
    player.play([1] * 20)
    player.send(type="compare", frame=frame, frames=4)
    # Played during the comparison, which must not change the line.
    player.send(type="act", action=0, seq=50)
    player.until("compared")
    for action in range(fake_world.NUM_ACTIONS):
      found = [
        images.from_png(content)
        for header, content in player.others
        if header.action == action
      ]
      wanted = fake_world.solo(PROMPT, 3, [1] * frame + [action] * 4)
      np.testing.assert_array_equal(found, wanted[-4:])
    player.play([2], first_seq=51)
    np.testing.assert_array_equal(
      shown(player)[-1], fake_world.solo(PROMPT, 3, [1] * 20 + [0, 2])[-1]
    )


def test_a_shared_run_shows_the_same_frames_again(host):
  actions = [3, 1, 0, 0, 2] * 30
  with Player(host) as player:
    player.start(prompt=2, seed=99, actions=actions)
    player.until_frame(len(actions))
    np.testing.assert_array_equal(
      shown(player), fake_world.solo(fake_world.picture(2), 99, actions)
    )


def test_an_uploaded_picture_is_played_and_sent_with_its_run(host):
  own = fake_world.picture(77)
  status, headers, body = players.post(host, images.to_png(own))
  assert status == 200
  np.testing.assert_array_equal(images.from_png(body), own)
  with Player(host) as player:
    player.send(
      type="start", picture=headers["x-picture"], seed=5, actions=[0, 1]
    )
    told = player.until("line")
    assert told["prompt"] is None
    kept = images.from_png(base64.b64decode(told["picture"]))
    np.testing.assert_array_equal(kept, own)
    player.until_frame(2)
    np.testing.assert_array_equal(
      shown(player), fake_world.solo(own, 5, [0, 1])
    )


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_video_has_the_requested_frames(host, kind):
  with Player(host) as player:
    player.start(prompt=1)
    player.play([0, 1, 2, 3] * 3)
    player.send(type="record", format=kind, first=2, last=9, scale=2)
    while not player.others:
      player.take()
    header, film = player.others[0]
    assert header.kind == protocol.FILM
    wanted = fake_world.solo(PROMPT, 0, [0, 1, 2, 3] * 3)[2:10]
    if kind == "gif":
      with Image.open(io.BytesIO(film)) as gif:
        assert gif.n_frames == 8 and gif.size == (48, 32)
        found = []
        for number in range(8):
          gif.seek(number)
          found.append(np.asarray(gif.convert("RGB"))[::2, ::2])
    else:
      with av.open(io.BytesIO(film)) as container:
        found = [
          frame.to_ndarray(format="rgb24")[::2, ::2]
          for frame in container.decode(video=0)
        ]
    assert len(found) == 8
    for mine, other in zip(found, wanted, strict=True):
      assert np.abs(mine.astype(int) - other).mean() < 12


def test_a_game_resumes_after_a_lost_connection(host):
  with Player(host) as player:
    player.start(prompt=1)
    player.play([0, 1, 2])
    token, run = player.welcome["token"], player.frames[-1][0].run
  with Player(host, hello=False) as player:
    player.send(type="hello", version=1, token=token, run=run, have=1)
    assert player.until("welcome")["resumed"]
    told = player.until("line")
    assert (told["reason"], told["seq"], told["end"]) == ("resumed", 3, 3)
    player.play([3], first_seq=4)
    # Frames 0 and 1 were known.
    assert [header.frame for header, _ in player.frames] == [2, 3, 4]
    np.testing.assert_array_equal(
      shown(player)[-1], fake_world.solo(PROMPT, 0, [0, 1, 2, 3])[-1]
    )
  # A page that was reloaded receives all frames.
  with Player(host, token=token) as player:
    player.until_frame(4)
    np.testing.assert_array_equal(
      shown(player), fake_world.solo(PROMPT, 0, [0, 1, 2, 3])
    )


def test_another_window_takes_the_game_over(host):
  with Player(host) as first:
    first.start()
    with Player(host, token=first.welcome["token"]) as second:
      assert second.welcome["resumed"]
      with pytest.raises(exceptions.ConnectionClosed) as closed:
        first.until("nothing")
      assert closed.value.rcvd.code == 4001
      second.play([1])


def test_a_wrong_token_opens_a_new_game(host):
  with Player(host) as first:
    first.start()
    with Player(host, token="x" * 32) as second:
      assert not second.welcome["resumed"]
      assert second.welcome["token"] != first.welcome["token"]


def test_a_token_with_a_lone_surrogate_opens_a_new_game(host):
  with Player(host) as first:
    first.start()
    with Player(host, token="\ud800") as second:
      assert not second.welcome["resumed"]
      second.start()


def test_a_video_that_is_too_large_for_memory_is_refused(host, monkeypatch):
  monkeypatch.setattr(protocol, "MAX_FILM_PIXELS", 3 * 16 * 24 * 4**2)
  with Player(host) as player:
    player.start()
    player.play([0, 1, 2])
    player.send(type="record", format="gif", first=0, last=3, scale=4)
    assert "fewer frames or a smaller size" in player.until("error")["error"]
    player.send(type="record", format="gif", first=1, last=3, scale=4)
    while not player.others:
      player.take()


def test_after_a_video_that_cannot_be_encoded_the_next_one_is_made(
  host, monkeypatch
):
  def fail(*words):
    raise MemoryError(words)

  with Player(host) as player:
    player.start()
    player.play([0, 1])
    with monkeypatch.context() as patch:
      patch.setattr(images, "to_video", fail)
      player.send(type="record", format="gif", first=0, last=2, scale=1)
      told = player.until("error")
    assert told["of"] == "record" and "could not be made" in told["error"]
    player.send(type="record", format="gif", first=0, last=2, scale=1)
    while not player.others:
      player.take()


def test_old_frames_are_forgotten_and_long_runs_rewind_exactly():
  made = fake_world.make_engine()
  limits = branch.Limits(pictures=200, snapshots=8)
  with players.serving(made, limits=limits) as (server, host):
    actions = [number % 4 for number in range(700)]
    with Player(host) as player:
      player.start(prompt=1, actions=actions)
      player.until_frame(700)
      [session] = server.hub
      assert session.line.first == 501
      assert len(session.line._snapshots) <= 8
      player.send(type="rewind", frame=500)
      assert "not kept" in player.until("error")["error"]
      steps = len(made.world.batches)
      player.send(type="rewind", frame=633)
      player.until("line")
      player.play([3], first_seq=1)
      # From the last snapshot, not from the beginning.
      assert len(made.world.batches) - steps <= 128
      np.testing.assert_array_equal(
        shown(player)[-1], fake_world.solo(PROMPT, 0, actions[:633] + [3])[-1]
      )


def test_pings_are_answered_at_once(host):
  with Player(host) as player:
    began = time.monotonic()
    player.send(type="ping", time=12.5)
    assert player.until("pong")["time"] == 12.5
    assert time.monotonic() - began < 2
