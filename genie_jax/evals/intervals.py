"""Confidence intervals by resampling levels, not clips.

Clips of one level are similar, so they are not independent samples; levels are.
Every statistic is a function of sums over clips. All resamples are therefore
one matrix product: how often each level was drawn, times the sums of each
level.

Shapes:
  n  clips (or any observations)    L  levels    R  resamples
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

NUM_RESAMPLES = 2000
COVERAGE = 0.95

Sums = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A value and its percentile interval."""

  value: float
  low: float
  high: float

  def to_dict(self) -> dict[str, float]:
    """Returns {"value", "low", "high"}."""
    return dataclasses.asdict(self)


def by_level(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
  """Sums observations of the same level.

  Args:
    values: [n, ...].
    levels: [n], a label of each observation's level.

  Returns:
    float64 [L, ...], levels in ascending order.
  """
  _, index = np.unique(levels, return_inverse=True)
  sums = np.zeros((index.max() + 1, *values.shape[1:]))
  np.add.at(sums, index, values)
  return sums


def resample(sums: Sums, seed: int, num_resamples: int) -> Sums:
  """Draws levels with replacement, as many as there are.

  Args:
    sums: Name -> [L, ...], one entry per level; all names use the same draw.
    seed: Seed of the draws.
    num_resamples: R.

  Returns:
    Name -> float64 [R, ...], the sums over the drawn levels.
  """
  num_levels = len(next(iter(sums.values())))
  counts = np.random.default_rng(seed).multinomial(
    num_levels, np.full(num_levels, 1 / num_levels), size=num_resamples
  )
  return {
    name: (counts @ values.reshape(num_levels, -1)).reshape(
      num_resamples, *values.shape[1:]
    )
    for name, values in sums.items()
  }


def bootstrap(
  statistic: Callable[[Sums], np.ndarray],
  sums: Sums,
  *,
  seed: int,
  num_resamples: int = NUM_RESAMPLES,
  unbiased: bool = False,
) -> Interval:
  """Returns a statistic with its percentile bootstrap interval over levels.

  Args:
    statistic: Maps sums name -> [R, ...] to [R] values.
    sums: Name -> [L, ...], sums over each level's clips.
    seed: Seed of the resampling.
    num_resamples: R.
    unbiased: Whether to shift the draws so that their mean is the value.
      Mutual information needs this, because a resample repeats levels, which
      makes a sparse table look more dependent than it is.
  """
  whole = {
    name: np.asarray(values, np.float64).sum(0, keepdims=True)
    for name, values in sums.items()
  }
  value = float(statistic(whole)[0])
  draws = statistic(resample(sums, seed, num_resamples))
  if unbiased:
    draws = draws - (draws.mean() - value)
  return Interval(value, *percentiles(draws))


def percentiles(draws: np.ndarray) -> tuple[float, float]:
  """Returns the ends of the middle 95 % of draws."""
  tail = (1 - COVERAGE) / 2
  low, high = np.quantile(draws, (tail, 1 - tail))
  return float(low), float(high)


def ratio(
  totals: np.ndarray,
  counts: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> Interval:
  """Returns sum(totals) / sum(counts), 0 if all counts are 0.

  Args:
    totals: [n], each clip's numerator.
    counts: [n], each clip's denominator; ones for the mean over clips.
    levels: [n].
    seed: Seed of the resampling.
  """
  return bootstrap(
    lambda sums: sums["total"] / np.maximum(sums["count"], 1e-12),
    {"total": by_level(totals, levels), "count": by_level(counts, levels)},
    seed=seed,
  )
