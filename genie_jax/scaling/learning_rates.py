"""Learning rates by size: the optimum of each sweep, and a law through them.

With one learning rate for all sizes, small models are undertrained and a
scaling curve looks steeper than it is. Here each swept size gets the minimum of
a parabola of its losses in log(rate), and the law is a straight line of
log(rate) in log(parameters), as in arXiv:2401.02954 and arXiv:2503.04715.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Sweep:
  """The losses of one size at several learning rates.

  Attributes:
    size: Name of the size.
    params: Parameters of the model.
    losses: Learning rate -> final loss, the mean over seeds; infinite where a
      run diverged.
  """

  size: str
  params: int
  losses: Mapping[float, float]

  def optimum(self) -> float:
    """Returns the learning rate with the lowest loss.

    It is the minimum of the parabola, in log(rate), through the best rate and
    its two neighbours. If the next higher rate diverged, it is the best rate
    itself.

    Raises:
      UserError: There are fewer than three rates, or the best one is the lowest
        or the highest of them, so that a better one may be outside.
    """
    rates = sorted(self.losses)
    if len(rates) < 3:
      raise errors.UserError(
        f"The sweep of size {self.size} has {len(rates)} learning rates; use "
        "at least 3."
      )
    best = min(range(len(rates)), key=lambda i: self.losses[rates[i]])
    if not math.isfinite(self.losses[rates[best]]):
      raise errors.UserError(
        f"The sweep of size {self.size}: all runs diverged; use lower peak_lrs."
      )
    if best in (0, len(rates) - 1):
      end, way = ("lowest", "lower") if best == 0 else ("highest", "higher")
      raise errors.UserError(
        f"The sweep of size {self.size}: the best learning rate "
        f"{rates[best]:g} is the {end} one; add {way} peak_lrs."
      )
    near = rates[best - 1 : best + 2]
    y = [self.losses[rate] for rate in near]
    if not all(map(math.isfinite, y)):
      return rates[best]
    x = np.log(near)
    # Lagrange's form of the parabola: curvature and slope at the middle.
    left, right = (y[0] - y[1]) / (x[0] - x[1]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    if curvature <= 0:  # All three losses are equal.
      return rates[best]
    slope = left + curvature * (x[1] - x[0])
    return float(np.exp(x[1] - slope / (2 * curvature)))


@dataclasses.dataclass(frozen=True)
class Law:
  """rate = coefficient * params^exponent * (batch / base batch)^batch_exponent.

  Attributes:
    coefficient: Learning rate of a model of one parameter.
    exponent: 0 for one rate for all sizes.
    base_batch: Clips per step of the sweep.
    batch_exponent: See `ladder.LearningRates`.
    optima: Size -> {"params", "peak_lr", "law", "losses"} of each sweep, with
      the rate of the law at this size.
  """

  coefficient: float
  exponent: float
  base_batch: int
  batch_exponent: float
  optima: Mapping[str, Mapping[str, Any]]

  def rate(self, params: int, batch_size: int) -> float:
    """Returns the learning rate of a model of `params` parameters."""
    return (
      self.coefficient
      * params**self.exponent
      * (batch_size / self.base_batch) ** self.batch_exponent
    )

  def to_dict(self) -> dict[str, Any]:
    """Returns the law as JSON values."""
    return {"version": VERSION, **dataclasses.asdict(self)}


def fit(
  sweeps: Sequence[Sweep], law: str, base_batch: int, batch_exponent: float
) -> Law:
  """Fits a law to the optima of some sweeps.

  Args:
    sweeps: One for each size.
    law: "power", a least-squares line in the logarithms; or "constant", the
      geometric mean of the optima.
    base_batch: Clips per step of all sweeps.
    batch_exponent: See `ladder.LearningRates`.

  Raises:
    UserError: A sweep has no optimum, or there are fewer than two sizes for a
      power law.
  """
  if law == "power" and len({sweep.params for sweep in sweeps}) < 2:
    raise errors.UserError(
      "A power law of learning rates needs sweeps of at least 2 sizes, but "
      f"there are {len(sweeps)}; sweep more, or set learning_rates.law to "
      "'constant'."
    )
  best = {sweep.size: sweep.optimum() for sweep in sweeps}
  x = np.log([sweep.params for sweep in sweeps])
  y = np.log([best[sweep.size] for sweep in sweeps])
  if law == "power":
    exponent, constant = np.polyfit(x, y, 1)
  else:
    exponent, constant = 0.0, y.mean()
  exponent, coefficient = float(exponent), float(np.exp(constant))
  return Law(
    coefficient,
    exponent,
    base_batch,
    batch_exponent,
    {
      sweep.size: {
        "params": sweep.params,
        "peak_lr": best[sweep.size],
        "law": coefficient * sweep.params**exponent,
        "losses": {
          f"{rate:g}": loss if math.isfinite(loss) else None
          for rate, loss in sorted(sweep.losses.items())
        },
      }
      for sweep in sweeps
    },
  )
