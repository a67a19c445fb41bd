"""Tests of learning rates by size."""

import math

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.scaling import learning_rates

RATES = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]


def sweep(size, params, best, rates=RATES):
  """Returns losses on a parabola in log(rate) with its minimum at `best`."""
  return learning_rates.Sweep(
    size, params, {rate: 3 + 0.1 * math.log(rate / best) ** 2 for rate in rates}
  )


def test_the_optimum_of_a_parabola_is_its_minimum():
  for best in (1.7e-3, 4e-3, 7.3e-3):
    assert sweep("a", 1, best).optimum() == pytest.approx(best, rel=1e-9)
  uneven = [1e-3, 3e-3, 4e-3, 9e-3]
  assert sweep("a", 1, 5e-3, uneven).optimum() == pytest.approx(5e-3, rel=1e-9)


def test_a_power_law_is_found_again():
  true = lambda params: 0.5 * params**-0.4
  sweeps = [sweep(str(n), n, true(n)) for n in (1e5, 4e5, 1e6)]
  law = learning_rates.fit(sweeps, "power", 8, 0.5)
  assert law.exponent == pytest.approx(-0.4, rel=1e-6)
  assert law.coefficient == pytest.approx(0.5, rel=1e-5)
  assert law.rate(7e6, 8) == pytest.approx(true(7e6), rel=1e-5)
  assert law.rate(7e6, 32) == pytest.approx(2 * true(7e6), rel=1e-5)
  stored = law.to_dict()
  assert stored["version"] == 1
  assert stored["optima"]["100000.0"]["law"] == pytest.approx(true(1e5))


def test_a_constant_law_is_the_geometric_mean():
  sweeps = [sweep("a", 10, 2e-3), sweep("b", 1000, 8e-3)]
  law = learning_rates.fit(sweeps, "constant", 8, 0.0)
  assert law.rate(1, 8) == pytest.approx(4e-3)
  assert law.rate(10**9, 64) == pytest.approx(4e-3)


def test_a_rate_next_to_divergence_is_the_optimum_itself():
  losses = {1e-3: 3.0, 2e-3: 2.5, 4e-3: math.inf}
  found = learning_rates.Sweep("a", 1, losses)
  assert found.optimum() == 2e-3
  law = learning_rates.fit([found], "constant", 8, 0.0)
  assert law.to_dict()["optima"]["a"]["losses"]["0.004"] is None


def test_equal_losses_give_the_best_rate_and_not_a_division_by_zero():
  losses = dict.fromkeys([1e-3, 2e-3, 4e-3], 3.0) | {1e-3: 3.0 + 1e-12}
  rate = learning_rates.Sweep("a", 1, losses).optimum()
  assert np.isfinite(rate) and 1e-3 <= rate <= 4e-3


@pytest.mark.parametrize(
  "losses, message",
  [
    ({1e-3: 3.0, 2e-3: 2.0}, "has 2 learning rates; use at least 3"),
    ({1e-3: 1.0, 2e-3: 2.0, 4e-3: 3.0}, "0.001 is the lowest one; add lower"),
    ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}, "0.004 is the highest one; add higher"),
    (dict.fromkeys([1.0, 2.0, 3.0], math.inf), "all runs diverged"),
  ],
)
def test_a_sweep_without_an_inner_optimum_is_refused(losses, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    learning_rates.Sweep("a", 1, losses).optimum()
  assert "size a" in str(raised.value)


def test_a_power_law_of_one_size_is_refused():
  with pytest.raises(errors.UserError, match="at least 2 sizes"):
    learning_rates.fit([sweep("a", 1, 2e-3)], "power", 8, 0.0)
