"""Tests of the Frechet and the kernel distance of two sets of features."""

import numpy as np
import pytest
import scipy.linalg
from sklearn.metrics import pairwise

from genie_jax.evals import distances


def drawn(seed, num_levels, per_level, width, shift=0.0, first_level=0):
  """Returns features whose levels differ, and their levels."""
  rng = np.random.default_rng(seed)
  levels = np.arange(num_levels).repeat(per_level) + first_level
  means = rng.normal(size=(num_levels, width)).repeat(per_level, 0)
  return means + rng.normal(size=means.shape) + shift, levels


def test_frechet_equals_the_formula_with_a_matrix_root():
  first, second = drawn(0, 60, 3, 9)[0], 2 * drawn(1, 50, 4, 9)[0] + 0.3
  one, other = np.cov(first.T), np.cov(second.T)
  expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(
    one + other - 2 * scipy.linalg.sqrtm(one @ other).real
  )
  # Rounding of float64 in the root of a 9 x 9 matrix.
  assert distances.frechet(first, second) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_one_number_is_that_of_means_and_deviations():
  rng = np.random.default_rng(2)
  first, second = rng.normal(3, 2, (40, 1)), rng.normal(0, 5, (30, 1))
  gap = first.mean() - second.mean()
  spread = first.std(ddof=1) - second.std(ddof=1)
  assert distances.frechet(first, second) == pytest.approx(gap**2 + spread**2)


@pytest.mark.parametrize("count", [5, 300])
def test_frechet_of_a_shifted_set_is_the_squared_shift(count):
  # With 5 vectors of width 40 the covariance is singular.
  first = np.random.default_rng(3).normal(size=(count, 40)) * 10
  assert distances.frechet(first, first) == pytest.approx(0, abs=1e-9)
  shifted = distances.frechet(first, first[::-1] + 2.0)
  assert shifted == pytest.approx(40 * 4.0, rel=1e-9)


def test_kernel_equals_a_loop_over_pairs_of_different_levels():
  first, levels = drawn(0, 4, 3, 6)
  second, others = drawn(1, 5, 2, 6, shift=0.5, first_level=50)
  # Unequal sizes of levels, in any order.
  order = np.random.default_rng(0).permutation(len(first))[1:]
  first, levels = first[order], levels[order]
  cubic = lambda x, y: (
    (sum(a * b for a, b in zip(x, y, strict=True)) / 6 + 1) ** 3
  )

  def mean(one, one_levels, other, other_levels):
    values = [
      cubic(x, y)
      for x, i in zip(one, one_levels, strict=True)
      for y, j in zip(other, other_levels, strict=True)
      if i != j
    ]
    return sum(values) / len(values)

  expected = (
    mean(first, levels, first, levels)
    + mean(second, others, second, others)
    - 2 * mean(first, levels, second, others)
  )
  found = distances.kernel(first, second, levels, others, seed=0)
  assert found.value == pytest.approx(expected, rel=1e-9)


def test_with_one_clip_per_level_kernel_is_the_usual_distance():
  first, second = drawn(0, 20, 1, 8)[0], drawn(1, 30, 1, 8, shift=1.0)[0]
  within = lambda x: pairwise.polynomial_kernel(x)[
    ~np.eye(len(x), dtype=bool)
  ].mean()
  expected = (
    within(first)
    + within(second)
    - 2 * pairwise.polynomial_kernel(first, second).mean()
  )
  found = distances.kernel(
    first, second, np.arange(20), np.arange(20, 50), seed=0
  )
  assert found.value == pytest.approx(expected, rel=1e-9)
  # This shift is far from chance.
  assert 0 < found.low < found.value < found.high


def test_kernel_of_equal_distributions_is_zero_on_average_and_in_intervals():
  found = [
    distances.kernel(
      *(drawn(2 * seed, 12, 3, 5)[0], drawn(2 * seed + 1, 12, 3, 5)[0]),
      *(drawn(0, 12, 3, 5)[1], drawn(0, 12, 3, 5, first_level=12)[1]),
      seed=seed,
      num_resamples=200,
    )
    for seed in range(200)
  ]
  values = np.array([one.value for one in found])
  error = values.std() / np.sqrt(len(values))
  assert abs(values.mean()) < 3 * error
  assert (values < 0).any()
  # Pairs of one level would add their similarity: this is what is left out.
  inside = np.mean([one.low <= 0 <= one.high for one in found])
  assert inside > 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(found))


def test_kernel_has_an_interval_even_if_some_draws_have_one_level():
  first, levels = drawn(0, 2, 4, 5)
  second, others = drawn(1, 2, 4, 5, first_level=7)
  found = distances.kernel(first, second, levels, others, seed=0)
  assert np.isfinite([found.low, found.value, found.high]).all()
  again = distances.kernel(first, second, levels, others, seed=0)
  assert found == again
