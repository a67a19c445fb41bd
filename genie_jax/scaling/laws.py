"""Scaling laws L = E + sum of A_j x_j^-a_j, and how they are fitted.

With x = (N, D), parameters and training tokens, this is the law of Hoffmann et
al. (arXiv:2203.15556, approach 3). Other axes give the laws of a study with one
token budget (N alone, or FLOPs alone) and of a study of batch sizes (tokens of
a batch and optimizer steps).

The fit has two stages:

1. Variable projection. For given exponents the law is linear in E and the A_j,
   so a grid over the exponents and non-negative least squares for the rest find
   the region of the optimum without a starting point (arXiv:2603.22339; the
   gradient-based fit of the original paper had stopped early,
   arXiv:2404.10102).
2. Huber's loss of the residuals of log L, with the threshold 1e-3 of the
   original paper, from the best point of the grid.

Shapes:
  n  runs    k  axes    R  resamples    m  points of a prediction
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from genie_jax.core import errors

HUBER = 1e-3  # Threshold on residuals of log L; arXiv:2203.15556, section D.1.
# Exponents that the fit considers. Those of published laws are between 0.05 and
# 1; the ends are wide so that an interval that reaches one is conspicuous.
LOWEST, HIGHEST = 0.01, 3.0
_GRID = {1: 60, 2: 24, 3: 12}  # Points of the grid along each exponent.


@dataclasses.dataclass(frozen=True)
class Form:
  """The form of a law.

  Attributes:
    axes: Names of the quantities x_j, which are fields of a run.
    floor: Whether the law has the term E, the loss that remains however large
      x is. A pure power law has none.
  """

  axes: tuple[str, ...]
  floor: bool = True

  @property
  def num_parameters(self) -> int:
    """Number of fitted parameters."""
    return int(self.floor) + 2 * len(self.axes)

  def __str__(self) -> str:
    terms = ["E"] if self.floor else []
    letters = "ABC"
    for letter, axis in zip(letters, self.axes, strict=False):
      terms.append(f"{letter} {axis}^-{letter.lower()}")
    return "L = " + " + ".join(terms)


# L = E + A N^-a + B D^-b; at one token budget the term of D is a constant.
PARAMS_AND_TOKENS = Form(("params", "tokens"))
PARAMS = Form(("params",))
FLOPS = Form(("flops",))
# The law that has no floor, which is a straight line in logarithmic axes.
PURE_POWER = Form(("params",), floor=False)
# The loss of one size by steps and by tokens of a batch, which are separate
# terms as in the three-term law of arXiv:2607.01487.
BATCH_AND_STEPS = Form(("batch_tokens", "steps"))


@dataclasses.dataclass(frozen=True)
class Law:
  """A fitted law.

  Attributes:
    form: Its form.
    floor: E, in the unit of the losses.
    scales: [k], A_j (x_j / reference_j)^-a_j at x_j = reference_j, in the unit
      of the losses.
    exponents: [k], a_j.
    references: [k], geometric means of the fitted x_j. Coefficients at x = 1
      would be strongly correlated with the exponents.
  """

  form: Form
  floor: float
  scales: tuple[float, ...]
  exponents: tuple[float, ...]
  references: tuple[float, ...]

  def __call__(self, points: np.ndarray) -> np.ndarray:
    """Returns the losses [m] that the law gives at points [m, k]."""
    return self.floor + self.terms(points).sum(-1)

  def terms(self, points: np.ndarray) -> np.ndarray:
    """Returns each axis's share of the loss, [m, k], at points [m, k]."""
    ratios = np.asarray(points, float) / np.array(self.references)
    return np.array(self.scales) * ratios ** -np.array(self.exponents)

  def coefficients(self) -> dict[str, float]:
    """Returns the parameters as in the formula: E, A, a, B, b."""
    found = {"E": self.floor} if self.form.floor else {}
    for letter, scale, exponent, reference in zip(
      "ABC", self.scales, self.exponents, self.references, strict=False
    ):
      # In float64 this cannot overflow: the largest exponent is 3.
      found[letter] = scale * reference**exponent
      found[letter.lower()] = exponent
    return found


def points(
  runs: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> np.ndarray:
  """Returns the quantities of runs along axes, float64 [n, k]."""
  return np.array([[float(run[axis]) for axis in axes] for run in runs])


def fit(form: Form, x: np.ndarray, losses: np.ndarray) -> Law:
  """Fits a law.

  Args:
    form: Its form.
    x: [n, k], positive.
    losses: [n], positive.

  Raises:
    UserError: There are fewer distinct points than parameters.
  """
  check(form, x)
  references = np.exp(np.log(x).mean(0))
  ratios = np.log(x / references)
  start = _project(form, ratios, losses)
  found = _polish(form, ratios, losses, start)
  return _law(form, found, references)


def _law(
  form: Form, parameters: np.ndarray, references: Sequence[float]
) -> Law:
  """Returns the law with parameters (E, A_1, ..., a_1, ...)."""
  k = len(form.axes)
  return Law(
    form,
    float(parameters[0]) if form.floor else 0.0,
    tuple(float(value) for value in parameters[-2 * k : -k]),
    tuple(float(value) for value in parameters[-k:]),
    tuple(float(value) for value in references),
  )


def check(form: Form, x: np.ndarray) -> None:
  """Raises UserError if a law has more parameters than distinct points."""
  distinct = len(np.unique(x, axis=0))
  if distinct < form.num_parameters:
    raise errors.UserError(
      f"{form} has {form.num_parameters} parameters, but the runs have only "
      f"{distinct} distinct values of {' and '.join(form.axes)}; train more "
      "sizes, or fit a law with fewer terms."
    )


def residuals(law: Law, x: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """Returns log(loss) minus the logarithm of the law's value, [n]."""
  return np.log(losses) - np.log(law(x))


def identifies(x: np.ndarray) -> list[int]:
  """Returns the axes along which runs differ enough for a term of their own.

  A term A x^-a needs three values of x: with two, every exponent fits. Two axes
  whose logarithms are proportional (as on a compute-optimal path) are one.

  Args:
    x: [n, k].
  """
  logs = np.log(x)
  wide = [
    j for j in range(x.shape[1]) if len(np.unique(np.round(logs[:, j], 6))) >= 3
  ]
  kept: list[int] = []
  for j in wide:
    if all(
      abs(np.corrcoef(logs[:, i], logs[:, j])[0, 1]) < 0.999 for i in kept
    ):
      kept.append(j)
  return kept


def resample(
  law: Law, x: np.ndarray, losses: np.ndarray, *, seed: int, count: int
) -> tuple[list[Law], np.ndarray]:
  """Fits a law again to runs drawn with replacement (bootstrap over runs).

  A draw with fewer distinct points than parameters is drawn again. In
  simulated ladders of 13 runs, intervals of drawn runs held the true exponent
  more often than intervals of drawn residuals; docs/scaling.md has the figures.

  Args:
    law: The law fitted to all runs.
    x: [n, k].
    losses: [n].
    seed: Seed of the draws.
    count: R.

  Returns:
    R laws, and the residuals [n] of log L scaled by sqrt(n / (n - p)) for p
    fitted parameters, which are the noise of one run. Both are empty if there
    are no more runs than parameters, where no residuals are left.
  """
  size, least = len(losses), law.form.num_parameters
  if size <= least:
    return [], np.zeros(0)
  noise = residuals(law, x, losses)
  noise = (noise - noise.mean()) * np.sqrt(size / (size - least))
  rng = np.random.default_rng(seed)
  drawn = []
  while len(drawn) < count:
    chosen = rng.integers(0, size, size)
    if len(np.unique(x[chosen], axis=0)) >= least:
      drawn.append(_again(law, x[chosen], losses[chosen]))
  return drawn, noise


def _again(law: Law, x: np.ndarray, losses: np.ndarray) -> Law:
  """Fits a law to other runs, from the parameters of `law`."""
  floor = [law.floor] if law.form.floor else []
  start = np.array([*floor, *law.scales, *law.exponents])
  ratios = np.log(x / np.array(law.references))
  found = _polish(law.form, ratios, losses, start, tolerance=1e-7)
  return _law(law.form, found, law.references)


def _project(form: Form, ratios: np.ndarray, losses: np.ndarray) -> np.ndarray:
  """Returns the best parameters of a grid over exponents.

  The squares are weighted by 1 / L^2, which is to first order the square of a
  residual of log L.
  """
  k = len(form.axes)
  grid = np.geomspace(LOWEST, HIGHEST, _GRID[k])
  constant = [np.ones(len(losses))] if form.floor else []
  best, found = np.inf, np.zeros(form.num_parameters)
  powers = np.exp(-grid[:, None, None] * ratios)  # [grid, n, k]
  for index in itertools.product(range(len(grid)), repeat=k):
    columns = [powers[i, :, j] for j, i in enumerate(index)]
    design = np.stack(constant + columns, 1) / losses[:, None]
    linear, norm = optimize.nnls(design, np.ones(len(losses)))
    if norm < best:
      best, found = norm, np.concatenate([linear, grid[list(index)]])
  return found


def _polish(
  form: Form,
  ratios: np.ndarray,
  losses: np.ndarray,
  start: np.ndarray,
  tolerance: float = 1e-10,
) -> np.ndarray:
  """Minimises Huber's loss of the residuals of log L from `start`."""
  k = len(form.axes)
  low = np.array([0.0] * (form.num_parameters - k) + [LOWEST] * k)
  high = np.array([np.inf] * (form.num_parameters - k) + [HIGHEST] * k)
  logs = np.log(losses)

  def value(parameters):
    scales, exponents = parameters[-2 * k : -k], parameters[-k:]
    terms = scales * np.exp(-exponents * ratios)  # [n, k]
    floor = parameters[0] if form.floor else 0.0
    return terms, floor + terms.sum(1)

  def residual(parameters):
    return np.log(np.maximum(value(parameters)[1], 1e-12)) - logs

  def jacobian(parameters):
    terms, total = value(parameters)
    total = np.maximum(total, 1e-12)[:, None]
    constant = [np.ones((len(logs), 1))] if form.floor else []
    return (
      np.concatenate(
        [*constant, np.exp(-parameters[-k:] * ratios), -terms * ratios], 1
      )
      / total
    )

  # A start on a bound would leave no room for the first step.
  inside = np.clip(start, low + 1e-9, np.where(np.isinf(high), start + 1, high))
  least_squares: Any = optimize.least_squares  # Its stubs know no callable jac.
  return least_squares(
    residual,
    inside,
    jacobian,
    bounds=(low, high),
    loss="huber",
    f_scale=HUBER,
    x_scale="jac",
    xtol=tolerance,
    ftol=tolerance,
    gtol=None,
    max_nfev=300,
  ).x
