"""Tests of the names of buttons in worlds of films."""

import cv2
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


def rollouts(velocity_of, draw=rollout):
  """Returns [A, M, 1 + F, H, W, C] of `velocity_of(button, moment)`."""
  return np.stack(
    [
      [draw(moment, velocity_of(button, moment)) for moment in range(MOMENTS)]
      for button in range(5)
    ]
  )


def smooth(rng, sigma, shape):
  """Returns smooth noise with values from 0 to 1."""
  noise = cv2.GaussianBlur(rng.random(shape), (0, 0), sigma)
  return cv2.normalize(noise, None, 0, 1, cv2.NORM_MINMAX)


def flickering(kind, number, velocity):
  """Returns a rollout in front of a smooth picture, perhaps with flicker.

  Args:
    kind: Of the flicker: "noise" of single pixels, "light" of the whole
      picture, "clouds" that come and go, "tiles" that become others.
    number: Of the picture.
    velocity: Right, up; None for a picture that stands still and flickers.
  """
  rng = np.random.default_rng([number, 1])
  texture = 200 * smooth(np.random.default_rng(number), 2, (160, 160))
  frames = []
  for time in range(1 + FRAMES):
    right, up, flickers = (*velocity, False) if velocity else (0, 0, True)
    row, column = 64 - up * time, 64 + right * time
    frame = texture[row : row + SIDE, column : column + SIDE].copy()
    if flickers or kind.endswith("all"):
      match kind.removesuffix(" all"):
        case "noise":
          frame += rng.normal(0, 25, frame.shape)
        case "light":
          frame += rng.normal(0, 15)
        case "clouds":
          frame += 60 * smooth(rng, 3, frame.shape)
        case "tiles":
          for place in rng.integers(0, SIDE // 8, (6, 2)) * 8:
            y, x = rng.integers(0, 150, 2)
            frame[place[0] : place[0] + 8, place[1] : place[1] + 8] = texture[
              y : y + 8, x : x + 8
            ]
    frames.append(frame.clip(0, 255).astype(np.uint8))
  return np.repeat(np.stack(frames)[..., None], 3, -1)


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


@pytest.mark.parametrize("kind", ["noise", "light", "clouds", "tiles"])
@pytest.mark.parametrize("flickers", [{0}, {0, 1, 2, 3}])
def test_a_picture_that_only_flickers_gives_no_names(kind, flickers):
  found = held.name(
    rollouts(
      lambda b, m: None if b in flickers else (0, 0),
      lambda number, velocity: flickering(kind, number, velocity),
    ),
    seed=0,
  )
  assert {row["name"] for row in found} == {"unclear"}
  assert all(row["scroll"]["right"]["value"] == 0 for row in found)


@pytest.mark.parametrize("kind", ["none", "light all", "tiles all"])
def test_a_picture_that_scrolls_is_named_also_where_it_flickers(kind):
  moves = ((-2, 0), (2, 0), (0, 0), (0, 3), (2, 0))
  found = held.name(
    rollouts(
      lambda b, m: moves[b],
      lambda number, velocity: flickering(kind, number, velocity),
    ),
    seed=0,
  )
  assert [row["name"] for row in found] == [
    "left", "right", "nothing", "jump", "right",
  ]  # fmt: skip


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
