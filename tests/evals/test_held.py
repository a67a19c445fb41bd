"""Tests of the names of buttons in worlds of films."""

import numpy as np
import pytest

from genie_jax.evals import held

SIDE, FRAMES, MOMENTS = 32, 8, 12


def rollout(number, velocity):
  """Returns a camera that follows a player, uint8 [1 + F, H, W, C]."""
  rng = np.random.default_rng(number)
  texture = rng.integers(0, 200, (40, 40), np.uint8).repeat(4, 0).repeat(4, 1)
  frames = []
  for time in range(1 + FRAMES):
    row, column = 64 - velocity[1] * time, 64 + velocity[0] * time
    frames.append(texture[row : row + SIDE, column : column + SIDE].copy())
    frames[-1][14:18, 14:18] = 255
  return np.repeat(np.stack(frames)[..., None], 3, -1)


def rollouts(velocity_of):
  """Returns [A, M, 1 + F, H, W, C] of `velocity_of(button, moment)`."""
  return np.stack(
    [
      [
        rollout(moment, velocity_of(button, moment))
        for moment in range(MOMENTS)
      ]
      for button in range(5)
    ]
  )


def test_each_button_is_named_by_how_its_picture_scrolls():
  moves = ((-2, 0), (2, 0), (0, 0), (0, 3), (2, 0))
  # In every third moment there is a wall to the left.
  found = held.name(
    rollouts(lambda b, m: (0, 0) if b == 0 and m % 3 == 0 else moves[b]), seed=0
  )
  assert [row["name"] for row in found] == [
    "left", "right", "nothing", "jump", "right",
  ]  # fmt: skip
  # The other buttons do not go left either where there is a wall.
  assert found[0]["share"] == 1
  assert found[0]["effects"]["left"]["chance"] == pytest.approx(1 / 5)
  assert found[0]["effects"]["left"]["moments"] == MOMENTS * 2 // 3
  assert found[1]["scroll"]["right"]["value"] == pytest.approx(2)


def test_buttons_that_all_do_the_same_have_no_names():
  for move in ((2, 0), (0, 0)):
    found = held.name(rollouts(lambda b, m, move=move: move), seed=0)
    assert {row["name"] for row in found} == {"unclear"}
    assert all(row["share"] is None for row in found)


@pytest.mark.parametrize("seed", range(3))
def test_motion_that_does_not_depend_on_the_button_gives_no_names(seed):
  rng = np.random.default_rng(seed)
  moves = rng.choice([-2, 0, 2], (5, MOMENTS))
  found = held.name(rollouts(lambda b, m: (int(moves[b, m]), 0)), seed=0)
  assert [row["name"] for row in found].count("unclear") >= 4
