"""The time of a run besides its steps: evaluation, previews and checkpoints.

The loop of `genie train` does not step while it evaluates, draws previews or
waits for a checkpoint to be copied to the hosts. Reading data, starting and
restarts are not planned.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from genie_jax.plan import aot_compile
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.cost import schedule
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import previews
from genie_jax.train import step as step_lib

_DAY = 86_400.0


def counts(steps: int, every: int) -> int:
  """Returns how often the loop does what is due every so many steps.

  It is due at multiples of `every` and at the last step.
  """
  return steps // every + (steps % every > 0)


def plan(
  step: aot_compile.Step, topology: topology_lib.Topology, step_seconds: float
) -> dict[str, Any]:
  """Plans everything of a run besides its steps.

  Args:
    step: The train step.
    topology: The chips.
    step_seconds: Planned seconds of a step.

  Returns:
    JSON values: seconds of one evaluation, preview and checkpoint (None for
    what does not fit into memory: previews are then left out of the run, as by
    the loop), how often each is done, their share of the run, and its days.
  """
  config = step.config
  evaluation = _seconds(topology, step, *_evaluation(step))
  preview = _seconds(topology, step, *_preview(step))
  state = step.abstract_state
  # The hosts write while the run continues, but it waits for the copies.
  copied = topology.chip.devices * sum(
    aot_compile.device_bytes(tree)
    for tree in (state.params, state.opt_state, state.extra)
  )
  evaluations = counts(config.steps, config.eval_every)
  checkpoints = counts(config.steps, config.checkpoint_every)
  parts = {
    "evaluation": (
      None if evaluation is None else config.eval_batches * evaluation,
      evaluations if config.eval_batches else 0,
    ),
    "preview": (preview, evaluations if config.eval_batches else 0),
    "checkpoint": (copied / topology.chip.host_bandwidth, checkpoints),
  }
  besides = sum((seconds or 0.0) * count for seconds, count in parts.values())
  total = besides + config.steps * step_seconds
  return {
    **{
      f"{name}_{key}": value
      for name, pair in parts.items()
      for key, value in zip(("seconds", "count"), pair, strict=True)
    },
    "share_besides_steps": besides / total,
    "days": total / _DAY,
  }


def _evaluation(step: aot_compile.Step) -> tuple[Any, tuple[Any, ...]]:
  """Returns the evaluation step and its abstract arguments."""
  state = step.abstract_state
  function = step_lib.make_eval_step(
    step.stage, step.mesh, state, step.config.data.batch_size
  )
  layout = step_lib.batch_shardings(
    step.stage, step.mesh, step.config.data.batch_size
  )
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout[name])
    for name, x in step.abstract_batch.items()
  }
  return function, (state.params, state.extra, batch, _key())


def _preview(step: aot_compile.Step) -> tuple[Any, tuple[Any, ...]]:
  """Returns the program of a preview and its abstract arguments."""
  mesh = mesh_lib.without_frames(step.mesh)
  state = step.abstract_state
  layout = jax.tree.map(
    lambda x: NamedSharding(mesh, x.sharding.spec), (state.params, state.extra)
  )
  params, extra = jax.tree.map(
    lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
    (state.params, state.extra),
    layout,
  )
  clip = {
    name: jax.ShapeDtypeStruct((1, *feature.shape), feature.dtype)
    for name, feature in step.stage.features.items()
  }
  function = previews.make_program(step.stage, mesh, layout)
  return function, (params, extra, clip, _key())


def _key() -> Any:
  return jax.eval_shape(lambda: jax.random.key(0))


def _seconds(
  topology: topology_lib.Topology,
  step: aot_compile.Step,
  function: Any,
  arguments: tuple[Any, ...],
) -> float | None:
  """Returns the seconds of a program; None if it does not fit."""
  try:
    compiled = function.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if aot_compile.out_of_memory(error, 0.0) is None:
      raise
    return None
  network = topology_lib.network(topology, step.mesh)
  return schedule.estimate(compiled.as_text(), network).total


def lines(found: Mapping[str, Any]) -> list[str]:
  """Formats the plan of what a run does besides its steps."""
  row = lambda name: (
    f"  {name:12}"
    + (
      "does not fit, left out"
      if found[f"{name}_seconds"] is None
      else f"{found[f'{name}_count']:6} x {found[f'{name}_seconds']:9.3f} s"
    )
  )
  return [
    f"besides steps {found['share_besides_steps']:.1%} of the run, which takes "
    f"{found['days']:.2f} days with it:",
    *(row(name) for name in ("evaluation", "preview", "checkpoint")),
  ]
