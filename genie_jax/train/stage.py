"""A stage: all that one train step, one loop and one checkpoint path need.

A stage is a value, not a script: a new trainable part of a world is one file
that returns a `Stage`, and a name for it in `stages.registry`.
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
    dtype: Its dtype as the loader delivers it.
    axes: Logical axis names, one for each dimension of `shape`; None where a
      dimension is never split.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str | None, ...]


@flax.struct.dataclass
class Term:
  """A mean kept as its numerator and its count.

  Gradient accumulation and hosts add numerators and counts; a mean of means
  would weigh microbatches with few hidden tokens as much as full ones.

  Attributes:
    total: float32 scalar, the sum over what is counted.
    count: float32 scalar, how many were counted; carries no gradient.
  """

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Term":
    """Sums `values` over all axes, each counted by `weights` (default 1)."""
    values = values.astype(jnp.float32)
    if weights is None:
      return cls(values.sum(), jnp.float32(values.size))
    weights = jnp.broadcast_to(weights, values.shape).astype(jnp.float32)
    return cls((values * weights).sum(), jax.lax.stop_gradient(weights.sum()))

  def mean(self) -> jax.Array:
    """Returns total / count, or 0 where nothing was counted."""
    return self.total / jnp.maximum(self.count, 1e-9)


@flax.struct.dataclass
class Outcome:
  """What a stage's loss says of one batch.

  Attributes:
    losses: Named terms; their scaled means add up to the training loss.
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
    name: Name of the stage, for messages; a warm start looks for its weights
      under this name in the checkpoint of a stage that trains several models.
    features: The arrays of a batch that the stage reads.
    loss_scales: Weight of each named loss; its keys must equal those of
      `Outcome.losses`. A value may be a schedule from the step to a weight.
    init: `rng -> (params, extra)`; leaves of `params` are boxed with logical
      axis names, `extra` holds plain arrays (an empty dict when unused).
    loss: `(params, extra, batch, rng, step) -> Outcome`.
    evaluate: `(params, extra, batch, rng) -> dict of Terms` on held-out
      clips; its keys need not equal the training metrics.
    preview: `(params, extra, batch, rng) -> arrays`, what pictures of each
      clip are made from; part of a compiled function, as `loss` is. Every
      array has the clips as its first axis.
    show: `arrays -> dict of pictures` on the host, given the arrays of one
      clip as numpy has them, without the clip axis. A picture is a dict of
      rows, name -> uint8 frames [T, H, W, 3], shown as a strip.
    flops_per_clip: Model FLOPs of one clip's forward and backward pass,
      without recomputation.
    open_source: `split -> source`, the stage's data, checked against the
      config. A source gives elements that have at least the arrays of
      `features`; see `sources.Source`. `config.data` says which splits are
      read, in which batches and by how many threads.
    after_update: `(params, extra, aux, rng) -> (params, extra)`, run after
      the optimizer inside the same compiled step.
    no_decay: Last path names of parameters that weight decay leaves alone.
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
  after_update: Callable[[Tree, Tree, Tree, jax.Array], tuple[Tree, Tree]] = (
    lambda params, extra, aux, rng: (params, extra)
  )
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
