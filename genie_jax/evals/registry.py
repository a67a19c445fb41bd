"""The metrics that `genie eval` computes, by name."""

from typing import Any

from genie_jax.core import errors
from genie_jax.core import registry as registry_lib
from genie_jax.evals import (
  control,
  counterfactuals,
  drift,
  fvd,
  held,
  metric,
  obedience,
  standard,
  walking,
)


def _check(name: str, value: Any) -> None:
  """Raises UserError unless `value` is a Metric."""
  if not isinstance(value, metric.Metric):
    raise errors.UserError(
      f"The metric {name!r} is of type {type(value).__name__}; it needs to be "
      "a genie_jax.evals.metric.Metric(measure)."
    )
  registry_lib.check_methods(
    "metric",
    name,
    value,
    {
      "measure": "(work) -> genie_jax.evals.metric.Result",
      "applies": "(work) -> bool",
    },
  )


METRICS: registry_lib.Registry[metric.Metric] = registry_lib.Registry(
  "metric", "genie_jax.evals.registry.register", _check
)


def register(name: str, value: metric.Metric) -> metric.Metric:
  """Adds a metric to all later evaluations, and returns it.

  Args:
    name: Key of the metric in `details` of metrics.json.
    value: The metric.

  Raises:
    UserError: The name is in use, or `value` is not a usable Metric.
  """
  return METRICS.register(name, value)


def _has_both_actions(work: metric.Work) -> bool:
  """Returns whether there are latent and true actions to compare."""
  return (
    work.manifest.num_actions is not None and work.subject.infer is not None
  )


# First, since it needs more of the clips than the others and may refuse them.
register("drift", metric.Metric(drift.measure, drift.applies))
register("reconstruction", metric.Metric(standard.measure_reconstruction))
register("codebook", metric.Metric(standard.measure_codebook))
register("actions", metric.Metric(standard.measure_actions, _has_both_actions))
register("control", metric.Metric(control.measure, control.applies))
register(
  "inverse_dynamics", metric.Metric(obedience.measure, obedience.applies)
)
register("prediction", metric.Metric(standard.measure_prediction))
register("controllability", metric.Metric(standard.measure_controllability))
register("fvd", metric.Metric(fvd.measure, fvd.applies))
register(
  "counterfactuals",
  metric.Metric(counterfactuals.measure, counterfactuals.applies),
)
register("held", metric.Metric(held.measure, held.applies))
register("walking", metric.Metric(walking.measure, walking.applies))
