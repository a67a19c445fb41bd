"""AdamW or Muon with a schedule, decay by parameter name, and clipping."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from genie_jax.core import errors
from genie_jax.train import clipping, transfer

NAMES = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd", "constant")
_MU_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Settings:
  """The fields of `config.optimizer`.

  Attributes:
    name: A name in NAMES. "muon" (Jordan et al., 2024) orthogonalises the
      momentum of the matrices in the layers and scales it to the magnitude of
      Adam's updates (arXiv:2502.16982); AdamW updates all other parameters.
    peak_lr: Learning rate after the warm-up.
    end_lr: Learning rate at the last step (cosine and wsd).
    warmup_steps: Steps of linear warm-up; the first rate is not zero.
    schedule: A name in SCHEDULES; wsd is warm-up, stable, linear decay.
    decay_steps: Length of the decay at the end of wsd.
    momentum: Decay of Muon's momentum.
    b1: Decay of Adam's first moment.
    b2: Decay of Adam's second moment.
    eps: Added to the root of the second moment.
    weight_decay: Multiplied by the learning rate, as in AdamW.
    clip_norm: Largest global norm of a gradient; 0 turns clipping off.
    clip_outliers: Standard deviations above the recent mean beyond which the
      global norm of a gradient is an outlier, see `clipping.clip_outliers`; 0
      turns it off. Outliers are reduced before `clip_norm` is applied.
    clip_update_rms: Largest root mean square of an array's update before weight
      decay and learning rate, see `clipping.clip_update_rms`; 0 turns it off.
    max_skipped: Updates in a row that are skipped because the loss or a
      gradient is not finite; one more ends the run. 0 ends it at the first.
    no_decay: Last path names of parameters without weight decay, in addition
      to those of the stage; for example ("token_embedding",).
    accumulate: Microbatches per step, each of batch_size / accumulate clips.
    mu_dtype: Dtype of the first moment; bfloat16 halves its memory.
    transfer: A name in `transfer.NAMES`: how the learning rate of a small
      model is used for this one. "none" is the paper's single rate.
    base_width: Width of the small model; only read for a transfer.
    base_layers: Number of its layers; only read for "completep".
  """

  name: str = "adamw"
  peak_lr: float = 3e-4
  end_lr: float = 0.0
  warmup_steps: int = 0
  schedule: str = "cosine"
  decay_steps: int = 0
  momentum: float = 0.95
  b1: float = 0.9
  b2: float = 0.9
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 0.0
  clip_outliers: float = 0.0
  clip_update_rms: float = 0.0
  max_skipped: int = 0
  no_decay: Sequence[str] = ()
  accumulate: int = 1
  mu_dtype: str = "float32"
  transfer: str = "none"
  base_width: int = 0
  base_layers: int = 0


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """An Optax transformation, its learning rate and number of microbatches.

  Attributes:
    transformation: The Optax gradient transformation.
    learning_rate: Function from the step (from 0) to its learning rate.
    accumulate: Microbatches per step.
    max_skipped: See `Settings`.
  """

  transformation: optax.GradientTransformation
  learning_rate: Callable[[jax.Array], jax.Array]
  accumulate: int
  max_skipped: int = 0


def settings(config: Mapping[str, Any], steps: int) -> Settings:
  """Reads and checks `config.optimizer`.

  Raises:
    UserError: A field is unknown, or a value is out of range.
  """
  errors.check_fields("config.optimizer", config, Settings.__dataclass_fields__)
  found = Settings(**config)

  def need(ok: bool, name: str, wanted: str):
    if not ok:
      value = dataclasses.asdict(found)[name]
      raise errors.UserError(
        f"config.optimizer.{name} is {value!r}; it must be {wanted}."
      )

  need(found.name in NAMES, "name", f"one of {NAMES}")
  need(found.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}")
  need(found.mu_dtype in _MU_DTYPES, "mu_dtype", f"one of {_MU_DTYPES}")
  need(found.accumulate >= 1, "accumulate", "at least 1")
  for name in ("clip_norm", "clip_outliers", "clip_update_rms"):
    need(getattr(found, name) >= 0, name, "0 (off) or positive")
  need(found.max_skipped >= 0, "max_skipped", "0 or more")
  need(found.warmup_steps >= 0, "warmup_steps", "0 or more")
  need(found.transfer in transfer.NAMES, "transfer", f"one of {transfer.NAMES}")
  if found.transfer != "none":
    need(found.base_width >= 1, "base_width", "at least 1 for a transfer")
    need(
      found.transfer == "mup" or found.base_layers >= 1,
      "base_layers",
      "at least 1 for completep",
    )
    # Muon's updates have another norm, so they need other factors.
    need(found.name == "adamw", "name", "'adamw' for a transfer")
  if found.schedule == "wsd":
    need(
      0 < found.decay_steps <= steps,
      "decay_steps",
      f"between 1 and config.steps ({steps}) for the wsd schedule",
    )
  return found


def schedule(found: Settings, steps: int) -> Callable[[jax.Array], jax.Array]:
  """Returns the learning rate as a function of the step, counted from 0."""
  peak, end, warmup = found.peak_lr, found.end_lr, found.warmup_steps

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    if found.schedule == "cosine":
      share = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
      value = end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))
    elif found.schedule == "wsd":
      start = steps - found.decay_steps
      share = jnp.clip((step - start) / found.decay_steps, 0, 1)
      value = peak + (end - peak) * share
    else:
      value = jnp.float32(peak)
    # The first rate is 1 / warmup of the peak: at 0 the step would be wasted.
    return jnp.minimum(value, peak * (step + 1) / max(warmup, 1))

  return learning_rate


def decay_mask(params: Any, no_decay: Collection[str]) -> Any:
  """Returns True for each parameter that has weight decay.

  Parameters are selected by name, not by rank, because scanned layers stack
  norm scales to matrices.

  Args:
    params: Nested dict of parameters.
    no_decay: Parameters whose last path name is in it have no decay.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key not in no_decay, params
  )


def matrix_dimensions(params: Any) -> Any:
  """Returns the matrix dimensions of each kernel in the layers, for Muon.

  Each scanned layer is a separate matrix, and so are query, key and value in
  their common kernel. Kernels are selected by name, not by rank, as in
  `decay_mask`.

  Args:
    params: Nested dict of parameters.

  Returns:
    The same tree of `optax.contrib.MuonDimensionNumbers`, None for parameters
    that are not such kernels.
  """
  dimensions = {
    "qkv": ((1,), (3, 4)),  # [layers, embed, 3, heads, head_dim]
    "out": ((1, 2), (3,)),  # [layers, heads, head_dim, embed]
    "mlp_in": ((1,), (2,)),
    "mlp_out": ((1,), (2,)),
  }

  def leaf(path, _):
    names = [key.key for key in path]
    if "layers" not in names or names[-1] != "kernel":
      return None
    if names[-2] not in dimensions:
      return None  # A layer of another package.
    return optax.contrib.MuonDimensionNumbers(*dimensions[names[-2]])

  return jax.tree_util.tree_map_with_path(leaf, params)


def _direction(found: Settings) -> optax.GradientTransformation:
  """Returns the transformation before weight decay and learning rate."""
  if found.name == "adamw":
    return optax.scale_by_adam(
      found.b1, found.b2, found.eps, mu_dtype=jnp.dtype(found.mu_dtype)
    )
  # Optax multiplies by minus the learning rate, so a rate of -1 leaves the
  # direction as it is; `make` adds weight decay and schedule.
  return optax.contrib.muon(
    learning_rate=-1.0,
    beta=found.momentum,
    eps=found.eps,
    mu_dtype=jnp.dtype(found.mu_dtype),
    adam_b1=found.b1,
    adam_b2=found.b2,
    muon_weight_dimension_numbers=matrix_dimensions,
    consistent_rms=0.2,
  )


def make(
  config: Mapping[str, Any], steps: int, no_decay: Collection[str]
) -> Optimizer:
  """Builds the optimizer that `config.optimizer` describes.

  Args:
    config: Fields of `Settings`.
    steps: `config.steps`, where the schedule ends.
    no_decay: Last path names of parameters without weight decay.

  Raises:
    UserError: A field is invalid, see `settings`.
  """
  found = settings(config, steps)
  learning_rate = schedule(found, steps)
  rate: Any = learning_rate  # Optax annotates the step as a number.
  parts = []
  if found.clip_outliers:
    parts.append(clipping.clip_outliers(found.clip_outliers))
  if found.clip_norm:
    parts.append(optax.clip_by_global_norm(found.clip_norm))
  scale_by = lambda field: transfer.scale_by(
    field, found.transfer, found.base_width, found.base_layers
  )
  # Without a transfer the chain, and so the state, is that of older versions.
  if found.transfer != "none":
    parts.append(scale_by("gradient"))
  parts.append(_direction(found))
  # Before the transfer's factor: the limit is that of Adam's own update.
  if found.clip_update_rms:
    parts.append(clipping.clip_update_rms(found.clip_update_rms))
  if found.transfer != "none":
    parts.append(scale_by("update"))
  spared = frozenset(no_decay) | frozenset(found.no_decay)
  parts += [
    optax.add_decayed_weights(
      found.weight_decay, mask=lambda params: decay_mask(params, spared)
    ),
    optax.scale_by_learning_rate(rate),
  ]
  return Optimizer(
    optax.chain(*parts), learning_rate, found.accumulate, found.max_skipped
  )
