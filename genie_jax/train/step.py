"""The one train step, for every stage and every mesh."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from genie_jax.core import errors
from genie_jax.sharding import compiler_options, rules
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.weights import param_tree

Metrics = dict[str, jax.Array]

# Folded into a step's random key, one number for each use of it.
_LOSS, _AFTER_UPDATE = 0, 1


def batch_shardings(
  stage: stage_lib.Stage, mesh: Mesh, batch_size: int, accumulate: int = 1
) -> dict[str, NamedSharding]:
  """Returns the layout of each array of a batch.

  Args:
    stage: The stage, with the arrays and their logical axes.
    mesh: The device mesh.
    batch_size: Clips of the global batch, over all processes.
    accumulate: Number of microbatches.

  Raises:
    UserError: The batch is not divisible into microbatches and over devices.
  """
  ways = mesh_lib.batch_ways(mesh)
  if batch_size % (ways * accumulate):
    # On more chips than the config was written for, microbatches are often
    # not needed any more.
    remedy = (
      "set config.optimizer.accumulate=1, or use "
      if accumulate > 1 and batch_size % ways == 0
      else "use "
    )
    raise errors.UserError(
      f"config.data.batch_size is {batch_size}, which is not divisible into "
      f"optimizer.accumulate={accumulate} microbatches over {ways} devices "
      "of the mesh axes data x fsdp; "
      f"{remedy}a multiple of {ways * accumulate}."
    )
  layouts = {}
  for name, feature in stage.features.items():
    axes = ("act_batch", *feature.axes)
    rules.check_divides(
      (batch_size, *feature.shape), axes, mesh.shape, f"batch[{name!r}]"
    )
    layouts[name] = mesh_lib.sharding(mesh, axes)
  return layouts


def check_batch(
  stage: stage_lib.Stage, batch: Mapping[str, np.ndarray], rows: int
) -> None:
  """Checks that a process's batch has the arrays that the stage reads.

  A wrong shape would compile a second step, or fail deep inside a model.

  Args:
    stage: The stage.
    batch: Host arrays [rows, ...].
    rows: Number of clips that this process reads.

  Raises:
    UserError: An array is missing, or has the wrong shape or dtype.
  """
  for name, feature in stage.features.items():
    if name not in batch:
      raise errors.UserError(
        f"The {stage.name} stage reads {name!r}, but config.data.path "
        f"has only {', '.join(sorted(batch))}; use data that has it."
      )
    wanted = (rows, *feature.shape)
    found = batch[name]
    if found.shape != wanted or found.dtype != np.dtype(feature.dtype):
      raise errors.UserError(
        f"config.data.path has {name!r} as {found.dtype}"
        f"{list(found.shape)}, but the {stage.name} stage needs "
        f"{np.dtype(feature.dtype)}{list(wanted)}; change config.world and "
        "config.data, or the data."
      )


def make_train_step(
  stage: stage_lib.Stage,
  optimizer: optimizer_lib.Optimizer,
  mesh: Mesh,
  like: state_lib.TrainState,
  batch_size: int,
) -> Callable[..., tuple[state_lib.TrainState, Metrics]]:
  """Compiles `(state, batch) -> (state, metrics)` for one mesh.

  The state is donated, so the caller must use the returned state. All layouts
  are specified: otherwise the partitioner would choose layouts of gradients
  and new states that are not split over fsdp.

  Args:
    stage: The stage, with the loss, its scales and `after_update`.
    optimizer: From `optimizer.make`.
    mesh: The device mesh; the step sets it for the layouts inside the model.
    like: The abstract state, from `state.abstract`.
    batch_size: Clips of the global batch.

  Returns:
    A jitted function. Its metrics are scalars: "loss", "losses/<name>" before
    scaling, the stage's metrics, "grad_norm" before clipping, "learning_rate".
    With `optimizer.max_skipped`, a step whose loss or gradient is not finite
    changes only the number of steps.
  """
  layout = state_lib.shardings(like)
  batch_layout = batch_shardings(stage, mesh, batch_size, optimizer.accumulate)

  def step(state: state_lib.TrainState, batch: stage_lib.Batch):
    # The mesh is set here and not by the caller, because it is not always part
    # of jit's cache key.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return _step(stage, optimizer, state, batch, layout.params)

  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(layout, batch_layout),
    out_shardings=(layout, mesh_lib.replicated(mesh)),
    compiler_options=compiler_options.options(mesh),
  )


def make_norms(
  stage: stage_lib.Stage,
  optimizer: optimizer_lib.Optimizer,
  mesh: Mesh,
  like: state_lib.TrainState,
  batch_size: int,
) -> Callable[..., tuple[Metrics, Metrics]]:
  """Compiles `(state, batch) -> (parameter norms, gradient norms)`.

  Both are L2 norms by the parameter's path, of the step that
  `make_train_step` would take from this state; gradients before clipping.
  """
  layout = state_lib.shardings(like)

  def norms(tree):
    return {
      param_tree.path_name(path): jnp.linalg.norm(x.astype(jnp.float32).ravel())
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }

  def step(state: state_lib.TrainState, batch: stage_lib.Batch):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      rng = jax.random.fold_in(state.rng, state.step)
      _, grads = _gradients(
        stage,
        optimizer.accumulate,
        state,
        batch,
        jax.random.fold_in(rng, _LOSS),
        layout.params,
      )
      return norms(state.params), norms(grads)

  return jax.jit(
    step,
    in_shardings=(
      layout,
      batch_shardings(stage, mesh, batch_size, optimizer.accumulate),
    ),
    out_shardings=mesh_lib.replicated(mesh),
    compiler_options=compiler_options.options(mesh),
  )


def make_eval_step(
  stage: stage_lib.Stage,
  mesh: Mesh,
  like: state_lib.TrainState,
  batch_size: int,
) -> Callable[..., dict[str, stage_lib.Term]]:
  """Compiles `(params, extra, batch, rng) -> terms` for held-out clips."""
  layout = state_lib.shardings(like)
  whole = mesh_lib.replicated(mesh)

  def step(params, extra, batch, rng):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return stage.evaluate(params, extra, batch, rng)

  return jax.jit(
    step,
    out_shardings=whole,
    in_shardings=(
      layout.params,
      layout.extra,
      batch_shardings(stage, mesh, batch_size),
      whole,
    ),
    compiler_options=compiler_options.options(mesh),
  )


def make_score_step(
  stage: stage_lib.Stage,
  mesh: Mesh,
  like: state_lib.TrainState,
  batch_size: int,
  seed: int,
) -> Callable[..., dict[str, stage_lib.Term]]:
  """Compiles the held-out loss of one batch of a numbered list of clips.

  Clip number n of the list gets the key `fold_in(key(seed), n)`, so the result
  for a clip depends neither on the batch nor on the run.

  Args:
    stage: The stage, with `score`.
    mesh: The device mesh.
    like: The abstract state.
    batch_size: Clips of the global batch.
    seed: Seed of the keys.

  Returns:
    `(params, extra, batch, first, count) -> terms`: the sums over the clips
    numbered from `first` (int32, the number of the batch's first clip) and
    below `count`.

  Raises:
    ValueError: The stage has no `score`.
  """
  if stage.score is None:
    raise ValueError(f"The {stage.name} stage has no score.")
  score = stage.score
  layout = state_lib.shardings(like)
  whole = mesh_lib.replicated(mesh)

  def step(params, extra, batch, first, count):
    numbers = first + jnp.arange(batch_size, dtype=jnp.int32)
    base = jax.random.key(seed)
    rngs = jax.vmap(lambda n: jax.random.fold_in(base, n))(numbers)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      terms = score(params, extra, batch, rngs)
    total = lambda x: jnp.where(numbers < count, x, 0.0).sum()
    return {
      name: stage_lib.Term(total(term.total), total(term.count))
      for name, term in terms.items()
    }

  return jax.jit(
    step,
    out_shardings=whole,
    in_shardings=(
      layout.params,
      layout.extra,
      batch_shardings(stage, mesh, batch_size),
      whole,
      whole,
    ),
    compiler_options=compiler_options.options(mesh),
  )


def _step(stage, optimizer, state, batch, layout):
  rng = jax.random.fold_in(state.rng, state.step)
  outcome, grads = _gradients(
    stage,
    optimizer.accumulate,
    state,
    batch,
    jax.random.fold_in(rng, _LOSS),
    layout,
  )
  scales = _scales(stage, outcome.losses, state.step)
  metrics = {
    "loss": sum(
      scales[name] * term.mean() for name, term in outcome.losses.items()
    ),
    "grad_norm": optax.tree.norm(grads),
    "learning_rate": optimizer.learning_rate(state.step),
  }
  metrics |= {f"losses/{n}": term.mean() for n, term in outcome.losses.items()}
  metrics |= {name: term.mean() for name, term in outcome.metrics.items()}

  def update(old):
    updates, opt_state = optimizer.transformation.update(
      grads, old["opt_state"], old["params"]
    )
    params, extra = stage.after_update(
      optax.apply_updates(old["params"], updates),
      outcome.extra,
      outcome.aux,
      jax.random.fold_in(rng, _AFTER_UPDATE),
    )
    return {"params": params, "extra": extra, "opt_state": opt_state}

  after = {
    name: getattr(state, name) for name in ("params", "extra", "opt_state")
  }
  if optimizer.max_skipped:
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    # A selection by `where` would copy the whole state: parameters need the new
    # moments, which would be written over the old ones that it still needs.
    after = jax.lax.cond(finite, update, lambda old: old, after)
  else:
    after = update(after)
  return state_lib.TrainState(
    step=state.step + 1, rng=state.rng, **after
  ), metrics


def _scales(stage, losses, step) -> dict[str, Any]:
  """Returns the scale of each loss at `step`; names must match exactly."""
  for name in losses:
    if name not in stage.loss_scales:
      raise errors.UserError(
        f"The {stage.name} stage computes a loss {name!r} that has no scale"
        f"{errors.closest(name, stage.loss_scales)}; loss_scales has "
        f"{', '.join(sorted(stage.loss_scales))}."
      )
  for name in stage.loss_scales:
    if name not in losses:
      raise errors.UserError(
        f"The {stage.name} stage has a scale for a loss {name!r} that it "
        f"does not compute{errors.closest(name, losses)}; it computes "
        f"{', '.join(sorted(losses))}."
      )
  return {
    name: scale(step) if callable(scale) else scale
    for name, scale in stage.loss_scales.items()
  }


def _gradients(stage, accumulate, state, batch, rng, layout):
  """Returns the outcome of a whole batch and the gradient of its loss.

  The loss is a sum of scale * total / count, with totals and counts over the
  whole batch. The gradient of a microbatch's total must be divided by this
  count, to which later microbatches contribute. Therefore a first pass sums
  the counts. They depend only on the batch and the key, so the compiler
  removes the model from that pass, and one gradient tree is enough for any
  number of losses.

  `extra` is updated by one microbatch after the other, or averaged over them
  if `Stage.mean_extra`; `aux` is that of the last microbatch.
  """

  def objective(params, extra, clips, key, counts):
    outcome = stage.loss(params, extra, clips, key, state.step)
    scales = _scales(stage, outcome.losses, state.step)
    value = 0.0
    for name, term in outcome.losses.items():
      count = term.count if counts is None else counts[name]
      value += (
        scales[name]
        * term.total
        / jnp.maximum(jax.lax.stop_gradient(count), 1e-9)
      )
    return value, outcome

  gradient = jax.grad(objective, has_aux=True)
  if accumulate == 1:
    grads, outcome = gradient(
      state.params, state.extra, batch, jax.random.fold_in(rng, 0), None
    )
    return outcome, grads

  micro = {
    name: _split(x, accumulate, stage.features[name].axes)
    for name, x in batch.items()
  }
  keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(accumulate))

  def look(clips, key):
    return stage.loss(state.params, state.extra, clips, key, state.step)

  def count(clips, key):
    return {name: term.count for name, term in look(clips, key).losses.items()}

  counts = jax.lax.map(lambda inputs: count(*inputs), (micro, keys))
  counts = jax.tree.map(lambda x: x.sum(0), counts)

  def body(carry, inputs):
    total, extra, _ = carry
    before = state.extra if stage.mean_extra else extra
    grads, outcome = gradient(state.params, before, *inputs, counts)
    total = lay(jax.tree.map(jnp.add, total, grads))
    after = outcome.extra
    if stage.mean_extra:
      after = jax.tree.map(jnp.add, extra, after)
    return (total, after, outcome.aux), (
      outcome.losses,
      outcome.metrics,
    )

  # Constrains the running sum, so that each device sums only its own share.
  lay = lambda grads: jax.lax.with_sharding_constraint(grads, layout)
  zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
  aux = jax.eval_shape(look, *jax.tree.map(lambda x: x[0], (micro, keys))).aux
  extra = zeros(state.extra) if stage.mean_extra else state.extra
  (grads, extra, aux), terms = jax.lax.scan(
    body, (lay(zeros(state.params)), extra, zeros(aux)), (micro, keys)
  )
  if stage.mean_extra:
    extra = jax.tree.map(lambda x: (x / accumulate).astype(x.dtype), extra)
  losses, metrics = jax.tree.map(lambda x: x.sum(0), terms)
  return stage_lib.Outcome(losses, metrics, extra, aux), grads


def _split(
  x: jax.Array, accumulate: int, axes: tuple[str | None, ...]
) -> jax.Array:
  """Splits [B, ...] into [accumulate, B / accumulate, ...].

  Microbatch m has rows m, m + accumulate, and so on: contiguous rows would all
  be on a few devices and would have to be moved.
  """
  x = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:])
  x = x.swapaxes(0, 1)
  return rules.constrain(x, (None, "act_batch", *axes))
