"""Distances between two sets of feature vectors: Frechet and kernel.

Shapes:
  n m  vectors of the first and the second set     d  width of a vector
  L  levels     R  resamples
"""

from collections.abc import Callable

import numpy as np

from genie_jax.evals import intervals


def frechet(first: np.ndarray, second: np.ndarray) -> float:
  """Returns the squared Frechet distance of Gaussians fitted to two sets.

  |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)), with means m and unbiased
  covariances C (Unterthiner et al., arXiv:1812.01717). If the rows of A and B
  are centred and divided by the square root of their number less 1, then
  C1 = A'A and C2 = B'B, and the trace of the root is the sum of the singular
  values of A B'. No root of a matrix is taken, so singular covariances, those
  of fewer vectors than their width, do no harm.

  There is no interval. The distance is biased upwards, the more so the fewer
  different vectors there are, and a resample with repetitions has fewer: its
  values are all above the distance. Compare with the distance of two sets of
  real clips of the same size instead.

  Args:
    first: [n, d], n of at least 2.
    second: [m, d], m of at least 2.
  """
  gap = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
  one, other = _root(first), _root(second)
  shared = np.linalg.svd(one @ other.T, compute_uv=False).sum()
  return float(
    gap @ gap + np.square(one).sum() + np.square(other).sum() - 2 * shared
  )


def _root(features: np.ndarray) -> np.ndarray:
  """Returns A of at most d rows with A'A the covariance of the features."""
  centred = features - features.mean(0, dtype=np.float64)
  centred /= np.sqrt(len(features) - 1)
  if len(centred) <= centred.shape[1]:
    return centred
  return np.linalg.qr(centred).R


def kernel(
  first: np.ndarray,
  second: np.ndarray,
  first_levels: np.ndarray,
  second_levels: np.ndarray,
  *,
  seed: int,
  num_resamples: int = intervals.NUM_RESAMPLES,
) -> intervals.Interval:
  """Returns the kernel distance of two sets, with its interval over levels.

  The unbiased squared maximum mean discrepancy (Gretton et al. 2012) with the
  cubic kernel (x'y / d + 1)^3 of the kernel inception distance (Binkowski et
  al., arXiv:1801.01401). Of logits its values are of the order of 10, and it
  is given as it is; the factor of 1,000 is a habit of that distance for images,
  whose features are small. It is 0 on average, and at times negative, if both
  sets have one distribution.

  Differs from common code: within a set, pairs of vectors of one level are left
  out and not only pairs of a vector with itself, because clips of one level are
  not independent. The interval resamples levels of both sets and leaves out
  pairs of a level with its own copies, which would add to the distance. In
  simulations it contained the truth in 91 % of 300 cases with 30 levels a set;
  of equal distributions it is 1.5 times too wide, as bootstraps are for a
  statistic whose linear part vanishes.

  Args:
    first: [n, d].
    second: [m, d].
    first_levels: [n], at least 2 different ones.
    second_levels: [m], at least 2 different ones and none of `first_levels`.
    seed: Seed of the resampling.
    num_resamples: R.
  """
  assert not set(first_levels.tolist()) & set(second_levels.tolist())
  within_first = _within(first, first_levels)
  within_second = _within(second, second_levels)
  across = _by_levels(_cubic(first, second), first_levels, second_levels)
  sizes = [
    intervals.by_level(np.ones(len(levels)), levels)
    for levels in (first_levels, second_levels)
  ]

  def distance(draws: np.ndarray, other_draws: np.ndarray) -> np.ndarray:
    count = (draws @ sizes[0]) * (other_draws @ sizes[1])
    mean = ((draws @ across) * other_draws).sum(1) / count
    return within_first(draws) + within_second(other_draws) - 2 * mean

  value = distance(*(np.ones((1, len(size))) for size in sizes))[0]
  seeds = np.random.SeedSequence(seed).generate_state(2)
  draws = distance(
    *(
      intervals.resample({"": np.eye(len(size))}, int(s), num_resamples)[""]
      for size, s in zip(sizes, seeds, strict=True)
    )
  )
  # A draw of one level alone has no pairs; that happens only with few levels.
  return intervals.Interval(
    float(value), *intervals.percentiles(draws[np.isfinite(draws)])
  )


def _cubic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Returns the kernel of all pairs, float64 [n, m]."""
  first, second = first.astype(np.float64), second.astype(np.float64)
  return (first @ second.T / first.shape[1] + 1) ** 3


def _by_levels(
  values: np.ndarray, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
  """Sums the values [n, m] of pairs by the levels of both, [L, L']."""
  return intervals.by_level(intervals.by_level(values, rows).T, columns).T


def _within(
  features: np.ndarray, levels: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function of drawn levels [R, L] to mean kernels [R].

  The mean is over pairs of vectors of different levels; NaN if there are none.
  """
  sums = _by_levels(_cubic(features, features), levels, levels)
  np.fill_diagonal(sums, 0)
  size = intervals.by_level(np.ones(len(levels)), levels)

  def mean(draws: np.ndarray) -> np.ndarray:
    pairs = np.square(draws @ size) - np.square(draws * size).sum(1)
    total = ((draws @ sums) * draws).sum(1)
    return np.divide(
      total, pairs, out=np.full(len(draws), np.nan), where=pairs > 0
    )

  return mean
