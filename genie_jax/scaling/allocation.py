"""How to divide FLOPs between parameters and tokens, from a fitted law.

All of this needs the law in both, L = E + A N^-a + B D^-b. FLOPs per token are
those of the study's own sizes and include embeddings and readout, as the usual
6 N is far off for small models (at width 16 the readout has over half of all
FLOPs).

Shapes:
  m  sizes on a curve
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

from genie_jax.evals import intervals
from genie_jax.scaling import laws
from genie_jax.scaling import runs as runs_lib

# Runs whose FLOPs differ by less than this belong to one profile.
_SAME_FLOPS = 0.05
_POINTS = 60  # Of a curve.
# How far beyond the study's sizes an optimum is looked for.
_BEYOND = 1000.0


class Cost:
  """FLOPs per token by parameters, between and beyond the study's sizes.

  Between sizes the logarithms are interpolated linearly; beyond them FLOPs per
  token are proportional to the parameters.
  """

  def __init__(self, runs: Sequence[runs_lib.Run]):
    """Takes the sizes of a study.

    Args:
      runs: Its runs.
    """
    sizes = {run.params: run.flops / run.tokens for run in runs}
    self._params = np.log(np.array(sorted(sizes), float))
    self._cost = np.log([sizes[params] for params in sorted(sizes)])

  @property
  def range(self) -> tuple[float, float]:
    """The smallest and the largest number of parameters of a run."""
    return float(np.exp(self._params[0])), float(np.exp(self._params[-1]))

  def per_token(self, params: np.ndarray | float) -> np.ndarray:
    """Returns training FLOPs per token for numbers of parameters, any shape."""
    logs = np.log(params)
    inside = np.clip(logs, self._params[0], self._params[-1])
    return np.exp(np.interp(inside, self._params, self._cost) + logs - inside)


def loss(
  law: laws.Law, cost: Cost, flops: float, params: np.ndarray
) -> np.ndarray:
  """Returns the losses [m] of sizes params [m] trained with `flops` each."""
  return law(np.stack([params, flops / cost.per_token(params)], -1))


def optimum(law: laws.Law, cost: Cost, flops: float) -> float:
  """Returns the parameters with the lowest loss for a number of FLOPs."""
  low, high = np.log(cost.range)
  beyond = np.log(_BEYOND)
  found: Any = optimize.minimize_scalar(
    lambda logs: float(loss(law, cost, flops, np.exp([logs]))[0]),
    bounds=(low - beyond, high + beyond),
    method="bounded",
    options={"xatol": 1e-6},
  )
  return float(np.exp(found.x))


def table(
  law: laws.Law,
  draws: Sequence[laws.Law],
  cost: Cost,
  budgets: Sequence[float],
) -> list[dict[str, Any]]:
  """Returns the best size for each number of FLOPs.

  Args:
    law: The law in parameters and tokens.
    draws: The laws of resampled runs; no intervals if empty.
    cost: FLOPs per token.
    budgets: FLOPs.
  """
  rows = []
  smallest, largest = cost.range
  for flops in budgets:
    params = optimum(law, cost, flops)
    others = [optimum(draw, cost, flops) for draw in draws]
    low, high = (
      intervals.percentiles(np.array(others)) if others else (None,) * 2
    )
    rows.append(
      {
        "flops": flops,
        "params": params,
        "params_low": low,
        "params_high": high,
        "tokens": float(flops / cost.per_token(params)),
        "loss": float(loss(law, cost, flops, np.array([params]))[0]),
        "extrapolated": not smallest <= params <= largest,
      }
    )
  return rows


def profiles(
  law: laws.Law, cost: Cost, runs: Sequence[runs_lib.Run]
) -> list[dict[str, Any]]:
  """Returns iso-FLOP profiles: loss by size for equal FLOPs.

  They are for a picture. The vertex of a parabola through the runs of a profile
  (approach 2 of arXiv:2203.15556) is biased where the two terms of the law have
  different exponents or the sizes are not centred (arXiv:2603.22339), so it is
  given beside the law's own optimum and nothing is computed from it.

  Args:
    law: The law in parameters and tokens.
    cost: FLOPs per token.
    runs: The runs of the study.
  """
  rows = []
  for group in _groups(runs):
    flops = float(np.exp(np.mean([np.log(run.flops) for run in group])))
    best = optimum(law, cost, flops)
    sizes = np.array([run.params for run in group], float)
    ends = min(*sizes, best) / 2, max(*sizes, best) * 2
    curve = np.geomspace(*ends, _POINTS)
    rows.append(
      {
        "flops": flops,
        "runs": [run.name for run in group],
        "params": curve.tolist(),
        "loss": loss(law, cost, flops, curve).tolist(),
        "optimum": best,
        "parabola_vertex": _vertex(sizes, [run.final_loss for run in group]),
      }
    )
  return rows


def _groups(runs: Sequence[runs_lib.Run]) -> list[list[runs_lib.Run]]:
  """Returns groups of at least three sizes with about the same FLOPs."""
  groups: list[list[runs_lib.Run]] = []
  for run in sorted(runs, key=lambda run: run.flops):
    if groups and run.flops <= groups[-1][0].flops * (1 + _SAME_FLOPS):
      groups[-1].append(run)
    else:
      groups.append([run])
  return [g for g in groups if len({run.params for run in g}) >= 3]


def _vertex(params: np.ndarray, losses: Sequence[float]) -> float | None:
  """Returns the vertex of the parabola in log N; None if it has no minimum."""
  square, linear, _ = np.polyfit(np.log(params), losses, 2)
  return float(np.exp(-linear / (2 * square))) if square > 0 else None
