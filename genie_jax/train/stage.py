"""The definition of a stage, for the common train step, loop and checkpoints.

A stage is a value, not a script: to add a trainable part of a world, write a
file that returns a `Stage`, and register a name for it in `stages.registry`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.data import sources

Batch = dict[str, jax.Array]
Tree = Any


@dataclasses.dataclass(frozen=True)
class Feature:
  """One array of a batch, without its leading clip axis.

  Attributes:
    shape: Shape of one clip's array.
    dtype: Dtype of the array from the loader.
    axes: Logical axis names, one for each dimension of `shape`; None for a
      dimension that is never split.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str | None, ...]


@flax.struct.dataclass
class Term:
  """A mean, stored as its sum and its count.

  Sums and counts are added over microbatches and hosts; a mean of means would
  give microbatches with few hidden tokens the same weight as others.

  Attributes:
    total: float32 scalar, the sum of the values.
    count: float32 scalar, the number of values; has no gradient.
  """

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Term":
    """Returns the term of `values`, weighted by `weights` (default 1)."""
    values = values.astype(jnp.float32)
    if weights is None:
      return cls(values.sum(), jnp.float32(values.size))
    weights = jnp.broadcast_to(weights, values.shape).astype(jnp.float32)
    return cls((values * weights).sum(), jax.lax.stop_gradient(weights.sum()))

  def mean(self) -> jax.Array:
    """Returns total / count, or 0 if the count is 0."""
    return self.total / jnp.maximum(self.count, 1e-9)


@flax.struct.dataclass
class Outcome:
  """The result of a stage's loss for one batch.

  Attributes:
    losses: Named terms; the sum of their scaled means is the training loss.
    metrics: Named terms that are only reported.
    extra: The stage's own state after this batch (codebook statistics).
    aux: Arrays for `Stage.after_update`, for example encoder outputs that may
      replace dead codes; never reported.
  """

  losses: dict[str, Term]
  metrics: dict[str, Term]
  extra: Tree
  aux: Tree


def _no_source(split: str) -> sources.Source:
  raise errors.UserError(
    f"The stage has no data to read the split {split!r} from; give its Stage "
    "an open_source, for example genie_jax.stages.data.clips(config)."
  )


@dataclasses.dataclass(frozen=True)
class Stage:
  """A trainable part of a world.

  Attributes:
    name: Name of the stage, for messages. A warm start from a checkpoint with
      several models uses the weights of the model with this name.
    features: The arrays of a batch that the stage reads.
    loss_scales: Weight of each named loss; its keys must equal those of
      `Outcome.losses`. A value may be a schedule from the step to a weight.
    init: `rng -> (params, extra)`; leaves of `params` are boxed with logical
      axis names, `extra` has plain arrays (an empty dict if unused).
    loss: `(params, extra, batch, rng, step) -> Outcome`.
    evaluate: `(params, extra, batch, rng) -> dict of Terms` on held-out
      clips; its keys need not equal the training metrics.
    score: `(params, extra, batch, rngs) -> dict of Terms`, the held-out loss
      by which runs are compared. It gets one key per clip, and its Terms have
      one total and one count per clip, [B], so that the result does not depend
      on how clips are batched. None if the stage has no such loss.
    preview: `(params, extra, batch, rng) -> arrays`, the arrays from which
      `show` makes images. Like `loss`, it is called in a compiled function.
      The first axis of every array is the clip.
    show: `arrays -> dict of images` on the host, given the numpy arrays of one
      clip, without the clip axis. An image is a dict of rows, name -> uint8
      frames [T, H, W, 3], shown as a strip.
    flops_per_clip: Model FLOPs of one clip's forward and backward pass,
      without recomputation.
    open_source: `split -> source`, opens the stage's data and checks it
      against the config. The elements of a source have at least the arrays of
      `features`; see `sources.Source`. `config.data` sets the splits, the
      batch size and the number of threads.
    after_update: `(params, extra, aux, rng) -> (params, extra)`, called after
      the optimizer's update in the same compiled step.
    warm: `(params, extra) -> extra`, called after a warm start from a model
      that has all parameters of this stage and nothing of its `extra`, for
      example a saved model.
    no_decay: Last path names of parameters without weight decay.
    mean_extra: Whether `extra` holds moving averages, which decay once in an
      optimizer step. Each microbatch of a step then gets the `extra` from
      before the step, and the results are averaged; a sum over the batch has to
      be multiplied by the number of microbatches. Otherwise each microbatch
      gets the `extra` of the one before, so that the averages of a run would
      depend on `optimizer.accumulate`, which may change when it resumes.
  """

  name: str
  features: Mapping[str, Feature]
  loss_scales: Mapping[str, float | Callable[[jax.Array], jax.Array]]
  init: Callable[[jax.Array], tuple[Tree, Tree]]
  loss: Callable[[Tree, Tree, Batch, jax.Array, jax.Array], Outcome]
  evaluate: Callable[[Tree, Tree, Batch, jax.Array], dict[str, Term]]
  preview: Callable[[Tree, Tree, Batch, jax.Array], Tree]
  show: Callable[[Tree], dict[str, dict[str, Any]]]
  flops_per_clip: float
  open_source: Callable[[str], sources.Source] = _no_source
  score: Callable[[Tree, Tree, Batch, jax.Array], dict[str, Term]] | None = None
  after_update: Callable[[Tree, Tree, Tree, jax.Array], tuple[Tree, Tree]] = (
    lambda params, extra, aux, rng: (params, extra)
  )
  warm: Callable[[Tree, Tree], Tree] = lambda params, extra: extra
  no_decay: frozenset[str] = frozenset(
    {
      "scale",
      "bias",
      "position",
      "row_position",
      "column_position",
      "codebook",
      "hidden_token",
      "action_token",
    }
  )
  mean_extra: bool = False
