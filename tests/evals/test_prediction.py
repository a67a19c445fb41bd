import numpy as np
import pytest

from genie_jax.evals import prediction


def test_most_frequent_token_of_each_position():
  tokens = np.array([[[0, 1]], [[0, 2]], [[3, 2]]])[None]  # [1, 3, 1, 2]
  np.testing.assert_array_equal(prediction.most_frequent(tokens, 4), [[0, 2]])


def test_token_scores_equal_ten_lines_of_numpy():
  rng = np.random.default_rng(0)
  target, last = rng.integers(0, 4, (2, 30, 3, 5))
  drawn = np.where(rng.random(target.shape) < 0.5, target, 0)
  frequent = rng.integers(0, 4, (3, 5))
  found = prediction.token_scores(
    drawn, target, last, frequent, np.arange(30) // 3, seed=0
  )
  changed = target != last
  assert found["changed_world"].value == pytest.approx(
    (drawn == target)[changed].mean()
  )
  assert found["changed_most_frequent"].value == pytest.approx(
    (target == frequent)[changed].mean()
  )
  assert found["changed_copy_last"].value == 0.0
  assert found["all_world"].value == pytest.approx((drawn == target).mean())
  assert found["all_copy_last"].value == pytest.approx(1 - changed.mean())
  assert found["changed_share"].value == pytest.approx(changed.mean())


def test_pixel_scores_count_only_pixels_that_changed():
  rng = np.random.default_rng(1)
  last = rng.integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)
  truth = last.copy()
  truth[:, 2:4, :, 1] ^= 1  # One channel of a third of the pixels.
  drawn = truth.copy()
  drawn[:, 0] = 0  # Wrong where nothing changed: not counted.
  drawn[:, 2] ^= 4
  found = prediction.pixel_scores(
    drawn, truth, last, truth, np.arange(20) // 2, seed=0
  )
  where = (truth != last).any(-1)
  error = lambda x: (
    np.mean((x[where].astype(float) - truth[where].astype(float)) ** 2) / 255**2
  )
  assert found["world"].value == pytest.approx(
    -10 * np.log10(error(drawn)), abs=1e-4
  )
  assert found["copy_last"].value == pytest.approx(
    -10 * np.log10(error(last)), abs=1e-4
  )
  assert found["ceiling"].value == 100.0
  assert found["changed_share"].value == pytest.approx(1 / 3)
  assert found["gain"].value == pytest.approx(
    found["world"].value - found["copy_last"].value
  )


def test_copying_gains_nothing_over_copying():
  rng = np.random.default_rng(2)
  last, truth = rng.integers(0, 256, (2, 20, 6, 6, 3), dtype=np.uint8)
  found = prediction.pixel_scores(
    last, truth, last, truth, np.arange(20), seed=0
  )
  assert (found["gain"].low, found["gain"].high) == (0.0, 0.0)
