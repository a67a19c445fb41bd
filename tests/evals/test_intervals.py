import numpy as np
import pytest

from genie_jax.evals import intervals


def test_intervals_cover_the_true_mean_when_clips_of_a_level_are_alike():
  rng = np.random.default_rng(0)
  covered, naive = 0, 0
  for trial in range(100):
    level_means = rng.normal(3.0, 1.0, 50)
    values = level_means.repeat(8) + rng.normal(0, 0.1, 400)
    levels = np.arange(50).repeat(8)
    ones = np.ones(400)
    by_level = intervals.ratio(values, ones, levels, seed=trial)
    by_clip = intervals.ratio(values, ones, np.arange(400), seed=trial)
    covered += by_level.low <= 3.0 <= by_level.high
    naive += by_clip.low <= 3.0 <= by_clip.high
  # 95 % of 100 is 95; four standard deviations of the binomial are 9.
  assert covered >= 86
  assert naive < 60  # Resampling clips gives intervals that are too narrow.


def test_bootstrap_equals_a_loop_over_drawn_levels():
  values = np.random.default_rng(1).normal(size=(30, 2))
  levels = np.arange(30) // 3
  sums = {"x": intervals.by_level(values, levels)}
  fast = intervals.resample(sums, 7, 20)["x"]
  counts = np.random.default_rng(7).multinomial(10, np.full(10, 0.1), size=20)
  for row, count in zip(fast, counts, strict=True):
    drawn = [
      values[levels == level].sum(0)
      for level, times in enumerate(count)
      for _ in range(times)
    ]
    np.testing.assert_allclose(row, np.sum(drawn, 0), atol=1e-12)


def test_the_same_seed_gives_the_same_interval():
  values = np.random.default_rng(2).normal(size=40)
  draw = lambda seed: intervals.ratio(
    values, np.ones(40), np.arange(40), seed=seed
  )
  assert draw(3) == draw(3)
  assert draw(3).low != draw(4).low
  assert draw(3).value == pytest.approx(values.mean())
