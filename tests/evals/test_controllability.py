import numpy as np
import pytest

from genie_jax.evals import controllability


def test_delta_is_the_mean_over_clips_of_differences():
  rng = np.random.default_rng(0)
  truth, good, bad = rng.integers(0, 256, (3, 12, 8, 8, 3), dtype=np.uint8)
  found = controllability.delta_psnr(
    truth, good, bad, np.arange(12) // 2, seed=0
  )
  psnr = lambda x: (
    -10 * np.log10(((truth / 255.0 - x / 255.0) ** 2).mean((1, 2, 3)))
  )
  assert found["delta"].value == pytest.approx(
    np.mean(psnr(good) - psnr(bad)), abs=1e-5
  )
  assert found["inferred"].value == pytest.approx(psnr(good).mean(), abs=1e-5)


def test_effects_are_mean_differences_between_buttons():
  rollouts = np.zeros((3, 2, 4, 5, 5, 3), np.uint8)
  rollouts[1] = 10
  rollouts[2] = 30
  matrix = controllability.effects(rollouts)
  np.testing.assert_allclose(matrix, [[0, 10, 30], [10, 0, 20], [30, 20, 0]])
  np.testing.assert_allclose(
    controllability.action_effects(matrix), [20, 15, 25]
  )


def test_a_frozen_world_shows_no_motion():
  frames = (
    np.random.default_rng(0)
    .integers(0, 256, (3, 1, 6, 6, 3), dtype=np.uint8)
    .repeat(5, 1)
  )
  frames[:, 1:] = frames[:, 1:2] // 2
  tokens = np.zeros((3, 5, 2, 2), int)
  found = controllability.liveliness(frames, tokens, 8)
  assert found["motion_by_frame"][0] > 0
  assert found["motion_by_frame"][1:] == [0.0] * 3
  assert found["token_entropy"] == 0.0
  assert found["token_change"] == 0.0


def test_changed_pixels_are_those_that_differ_from_the_last_given_frame():
  last = np.zeros((2, 4, 4, 3), np.uint8)
  truth = last.copy()
  truth[0, 0, 0, 1] = 51  # One pixel of the first clip; none of the second.
  drawn = {
    "inferred": truth,
    "previous": last,
    "random": np.full_like(last, 102),
    "ceiling": truth,
  }
  found = controllability.delta_previous(
    truth, last, drawn, np.arange(2), seed=0
  )["changed_pixels"]
  # A third of the pixel's channels is wrong by a fifth of the range.
  error = -10 * np.log10(0.2**2 / 3)
  assert found["psnr_previous"].value == pytest.approx(error, abs=1e-4)
  assert found["psnr_copied"].value == found["psnr_previous"].value
  assert found["previous"].value == pytest.approx(100 - error, abs=1e-4)


def test_late_motion_is_that_of_the_second_half():
  random = np.random.default_rng(0).integers(
    0, 256, (4, 8, 6, 6, 3), dtype=np.uint8
  )
  stops = random.copy()
  stops[:, 4:] = stops[:, 4:5]
  judge = lambda drawn: controllability.late_motion(
    drawn, random, np.arange(4), seed=0
  )["likeness"]
  assert judge(stops).value == judge(stops).high == 0.0
  assert judge(random).value == pytest.approx(1.0, abs=0.1)
  assert judge(random // 4).value == pytest.approx(0.25, abs=0.03)
  # Too much motion is not like the game either.
  calm = controllability.late_motion(random, random // 4, np.arange(4), seed=0)
  assert calm["ratio"].value == pytest.approx(4.0, abs=0.4)
  assert calm["likeness"].value == pytest.approx(0.25, abs=0.03)
