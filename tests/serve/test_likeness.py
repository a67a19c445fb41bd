"""Tests that a picture unlike those of the world is noticed, not refused."""

import fake_world
import numpy as np
import players
import pytest
from players import Player

from genie_jax.core import images
from genie_jax.serve import likeness

ALIKE = fake_world.picture(50)
UNLIKE = fake_world.picture(50)
UNLIKE[::2] = 0  # Rows that squares cannot show.


@pytest.fixture()
def squares():
  """A server of a world that knows pictures of squares, and its address."""
  engine = fake_world.make_engine(made_of=fake_world.SquaresWorld())
  with players.serving(engine) as found:
    yield found


def start(player, host, picture):
  """Starts from the player's own picture; returns all texts up to frame 0."""
  _, headers, _ = players.post(host, images.to_png(picture))
  player.texts.clear()
  player.send(type="start", picture=headers["X-Picture"])
  player.until_frame(0, player.until("line")["run"])
  return player


def test_psnr_is_that_of_eight_bits():
  black = np.zeros((2, 3, 3), np.uint8)
  assert likeness.psnr(black, black + 255) == pytest.approx(0)
  assert likeness.psnr(black, black + 1) == pytest.approx(48.13, abs=0.01)
  assert likeness.psnr(black, black) == pytest.approx(58.92, abs=0.01)


@pytest.mark.parametrize("psnr, unlike", [(21.9, True), (22.1, False)])
def test_the_margin_is_three_decibels_below_the_worst_prompt(psnr, unlike):
  assert likeness.Likeness(psnr, least=25.0).unlike == unlike


def test_the_least_of_the_prompts_counts():
  world = fake_world.SquaresWorld()
  prompts = [ALIKE, UNLIKE, fake_world.picture(3)]
  shown = world.show(world.reset(UNLIKE))
  assert likeness.least(world, prompts) == likeness.psnr(UNLIKE, shown) < 20
  assert likeness.least(world, []) is None


@pytest.mark.parametrize(
  "picture, unlike", [(ALIKE, False), (UNLIKE, True)], ids=["alike", "unlike"]
)
def test_the_player_is_told_after_the_first_frame(squares, picture, unlike):
  server, host = squares
  with Player(host) as player:
    resets = server._engine.world.resets
    start(player, host, picture)
    told = player.until("likeness")
    assert told["unlike"] == unlike
    assert told["psnr"] < told["least"] - 3 or not unlike
    assert told["run"] == player.frames[-1][0].run
    assert server._engine.world.resets == resets + 1  # No run for this alone.
    player.play([0, 1])  # It can be played all the same.
    again = Player(host, token=player.welcome["token"])
    with again:  # After a lost connection, it is told again.
      assert again.until("likeness")["unlike"] == unlike
      # A prompt of the gallery ends it.
      again.start(prompt=0)
      again.send(type="ping")
      again.texts.clear()
      again.until("pong")
      assert [text["type"] for text in again.texts] == ["pong"]


def test_a_world_without_prompts_says_nothing():
  engine = fake_world.make_engine(made_of=fake_world.SquaresWorld(), gallery=[])
  assert engine.least_psnr is None
  with players.serving(engine) as (_, host), Player(host) as player:
    start(player, host, UNLIKE)
    player.play([0])
    assert [text["type"] for text in player.texts] == ["line"]
