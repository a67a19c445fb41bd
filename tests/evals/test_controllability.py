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
