"""Tests of the motion of pictures, and of the names of buttons."""

import numpy as np
import pytest
import scrolling_game as game

from genie_jax.evals import button_names, scroll


@pytest.fixture(scope="module")
def texture():
  """Returns a coarse random picture, uint8 [160, 160]."""
  coarse = np.random.default_rng(0).integers(0, 200, (40, 40), np.uint8)
  return coarse.repeat(4, 0).repeat(4, 1)


def window(texture, right, up, side=64):
  """Returns what the camera shows of a player who moved, with the player."""
  row, column = 48 - up, 48 + right
  frame = texture[row : row + side, column : column + side].copy()
  frame[28:36, 28:36] = 255
  return np.repeat(frame[..., None], 3, -1)


def test_every_shift_is_found(texture):
  moves = [(x, y) for x in range(-4, 5) for y in range(-8, 9)]
  before = np.stack([window(texture, 0, 0)] * len(moves))
  after = np.stack([window(texture, *move) for move in moves])
  found = scroll.pair_shifts(before, after)
  np.testing.assert_array_equal(found, moves)


def test_noise_and_other_moving_things_do_not_change_the_shift(texture):
  rng = np.random.default_rng(1)
  moves = [(2, 0), (-2, 0), (0, 7), (1, -5), (0, 0)]
  before = np.stack([window(texture, 0, 0)] * len(moves)).astype(int)
  after = np.stack([window(texture, *move) for move in moves]).astype(int)
  after[:, 5:12, 40:47] = 0  # An enemy.
  before[:, 5:12, 45:52] = 0
  noise = lambda: rng.integers(-15, 16, before.shape)
  found = scroll.pair_shifts(
    *(np.clip(x + noise(), 0, 255).astype(np.uint8) for x in (before, after))
  )
  np.testing.assert_array_equal(found, moves)


def test_the_player_himself_does_not_count():
  # On a flat ground only the player could tell; he is left out.
  before = np.full((1, 64, 64, 3), 90, np.uint8)
  after = before.copy()
  before[0, 28:36, 26:34] = 255
  after[0, 28:36, 30:38] = 255
  assert scroll.pair_shifts(before, after).tolist() == [[0, 0]]


def test_motion_is_that_of_the_second_half(texture):
  # It still moves to the left for four frames, then to the right.
  places = np.cumsum([0, -3, -3, -3, -3, 1, 2, 1, 2])
  frames = np.stack([window(texture, int(place), 0) for place in places])
  np.testing.assert_allclose(scroll.motion(frames[None]), [[1.5, 0]])
  np.testing.assert_allclose(scroll.motion(frames[None, :2]), [[-3, 0]])


def test_slow_motion_is_followed_over_several_frames(texture):
  # 0.4 pixels a frame, shown in whole pixels, with noise.
  rng = np.random.default_rng(2)
  across = np.floor(0.4 * np.arange(24)).astype(int)
  up = np.r_[0, 6, 12, 17, 21, 24, 26, 27, 27, 26, 24, 21, 17, 12, 6]
  up = np.r_[up, np.zeros(24 - len(up), int)]
  clip = np.stack(
    [window(texture, x, y) for x, y in zip(across, up, strict=True)]
  ).astype(int)
  noise = rng.integers(-40, 41, clip.shape)
  clip = np.clip(clip + noise, 0, 255).astype(np.uint8)
  found = scroll.places(np.stack([clip, clip[:1].repeat(24, 0)]))
  np.testing.assert_array_equal(found[0], np.stack([across, up], 1))
  assert not found[1].any()


def test_places_find_a_motion_that_pairs_of_frames_do_not_show(texture):
  # Every frame is half of the one before and half of the present one, as where
  # tokens of a patch change later than others.
  clip = np.stack([window(texture, n, 0) for n in range(13)]).astype(int)
  stuck = clip.copy()
  for n in range(1, 13):
    stuck[n, :, ::2] = clip[n - 1, :, ::2] if n % 2 else clip[n, :, ::2]
  found = scroll.places(stuck.astype(np.uint8)[None])[0]
  assert abs(found[-1, 0] - 12) <= 1 and not found[:, 1].any()


def true_motion(moments, keys):
  """Returns the game's own motion, [M, keys, 2]."""
  return np.stack(
    [
      np.stack([np.diff(m.states[key, 3:, :2], axis=0).mean(0) for key in keys])
      for m in moments
    ]
  )


LEVELS = np.array([moment.level for moment in game.MOMENTS])
KEYS = true_motion(game.MOMENTS, (0, 1, 2, 3))


def named(buttons, **options):
  return scroll.name_buttons(buttons, KEYS, LEVELS, seed=0, **options)


def test_keys_get_their_own_names():
  found = named(KEYS, numbers=[7, 8, 9, 3])
  assert [row["name"] for row in found] == ["left", "nothing", "right", "jump"]
  assert [row["button"] for row in found] == [7, 8, 9, 3]
  for row in found:
    assert row["share"] == 1 and row["interval"] == [1, 1]
  left = found[0]["effects"]["left"]
  # A wall in every third moment: the keys cannot decide it there.
  assert left["moments"] == 20
  assert left["chance"] == pytest.approx(1 / 4)
  assert found[2]["scroll"]["right"]["value"] == 2


def test_an_effect_with_a_majority_that_is_not_certain_is_unclear():
  rng = np.random.default_rng(0)
  shares = {}
  for goal in (0.35, 0.56, 0.95):
    # Goes right in some moments, and left in the others.
    goes = np.where(rng.random(len(LEVELS)) < goal, 2, -2)
    row = named(np.stack([goes, 0 * goes], -1)[:, None])[0]
    shares[goal] = row
    part = row["effects"]["right"]
    assert part["value"] == pytest.approx((goes > 0).mean())
    clear = part["value"] > 0.5 and part["low"] > part["chance"]
    assert (row["name"] == "right") == clear
  assert shares[0.95]["name"] == "right"
  assert shares[0.35]["name"] != "right"


def test_both_directions_are_named_together():
  moved = np.broadcast_to([2.0, 3.0], (len(LEVELS), 1, 2))
  keys = np.concatenate([KEYS, moved], 1)
  (row,) = scroll.name_buttons(moved, keys, LEVELS, seed=0)
  assert row["name"] == "right and jump"


def test_what_no_key_can_change_names_nothing():
  # All keys fall, so falling is not something that a button does.
  falls = np.broadcast_to([0.0, -2.0], (12, 3, 2))
  found = scroll.name_buttons(falls, falls, np.arange(12), seed=0)
  for row in found:
    assert row["name"] == button_names.UNCLEAR and row["effects"] == {}
    assert row["share"] is None and row["interval"] is None
    assert row["scroll"]["up"]["value"] == -2
