"""Tests of choosing runs, judging predictions, and allocating FLOPs."""

import dataclasses

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.scaling import allocation, fit, laws
from tests.fixtures import scaling_runs

OPTIONS = dict(seed=0, resamples=0)


@pytest.fixture
def ladder():
  return scaling_runs.ladder(0.0, scaling_runs.generator())


def test_the_held_out_size_is_never_fitted(ladder):
  parts = fit.split(ladder)
  assert [run.params for run in parts.held_out] == [6_800_000]
  found, _ = fit.all_laws(parts, **OPTIONS)
  other = [
    dataclasses.replace(run, final_loss=9.0) if run.held_out else run
    for run in ladder
  ]
  again, _ = fit.all_laws(fit.split(other), **OPTIONS)
  assert {name: law.law for name, law in found.items()} == {
    name: law.law for name, law in again.items()
  }


def test_without_a_held_out_run_all_seeds_of_the_largest_size_are(ladder):
  inside = [
    dataclasses.replace(run, held_out=False)
    for run in ladder
    if run.params <= 800_000
  ]
  parts = fit.split(inside)
  assert {run.params for run in parts.held_out} == {800_000}
  assert len(parts.held_out) == 3
  # One seed by name: the others would tell its loss.
  named = fit.split(ladder, parts.held_out[1].name)
  assert len(named.held_out) == 3
  # What the study holds out is not fitted either.
  assert all(run.params < 6_800_000 for run in named.fitted)


def test_one_token_budget_is_seen_and_stated(ladder):
  found, reasons = fit.all_laws(fit.split(ladder), **OPTIONS)
  assert set(found) == {"params", "flops", "pure_power"}
  assert "all runs have tokens = 4.194e+06" in reasons["params_and_tokens"]
  assert found["params"].law.exponents[0] == pytest.approx(0.35, rel=1e-3)


def test_cells_at_other_budgets_identify_the_term_of_tokens():
  rng = scaling_runs.generator()
  rungs = [
    dataclasses.replace(run, final_loss=run.final_loss + 0.3)
    for run in scaling_runs.ladder(0.0, rng)
  ]
  cells = scaling_runs.budgets(0.0, rng)
  # A sweep of learning rates at one of these budgets: the worse rate is left
  # out. Another batch is another study.
  worse = dataclasses.replace(
    cells[0], name="worse", peak_lr=1e-2, final_loss=9.0
  )
  batch = scaling_runs.run(480e3, 9.0, batch=16, steps=128, role="cell")
  parts = fit.split([*rungs, *cells, worse, batch])
  assert not {"worse", batch.name} & {
    run.name for run in fit.with_other_budgets(parts)
  }
  found, reasons = fit.all_laws(parts, **OPTIONS)
  assert reasons == {}
  law = found["params_and_tokens"].law
  assert law.exponents == pytest.approx((0.35, 0.4), rel=0.02)
  assert law.floor == pytest.approx(scaling_runs.E, rel=0.01)


def test_the_criteria_are_three_percent_and_a_third_of_the_drop():
  def judge(predicted, last=2.0, measured=1.5):
    row = {"params": {"loss": predicted, "low": 1.4, "high": 1.52}}
    return fit.judge(row, last, measured, "params")

  good = judge(1.54)
  assert good["within_3_percent"] and good["within_a_third_of_the_drop"]
  assert good["error_over_drop"] == pytest.approx(0.08)
  assert good["relative_errors"]["last_rung"] == pytest.approx(1 / 3)
  assert good["inside_interval"]
  # 5 % off, but less than a third of the drop.
  far = judge(1.575)
  assert not far["within_3_percent"] and far["within_a_third_of_the_drop"]
  # 2 % off where the last rung's loss again would be 2.7 % off.
  flat = judge(1.53, last=1.54)
  assert flat["within_3_percent"] and not flat["within_a_third_of_the_drop"]
  # A loss that rose has no drop to foretell.
  risen = judge(1.5, last=1.4)
  assert risen["error_over_drop"] is None
  assert not risen["within_a_third_of_the_drop"]


def test_the_backtest_holds_out_the_last_fitted_size(ladder):
  found = fit.backtest(fit.split(ladder), "params")
  assert found["size"] == "1300000"
  assert found["measured"] == pytest.approx(scaling_runs.loss(1.3e6))
  assert abs(found["relative_errors"]["params"]) < 1e-4
  assert abs(found["relative_errors"]["pure_power"]) > 1e-2
  few = [run for run in ladder if run.params < 150_000 or run.held_out]
  assert fit.backtest(fit.split(few), "params") is None


def test_a_prediction_has_the_noise_of_one_run_in_its_interval():
  parts = fit.split(scaling_runs.ladder(0.01, scaling_runs.generator(5)))
  fitted = fit.fit(laws.PARAMS, parts.fitted, seed=0, resamples=30)
  point = np.array([[1e6]])
  row = fitted.predict(point)
  law_alone = np.quantile(
    [draw(point)[0] for draw in fitted.draws], (0.025, 0.975)
  )
  assert row["high"] - row["low"] > 1.3 * np.diff(law_alone)[0]
  assert row["low"] < row["loss"] < row["high"]


def test_batches_at_one_token_budget_are_listed_but_have_no_law():
  runs = [
    scaling_runs.run(1e6, loss, batch=batch, steps=4096 // batch, peak_lr=rate)
    for batch, rate, loss in (
      (4, 1e-3, 2.1), (8, 1e-3, 2.0), (16, 1e-3, 2.3), (16, 2e-3, 2.2),
    )
  ]  # fmt: skip
  runs = [dataclasses.replace(run, name=f"{i}") for i, run in enumerate(runs)]
  [size] = fit.batch_study(runs, **OPTIONS)
  assert [row["losses"] for row in size["rows"]] == [[2.1], [2.0], [2.2]]
  assert size["law"] is None and "in proportion" in size["not_identified"]


def test_crossed_batches_and_steps_give_the_exponents_of_both():
  runs = [
    scaling_runs.run(
      1e6,
      1.2 + 0.5 * (batch / 8) ** -0.6 + 0.8 * (steps / 512) ** -0.45,
      batch=batch,
      steps=steps,
    )
    for batch in (4, 8, 16, 32)
    for steps in (128, 256, 512, 1024)
  ]
  [size] = fit.batch_study(runs, **OPTIONS)
  found = size["law"]["parameters"]
  assert found["a"]["value"] == pytest.approx(0.6, rel=0.02)
  assert found["b"]["value"] == pytest.approx(0.45, rel=0.02)


def proportional(flops_per_parameter=6.0):
  """Returns runs whose FLOPs per token are proportional to the parameters."""
  return [
    dataclasses.replace(
      run, flops=flops_per_parameter * run.params * run.tokens
    )
    for run in scaling_runs.ladder(0.0, scaling_runs.generator())
  ]


def test_the_best_size_is_that_of_the_closed_form():
  """N = G (C / 6)^(b / (a + b)), arXiv:2203.15556, equation 4."""
  law = laws.Law(
    laws.PARAMS_AND_TOKENS, 1.69, (406.4, 410.7), (0.34, 0.28), (1.0, 1.0)
  )
  cost = allocation.Cost(proportional())
  for flops in (1e15, 1e18):
    scale = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    best = scale * (flops / 6) ** (0.28 / 0.62)
    rows = allocation.table(law, [law], cost, [flops])
    assert rows[0]["params"] == pytest.approx(best, rel=1e-3)
    assert rows[0]["tokens"] == pytest.approx(flops / 6 / best, rel=1e-3)
    assert rows[0]["params_low"] == pytest.approx(best, rel=1e-3)
    assert rows[0]["extrapolated"] == (not 41e3 <= best <= 6.8e6)


def test_the_cost_of_a_token_includes_the_readout():
  runs = scaling_runs.ladder(0.0, scaling_runs.generator())
  cost = allocation.Cost(runs)
  for run in runs:
    assert cost.per_token(run.params) == pytest.approx(run.flops / run.tokens)
  # Half of the smallest size's FLOPs; hardly any of the largest's.
  assert cost.per_token(41e3) > 1.9 * 6 * 41e3
  assert cost.per_token(6.8e9) == pytest.approx(1000 * cost.per_token(6.8e6))


def test_profiles_have_runs_of_equal_flops_and_the_laws_optimum():
  law = laws.Law(
    laws.PARAMS_AND_TOKENS, 1.0, (0.9, 0.5), (0.35, 0.3), (3e5, 4e6)
  )
  runs = [
    scaling_runs.run(params, 2.0, steps=512, role="cell")
    for params in (2e5, 4e5, 8e5)
  ]
  cost = allocation.Cost(runs)
  runs = [
    dataclasses.replace(
      run,
      flops=1e13,
      final_loss=float(
        allocation.loss(law, cost, 1e13, np.array([run.params]))[0]
      ),
    )
    for run in runs
  ]
  other = scaling_runs.run(4e5, 2.0, steps=64, role="cell")
  [profile] = allocation.profiles(law, cost, [*runs, other])
  assert set(profile["runs"]) == {run.name for run in runs}
  lowest = profile["params"][int(np.argmin(profile["loss"]))]
  assert profile["optimum"] == pytest.approx(lowest, rel=0.1)


def test_rungs_of_several_budgets_or_none_are_refused(ladder):
  with pytest.raises(errors.UserError, match="2 token budgets"):
    fit.split([*ladder, scaling_runs.run(9e5, 1.5, steps=99)])
  cells = [dataclasses.replace(run, role="cell") for run in ladder]
  with pytest.raises(errors.UserError, match="no run with the role rung"):
    fit.split(cells)
  with pytest.raises(errors.UserError, match="No rung has the name or size"):
    fit.split(ladder, "1300001")
  two = [dataclasses.replace(run, held_out=run.params > 1e6) for run in ladder]
  with pytest.raises(errors.UserError, match="2 sizes"):
    fit.split(two)
