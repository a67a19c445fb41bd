"""Tests of fitting scaling laws, on runs whose law is known."""

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.scaling import laws
from tests.fixtures import scaling_runs


def chinchilla(sizes, ratios):
  """Returns points and losses of the law that Hoffmann et al. report.

  E = 1.69, A = 406.4, B = 410.7, a = 0.34, b = 0.28 (arXiv:2203.15556, section
  D.3), at every size and at every ratio of tokens to parameters.
  """
  x = np.array([(n, n * ratio) for n in sizes for ratio in ratios], float)
  return x, 1.69 + 406.4 * x[:, 0] ** -0.34 + 410.7 * x[:, 1] ** -0.28


def simulated(noise, seed):
  """Returns points, losses and the point and true loss of the last size."""
  found = scaling_runs.ladder(
    noise, scaling_runs.generator(seed), held_out=False
  )
  x = np.array([[run.params] for run in found], float)
  largest = np.array([[scaling_runs.PARAMS[-1]]])
  true = scaling_runs.loss(scaling_runs.PARAMS[-1])
  return x, np.array([run.final_loss for run in found]), largest, true


def test_the_published_law_is_recovered_from_its_own_losses():
  x, losses = chinchilla(np.geomspace(7e7, 1.6e10, 5), (5, 20, 80))
  found = laws.fit(laws.PARAMS_AND_TOKENS, x, losses).coefficients()
  assert found["E"] == pytest.approx(1.69, rel=1e-3)
  assert found["a"] == pytest.approx(0.34, rel=1e-2)
  assert found["b"] == pytest.approx(0.28, rel=1e-2)
  # A and B follow the exponents: 1 % of a is 7 % of A at these sizes.
  assert found["A"] == pytest.approx(406.4, rel=0.15)
  assert found["B"] == pytest.approx(410.7, rel=0.15)
  # Far outside the fitted points, at 400B parameters and 8T tokens.
  far = np.array([[4e11, 8e12]])
  value = laws.fit(laws.PARAMS_AND_TOKENS, x, losses)(far)[0]
  assert value == pytest.approx(
    1.69 + 406.4 * 4e11**-0.34 + 410.7 * 8e12**-0.28, rel=1e-3
  )


@pytest.mark.parametrize("unit", (1e-3, 1.0, 1e9))
def test_the_fit_does_not_depend_on_the_unit_of_the_sizes(unit):
  x, losses, largest, true = simulated(0.0, 0)
  law = laws.fit(laws.PARAMS, x * unit, losses)
  assert law(largest * unit)[0] == pytest.approx(true, rel=1e-5)
  assert law.exponents[0] == pytest.approx(scaling_runs.EXPONENT, rel=1e-3)


def test_of_many_ladders_with_noise_nearly_all_foretell_the_next_size():
  """Half a percent of noise; a law without E misses by far."""
  errors_of = {laws.PARAMS: [], laws.PURE_POWER: []}
  for seed in range(25):
    x, losses, largest, true = simulated(0.005, seed)
    for form, found in errors_of.items():
      found.append(laws.fit(form, x, losses)(largest)[0] / true - 1)
  good = np.abs(errors_of[laws.PARAMS]) < 0.03
  assert good.mean() >= 0.9
  assert np.mean(errors_of[laws.PURE_POWER]) < -0.1
  # Over ladders the errors cancel: the fit is not biased to one side.
  assert abs(np.mean(errors_of[laws.PARAMS])) < 0.01


def test_intervals_hold_the_true_exponent_about_as_often_as_they_say():
  hits = 0
  for seed in range(12):
    x, losses, *_ = simulated(0.005, 100 + seed)
    law = laws.fit(laws.PARAMS, x, losses)
    draws, noise = laws.resample(law, x, losses, seed=seed, count=40)
    low, high = np.quantile([d.exponents[0] for d in draws], (0.025, 0.975))
    hits += low <= scaling_runs.EXPONENT <= high
    assert 0.5 * 0.005 < noise.std() < 2 * 0.005
  # If they hold it in 90 % of ladders, fewer than 8 of 12 have chance 0.0005.
  assert hits >= 8


def test_one_failed_run_does_not_move_the_law():
  x, losses, largest, _ = simulated(0.001, 3)
  before = laws.fit(laws.PARAMS, x, losses)(largest)[0]
  losses = losses.copy()
  losses[6] *= 1.1  # Of three seeds of one size.
  after = laws.fit(laws.PARAMS, x, losses)(largest)[0]
  assert after == pytest.approx(before, rel=0.005)


def test_without_more_runs_than_parameters_there_are_no_intervals():
  x, losses, *_ = simulated(0.0, 0)
  x, first = np.unique(x, axis=0, return_index=True)
  x, losses = x[:3], losses[first][:3]
  law = laws.fit(laws.PARAMS, x, losses)
  assert law(x) == pytest.approx(losses, rel=1e-4)
  draws, noise = laws.resample(law, x, losses, seed=0, count=5)
  assert draws == [] and noise.size == 0


def test_fewer_points_than_parameters_are_refused():
  x = np.array([[1e5], [1e5], [1e6]])
  with pytest.raises(errors.UserError, match=r"3 parameters, but .* only 2"):
    laws.fit(laws.PARAMS, x, np.array([3.0, 3.1, 2.5]))


def test_axes_that_do_not_vary_on_their_own_are_not_identified():
  n = np.geomspace(1e5, 1e7, 6)
  at_one_budget = np.stack([n, np.full(6, 1e9)], 1)
  in_proportion = np.stack([n, 20 * n], 1)
  two_budgets = np.stack([n, np.where(np.arange(6) % 2, 1e9, 2e9)], 1)
  crossed = np.array([(a, b) for a in n for b in (1e8, 1e9, 1e10)])
  assert laws.identifies(at_one_budget) == [0]
  assert laws.identifies(in_proportion) == [0]
  assert laws.identifies(two_budgets) == [0]
  assert laws.identifies(crossed) == [0, 1]
