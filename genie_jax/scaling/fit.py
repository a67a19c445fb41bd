"""Fits scaling laws to the runs of a study, and judges predictions.

What is held out is never fitted. If no run is held out, the largest size is,
because a law that was not tested on a size that it has not seen says nothing
about the next one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.evals import intervals
from genie_jax.scaling import allocation, laws
from genie_jax.scaling import runs as runs_lib

# Laws that can be the one that counts, by their name on the command line.
LAWS = {
  "params": laws.PARAMS,
  "flops": laws.FLOPS,
  "params_and_tokens": laws.PARAMS_AND_TOKENS,
}
BASELINE = "pure_power"
RESAMPLES = 300
# A prediction is good if its error is at most 3 % of the measured loss and at
# most a third of the drop from the last rung's loss: a law for which the last
# rung's loss again would be nearly as good has foretold nothing.
LARGEST_ERROR, LARGEST_SHARE = 0.03, 1 / 3
_POINTS = 60  # Of a curve.


@dataclasses.dataclass(frozen=True)
class Target:
  """A run whose loss is predicted.

  Attributes:
    name: Its name or size, for people.
    params: Parameters.
    tokens: Training tokens.
    flops: Training FLOPs; None if they are not known.
  """

  name: str
  params: float
  tokens: float
  flops: float | None

  def point(self, form: laws.Form) -> np.ndarray | None:
    """Returns the quantities [1, k] of a form; None if one is not known."""
    values = [getattr(self, axis, None) for axis in form.axes]
    return None if None in values else np.array([values], float)


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A law fitted to runs, with its uncertainty.

  Attributes:
    law: The law.
    runs: The runs that it was fitted to.
    draws: The laws of resampled runs; empty if there are no more runs than
      parameters.
    noise: Residuals of log L from which the draws were made.
    seed: Seed of the draws.
  """

  law: laws.Law
  runs: tuple[runs_lib.Run, ...]
  draws: tuple[laws.Law, ...]
  noise: np.ndarray
  seed: int

  def predict(self, point: np.ndarray) -> dict[str, float | None]:
    """Returns the loss of one run at a point [1, k], with its interval.

    The interval has the uncertainty of the law and the noise of one run. It
    takes the law's form for granted.
    """
    value = float(self.law(point)[0])
    low = high = None
    if self.draws:
      rng = np.random.default_rng(self.seed + 1)
      noise = np.exp(rng.choice(self.noise, len(self.draws)))
      low, high = intervals.percentiles(
        np.array([float(draw(point)[0]) for draw in self.draws]) * noise
      )
    return {"loss": value, "low": low, "high": high}

  def curve(self, low: float, high: float) -> dict[str, Any]:
    """Returns a law of one axis as a line for a plot, with its 95 % band.

    Args:
      low: First value of the axis.
      high: Last value of the axis.
    """
    x = np.geomspace(low, high, _POINTS)
    ends: Any = (None, None)
    if self.draws:
      # The band is that of the law, without the noise of a run.
      values = np.stack([draw(x[:, None]) for draw in self.draws])
      ends = np.quantile(values, (0.025, 0.975), axis=0).tolist()
    return {
      "axis": self.law.form.axes[0],
      "x": x.tolist(),
      "loss": self.law(x[:, None]).tolist(),
      "low": ends[0],
      "high": ends[1],
    }

  def to_dict(self) -> dict[str, Any]:
    """Returns the law for a JSON file."""
    found = self.law.coefficients()
    others = [draw.coefficients() for draw in self.draws]
    parameters = {}
    for name, value in found.items():
      low = high = None
      if others:
        low, high = intervals.percentiles(np.array([o[name] for o in others]))
      parameters[name] = {"value": value, "low": low, "high": high}
    return {
      "form": str(self.law.form),
      "parameters": parameters,
      # A value at an end of the range that was searched is not an estimate.
      "at_bounds": [
        name
        for name, value in found.items()
        if (name.isupper() and value == 0)
        or (
          name.islower()
          and not 1.01 * laws.LOWEST < value < 0.99 * laws.HIGHEST
        )
      ],
      "residual_sd": float(np.std(self.noise)) if len(self.noise) else None,
      "runs": [run.name for run in self.runs],
      "references": list(self.law.references),
      "terms_at_references": list(self.law.scales),
    }


def fit(
  form: laws.Form, runs: Sequence[runs_lib.Run], *, seed: int, resamples: int
) -> Fitted:
  """Fits a law to the final losses of runs.

  Raises:
    UserError: There are fewer distinct points than parameters, or the losses
      do not compare.
  """
  runs_lib.check_comparable(runs)
  rows = [dataclasses.asdict(run) for run in runs]
  x = laws.points(rows, form.axes)
  losses = np.array([run.final_loss for run in runs])
  law = laws.fit(form, x, losses)
  draws, noise = laws.resample(law, x, losses, seed=seed, count=resamples)
  return Fitted(law, tuple(runs), tuple(draws), noise, seed)


@dataclasses.dataclass(frozen=True)
class Parts:
  """The runs of a study by their use.

  Attributes:
    fitted: Rungs that are fitted.
    held_out: Rungs whose loss is predicted; all have one size.
    cells: All other runs.
  """

  fitted: tuple[runs_lib.Run, ...]
  held_out: tuple[runs_lib.Run, ...]
  cells: tuple[runs_lib.Run, ...]


def split(runs: Sequence[runs_lib.Run], held_out: str | None = None) -> Parts:
  """Divides the runs of a study.

  Args:
    runs: All runs.
    held_out: Name or size of the rungs to hold out. By default those that the
      study holds out; if it holds out none, the largest.

  Raises:
    UserError: No rung has this name or size, the rungs have several token
      budgets, or the held-out runs several sizes.
  """
  rungs = [run for run in runs if run.role == "rung"]
  cells = tuple(run for run in runs if run.role == "cell")
  if not rungs:
    raise errors.UserError(
      "The file has no run with the role rung; a fit needs runs of several "
      "sizes at one token budget."
    )
  budgets = sorted({run.tokens for run in rungs})
  if len(budgets) > 1:
    raise errors.UserError(
      f"The rungs have {len(budgets)} token budgets, from {budgets[0]:,} to "
      f"{budgets[-1]:,}; rungs share one budget, so give the others the role "
      "cell."
    )
  if held_out is not None:
    out = [run for run in rungs if held_out in (run.name, run.size)]
    if not out:
      raise errors.UserError(
        f"No rung has the name or size {held_out!r}"
        f"{errors.closest(held_out, [run.name for run in rungs])}."
      )
    # Every seed of this size would tell its loss.
    out = [run for run in rungs if run.params == out[0].params]
  else:
    out = [run for run in rungs if run.held_out]
    if not out:
      largest = max(run.params for run in rungs)
      out = [run for run in rungs if run.params == largest]
  sizes = sorted({run.params for run in out})
  if len(sizes) > 1:
    raise errors.UserError(
      f"The held-out rungs have {len(sizes)} sizes; hold out one size."
    )
  fitted = tuple(run for run in rungs if run not in out and not run.held_out)
  return Parts(
    fitted, tuple(out), tuple(run for run in cells if not run.held_out)
  )


def with_other_budgets(parts: Parts) -> list[runs_lib.Run]:
  """Returns the runs for the law in parameters and tokens.

  These are the fitted rungs and the cells that differ from them in tokens
  alone: same batch, and of several learning rates the one with the lowest mean
  loss. Cells at the budget of the rungs are sweeps of something else.
  """
  budget, batch = parts.fitted[0].tokens, parts.fitted[0].batch_tokens
  held_out = {run.params for run in parts.held_out}
  groups: dict[tuple[int, int], dict[float, list[runs_lib.Run]]] = {}
  for run in parts.cells:
    if (
      run.batch_tokens == batch
      and run.tokens != budget
      and run.params not in held_out
    ):
      rates = groups.setdefault((run.params, run.tokens), {})
      rates.setdefault(run.peak_lr, []).append(run)
  best = [
    min(rates.values(), key=lambda g: np.mean([run.final_loss for run in g]))
    for rates in groups.values()
  ]
  return [*parts.fitted, *(run for group in best for run in group)]


def all_laws(
  parts: Parts, *, seed: int, resamples: int
) -> tuple[dict[str, Fitted], dict[str, str]]:
  """Fits every law that the runs identify.

  Args:
    parts: The runs.
    seed: Seed of the resampling.
    resamples: R.

  Returns:
    Name -> law, and name -> why a law is not identified.

  Raises:
    UserError: There are too few sizes for the law in parameters.
  """
  options: Any = dict(seed=seed, resamples=resamples)
  found = {
    name: fit(form, parts.fitted, **options)
    for name, form in (
      ("params", laws.PARAMS),
      ("flops", laws.FLOPS),
      (BASELINE, laws.PURE_POWER),
    )
  }
  runs = with_other_budgets(parts)
  reason = _not_identified(laws.PARAMS_AND_TOKENS, runs)
  if reason:
    return found, {"params_and_tokens": reason}
  found["params_and_tokens"] = fit(laws.PARAMS_AND_TOKENS, runs, **options)
  return found, {}


def _not_identified(
  form: laws.Form, runs: Sequence[runs_lib.Run]
) -> str | None:
  """Returns why runs do not identify a law; None if they do."""
  x = laws.points([dataclasses.asdict(run) for run in runs], form.axes)
  for j, axis in enumerate(form.axes):
    values = sorted(set(x[:, j]))
    if len(values) == 1:
      return (
        f"all runs have {axis} = {values[0]:.4g}, so a term of {axis} cannot "
        "be told from E"
      )
    if len(values) < 3:
      return (
        f"the runs have {len(values)} values of {axis}; the term of {axis} "
        "needs at least 3"
      )
  if len(laws.identifies(x)) < len(form.axes):
    return (
      f"{' and '.join(form.axes)} change in proportion in all runs, so their "
      "terms cannot be told apart"
    )
  distinct = len(np.unique(x, axis=0))
  if distinct < form.num_parameters:
    return f"{distinct} distinct points for {form.num_parameters} parameters"
  return None


def last_rung_loss(fitted: Sequence[runs_lib.Run]) -> float:
  """Returns the mean final loss of the largest fitted size."""
  largest = max(run.params for run in fitted)
  return float(
    np.mean([run.final_loss for run in fitted if run.params == largest])
  )


def predict(
  found: Mapping[str, Fitted], target: Target
) -> dict[str, dict[str, float | None]]:
  """Returns every law's prediction of a target, by the law's name."""
  points = {name: target.point(law.law.form) for name, law in found.items()}
  return {
    name: found[name].predict(point)
    for name, point in points.items()
    if point is not None
  }


def judge(
  losses: Mapping[str, Mapping[str, float | None]],
  last: float,
  measured: float,
  law: str,
) -> dict[str, Any]:
  """Compares predictions with the measured loss.

  Args:
    losses: From `predict`.
    last: Loss of the last rung, which is the prediction "no change".
    measured: The measured loss.
    law: Name of the law that counts.

  Returns:
    Relative error of each law and of the last rung's loss again, and whether
    the law that counts meets the two criteria.
  """
  values: dict[str, Any] = {name: row["loss"] for name, row in losses.items()}
  values["last_rung"] = last
  relative = {name: value / measured - 1 for name, value in values.items()}
  error, drop = abs(values[law] - measured), last - measured
  row = losses[law]
  inside = None
  if row["low"] is not None and row["high"] is not None:
    inside = row["low"] <= measured <= row["high"]
  return {
    "law": law,
    "predicted": values[law],
    "measured": measured,
    "last_rung": last,
    "relative_errors": relative,
    "within_3_percent": error <= LARGEST_ERROR * measured,
    "error_over_drop": error / drop if drop > 0 else None,
    "within_a_third_of_the_drop": drop > 0 and error <= LARGEST_SHARE * drop,
    "inside_interval": inside,
  }


def backtest(parts: Parts, law: str) -> dict[str, Any] | None:
  """Holds out the largest fitted size too, and judges its prediction.

  Returns:
    As `judge`, with the name of the size; None if too few sizes remain.
  """
  largest = max(run.params for run in parts.fitted)
  out = tuple(run for run in parts.fitted if run.params == largest)
  rest = tuple(run for run in parts.fitted if run.params < largest)
  if len({run.params for run in rest}) < LAWS[law].num_parameters:
    return None
  # Only the values are judged, so intervals are not computed.
  found, _ = all_laws(Parts(rest, out, parts.cells), seed=0, resamples=0)
  if law not in found:
    return None
  target = Target(out[0].size, out[0].params, out[0].tokens, out[0].flops)
  measured = float(np.mean([run.final_loss for run in out]))
  return {
    "size": out[0].size,
    **judge(predict(found, target), last_rung_loss(rest), measured, law),
  }


def batch_study(
  runs: Sequence[runs_lib.Run], *, seed: int, resamples: int
) -> list[dict[str, Any]]:
  """Returns the loss by batch size, for each size with several of them.

  Of several learning rates at one batch and number of steps, the runs with the
  lowest mean loss count. Where batch and steps vary enough, the law
  L = E + A batch_tokens^-a + B steps^-b is fitted; at one token budget they
  are inversely proportional, so it cannot be.

  Args:
    runs: The runs that may be used.
    seed: Seed of the resampling.
    resamples: R.
  """
  sizes = []
  for params in sorted({run.params for run in runs}):
    groups: dict[tuple[int, int], dict[float, list[runs_lib.Run]]] = {}
    for run in runs:
      if run.params == params:
        rates = groups.setdefault((run.batch_tokens, run.steps), {})
        rates.setdefault(run.peak_lr, []).append(run)
    if len({batch for batch, _ in groups}) < 2:
      continue
    best = {
      key: min(
        rates.values(), key=lambda g: np.mean([run.final_loss for run in g])
      )
      for key, rates in groups.items()
    }
    chosen = [run for group in best.values() for run in group]
    runs_lib.check_comparable(chosen)
    reason = _not_identified(laws.BATCH_AND_STEPS, chosen)
    sizes.append(
      {
        "size": chosen[0].size,
        "params": params,
        "rows": [
          {
            "batch_size": group[0].batch_size,
            "batch_tokens": batch,
            "steps": steps,
            "tokens": group[0].tokens,
            "peak_lr": group[0].peak_lr,
            "losses": [run.final_loss for run in group],
            "runs": [run.name for run in group],
          }
          for (batch, steps), group in sorted(best.items())
        ],
        "law": None
        if reason
        else fit(
          laws.BATCH_AND_STEPS, chosen, seed=seed, resamples=resamples
        ).to_dict(),
        "not_identified": reason,
      }
    )
  return sizes


def allocate(
  joint: Fitted | None, runs: Sequence[runs_lib.Run]
) -> dict[str, Any] | None:
  """Returns compute-optimal sizes and iso-FLOP profiles.

  Args:
    joint: The law in parameters and tokens; None if it is not identified.
    runs: The runs of the study.
  """
  if joint is None:
    return None
  cost = allocation.Cost(runs)
  spent = sorted(run.flops for run in runs)
  budgets = np.geomspace(spent[0], 100 * spent[-1], 9).tolist()
  return {
    "optimal": allocation.table(joint.law, joint.draws, cost, budgets),
    "profiles": allocation.profiles(joint.law, cost, runs),
  }
