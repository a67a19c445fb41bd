import numpy as np
import pytest

from genie_jax.evals import identity

COLOURS = np.array(
  [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]], np.uint8
)


def frames(player, background=0):
  """Frames [n, 64, 64, 3] with a player of 8 x 5 pixels in the middle."""
  shown = np.full((len(player), 64, 64, 3), background, np.uint8)
  shown[:, 28:36, 30:35] = player[:, None, None]
  return shown


def test_a_player_who_stays_himself_keeps_his_colours():
  ends = np.stack([frames(COLOURS, background=90)] * 3, axis=1)
  np.testing.assert_array_equal(identity.kept(frames(COLOURS), ends), 1.0)


def test_a_player_who_turns_into_another_does_not():
  ends = np.roll(frames(COLOURS), 1, axis=0)[:, None]
  found = identity.kept(frames(COLOURS), ends)
  assert found.mean() < 0.5


def test_colours_that_say_nothing_are_as_good_as_chance():
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (60, 3), dtype=np.uint8)
  others = rng.integers(0, 256, (60, 3), dtype=np.uint8)
  found = identity.kept(frames(colours), frames(others)[:, None])
  assert found.mean() == pytest.approx(0.5, abs=0.1)


def test_levels_with_the_same_player_are_not_compared():
  """Two players each occur twice; each is compared with the other kind."""
  twice = np.repeat(COLOURS[:2], 2, axis=0)
  ends = frames(twice)[:, None]
  # To be as near to a twin's start as to his own is no fault.
  np.testing.assert_array_equal(identity.kept(frames(twice), ends), 1.0)


def test_the_distance_of_palettes_is_the_shift_of_their_colours():
  frames = np.random.default_rng(0).integers(
    0, 200, (1, 16, 16, 3), dtype=np.uint8
  )
  moved = frames[:, ::-1, ::-1] + np.array([30, 0, 0], np.uint8)
  apart = np.abs(identity.palette(frames) - identity.palette(moved)).mean(
    (0, 2)
  )
  np.testing.assert_array_equal(apart, [30, 0, 0])
