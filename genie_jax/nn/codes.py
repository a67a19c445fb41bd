"""What a quantizer is: the class that every quantizer derives from.

Shapes:
  V  codes                      E  width of a code's vector
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.core import errors


@flax.struct.dataclass
class Quantized:
  """What quantising a batch of vectors gives.

  Attributes:
    vectors: float32 [..., E], the vectors of the chosen codes; their gradient
      goes to the input (straight-through, arXiv:1711.00937).
    codes: int32 [...], which code was chosen.
    inputs: float32 [..., E], what was compared with the codes, after the
      quantizer's normalisation.
    losses: Name -> float32 [...], for each name in `Quantizer.LOSSES`.
  """

  vectors: jax.Array
  codes: jax.Array
  inputs: jax.Array
  losses: dict[str, jax.Array]


class Quantizer(nn.Module):
  """Turns vectors into codes, and codes into vectors.

  A subclass has the attributes `num_codes` and `code_dim`, as fields or as
  properties, and defines `build`, `__call__` and `lookup`. What it trains
  with has defaults here: a running use of the codes, which is reported and
  changes nothing. Models keep their quantizer under the name `codes`, so its
  parameters are `codes/<name>`.

  Attributes:
    FIELDS: Names of the fields of `config.quantizer` that the quantizer
      takes, in addition to `name`. Their values are those of JSON, with
      tuples in place of lists.
    LOSSES: Names of its losses; each needs a scale in `config.loss`.
    BOUNDED: Whether all entries of all vectors are between -1 and 1.
  """

  FIELDS: ClassVar[tuple[str, ...]] = ()
  LOSSES: ClassVar[tuple[str, ...]] = ()
  BOUNDED: ClassVar[bool] = False

  # Building.

  @classmethod
  def complete(
    cls, num_codes: int, fields: Mapping[str, Any], where: str
  ) -> dict[str, Any]:
    """Checks fields, and decides those that were left open.

    Args:
      num_codes: V.
      fields: Those of `config.quantizer` that were given; each is in FIELDS.
      where: What they are called, for messages, "config.quantizer" for one.

    Returns:
      All fields, as saved models record them.

    Raises:
      UserError: A value is of another type, or out of range.
    """
    del num_codes, where
    return dict(fields)

  # build(cls, num_codes, fields) -> Quantizer, __call__(self, x) -> Quantized
  # and lookup(self, codes) -> vectors have no default; `quantizers` says what
  # they do.

  def vectors(self) -> jax.Array:
    """Returns the vector of every code, float32 [V, E]."""
    return self.lookup(jnp.arange(self.num_codes))

  @property
  def read_scale(self) -> float:
    """Initial scale of the layer that reads the vectors: 1 / their RMS."""
    return 1.0

  @nn.nowrap
  def flops(self, count: int) -> float:
    """Returns the FLOPs of choosing the codes of `count` vectors."""
    del count
    return 0.0

  # Training. `config` is the group config.codebook.

  @classmethod
  def check_training(cls, config: Any) -> None:
    """Raises UserError unless `config.codebook` makes sense."""
    check_decay(config, "share_decay")

  @nn.nowrap
  def fresh(self) -> Any:
    """Returns the state of training before the first batch."""
    return Usage.fresh(self.num_codes)

  @nn.nowrap
  def update(
    self, state: Any, quantized: Quantized, rng: jax.Array, config: Any
  ) -> tuple[Any, Any]:
    """Returns the state after a batch, and arrays for `after_update`.

    Args:
      state: The state before.
      quantized: The batch's quantisation.
      rng: Key.
      config: `config.codebook`.
    """
    del rng
    return state.update(quantized.codes, config.share_decay), ()

  @nn.nowrap
  def after_update(
    self, params: Any, state: Any, aux: Any, config: Any
  ) -> tuple[Any, Any]:
    """Returns parameters and state after the optimizer's update.

    Args:
      params: The quantizer's own; an empty dict if it has none.
      state: From `update`.
      aux: The arrays from `update`, of the last microbatch.
      config: `config.codebook`.
    """
    del aux, config
    return params, state

  @nn.nowrap
  def metrics(self, state: Any) -> dict[str, jax.Array]:
    """Returns what is reported; each array is averaged over its entries."""
    return use_metrics(state.share)


@flax.struct.dataclass
class Usage:
  """Running use of each code; checkpointed, but not optimized.

  Attributes:
    share: float32 [V], a moving average of each code's share of the vectors.
    age: float32 scalar, batches seen.
  """

  share: jax.Array
  age: jax.Array

  @classmethod
  def fresh(cls, num_codes: int) -> "Usage":
    """Returns the use of codes none of which has been chosen."""
    return cls(jnp.zeros((num_codes,), jnp.float32), jnp.zeros((), jnp.float32))

  def update(self, codes: jax.Array, decay: float) -> "Usage":
    """Mixes in the codes of one batch, int32 [...]."""
    rate = young_decay(self.age, decay)
    share = counts(codes, self.share.shape[0]) / codes.size
    return Usage(rate * self.share + (1 - rate) * share, self.age + 1)


def counts(codes: jax.Array, num_codes: int) -> jax.Array:
  """Returns how often each code was chosen, float32 [V]."""
  return jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def young_decay(age: jax.Array, decay: float) -> jax.Array:
  """Returns the decay of an average that is short at first, and long later.

  Args:
    age: float32 scalar, batches seen.
    decay: Of the average after some hundred batches.
  """
  return jnp.minimum(decay, (1 + age) / (10 + age))


def perplexity(share: jax.Array) -> jax.Array:
  """Returns exp(entropy) of shares [V]: V when all codes are used alike."""
  share = share / jnp.maximum(share.sum(), 1e-12)
  return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def use_metrics(share: jax.Array) -> dict[str, jax.Array]:
  """Returns which codes are in use, bool [V], and their perplexity."""
  # A code used a tenth as often as an even share counts as used.
  used = share > 0.1 / share.size
  return {"code_usage": used, "code_perplexity": perplexity(share)}


def check_decay(config: Any, name: str) -> None:
  """Raises UserError unless a field of `config.codebook` is in [0, 1)."""
  if not 0 <= config[name] < 1:
    raise errors.UserError(
      f"config.codebook.{name}={config[name]} must be at least 0 and "
      "less than 1."
    )
