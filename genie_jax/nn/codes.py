"""The base class of all quantizers.

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
  """The result of quantising a batch of vectors.

  Attributes:
    vectors: float32 [..., E], the vectors of the chosen codes; their gradient
      is passed to the input (straight-through, arXiv:1711.00937).
    codes: int32 [...], the chosen codes.
    inputs: float32 [..., E], the input vectors as compared with the codes,
      that is after the quantizer's normalisation.
    losses: Name -> float32 [...], for each name in `Quantizer.LOSSES`.
  """

  vectors: jax.Array
  codes: jax.Array
  inputs: jax.Array
  losses: dict[str, jax.Array]


class Quantizer(nn.Module):
  """Turns vectors into codes, and codes into vectors.

  A subclass has the attributes `num_codes` and `code_dim`, as fields or as
  properties, and defines `build`, `__call__` and `lookup`. The methods for
  training have defaults: they keep a running average of how often each code
  is used, which is only reported. Models name their quantizer `codes`, so the
  paths of its parameters are `codes/<name>`.

  Attributes:
    FIELDS: Names of the fields of `config.quantizer` that the quantizer
      takes, in addition to `name`. Their values are JSON values, with tuples
      in place of lists.
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
    """Checks the given fields, and fills in those that are missing.

    Args:
      num_codes: V.
      fields: The given fields of `config.quantizer`; each name is in FIELDS.
      where: Name of the group for messages, for example "config.quantizer".

    Returns:
      All fields, as saved models record them.

    Raises:
      UserError: A value has the wrong type, or is out of range.
    """
    del num_codes, where
    return dict(fields)

  # build(cls, num_codes, fields) -> Quantizer, __call__(self, x) -> Quantized
  # and lookup(self, codes) -> vectors have no default; the docstring of the
  # module `quantizers` describes them.

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
    """Raises UserError if a field of `config.codebook` is invalid."""
    check_decay(config, "share_decay")

  @nn.nowrap
  def fresh(self) -> Any:
    """Returns the training state before the first batch."""
    return Usage.fresh(self.num_codes)

  @nn.nowrap
  def warm(self, params: Any) -> Any:
    """Returns the training state for trained parameters without one.

    Saved models have parameters only. By default training begins as with new
    parameters.

    Args:
      params: The quantizer's parameters; an empty dict if it has none.
    """
    del params
    return self.fresh()

  @nn.nowrap
  def update(
    self, state: Any, quantized: Quantized, rng: jax.Array, config: Any
  ) -> tuple[Any, Any]:
    """Returns the state after a batch, and arrays for `after_update`.

    Args:
      state: The state before the batch.
      quantized: The batch's quantisation.
      rng: Key.
      config: `config.codebook`, with `microbatches`: a batch may come in so
        many parts, each of which updates the state from before the batch; the
        new states are averaged.
    """
    del rng
    return state.update(quantized.codes, config.share_decay), ()

  @classmethod
  def losses_without_gradient(cls, config: Any) -> frozenset[str]:
    """Returns the names of losses that are only reported.

    Args:
      config: `config.codebook`.
    """
    del config
    return frozenset()

  @nn.nowrap
  def after_update(
    self, params: Any, state: Any, aux: Any, config: Any
  ) -> tuple[Any, Any]:
    """Adjusts parameters and state after each optimizer update.

    Args:
      params: The quantizer's parameters; an empty dict if it has none.
      state: From `update`.
      aux: The arrays from `update`, of the last microbatch.
      config: `config.codebook`.
    """
    del aux, config
    return params, state

  @nn.nowrap
  def metrics(self, state: Any) -> dict[str, jax.Array]:
    """Returns the metrics to report, each averaged over its entries."""
    return use_metrics(state.share)


@flax.struct.dataclass
class Usage:
  """Running average of each code's use; checkpointed, but not optimized.

  Attributes:
    share: float32 [V], a moving average of each code's share of the vectors.
    age: float32 scalar, number of batches seen.
  """

  share: jax.Array
  age: jax.Array

  @classmethod
  def fresh(cls, num_codes: int) -> "Usage":
    """Returns the state in which no code has been chosen yet."""
    return cls(jnp.zeros((num_codes,), jnp.float32), jnp.zeros((), jnp.float32))

  def update(self, codes: jax.Array, decay: float) -> "Usage":
    """Updates the average with the codes of one batch, int32 [...]."""
    rate = young_decay(self.age, decay)
    share = counts(codes, self.share.shape[0]) / codes.size
    return Usage(rate * self.share + (1 - rate) * share, self.age + 1)


def counts(codes: jax.Array, num_codes: int) -> jax.Array:
  """Returns how often each code was chosen, float32 [V]."""
  return jnp.zeros((num_codes,), jnp.float32).at[codes.reshape(-1)].add(1.0)


def young_decay(age: jax.Array, decay: float) -> jax.Array:
  """Returns a moving average's decay, which grows with the batches seen.

  The first averages are over few batches, so that they start near the data.

  Args:
    age: float32 scalar, number of batches seen.
    decay: The final value, reached after some hundred batches.
  """
  return jnp.minimum(decay, (1 + age) / (10 + age))


def perplexity(share: jax.Array) -> jax.Array:
  """Returns exp(entropy) of shares [V]: V if all codes are used equally."""
  share = share / jnp.maximum(share.sum(), 1e-12)
  return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def use_metrics(share: jax.Array) -> dict[str, jax.Array]:
  """Returns which codes are in use, bool [V], and their perplexity."""
  # A code counts as used if its share is above a tenth of an even share.
  used = share > 0.1 / share.size
  return {"code_usage": used, "code_perplexity": perplexity(share)}


def check_decay(config: Any, name: str) -> None:
  """Raises UserError unless a field of `config.codebook` is in [0, 1)."""
  if not 0 <= config[name] < 1:
    raise errors.UserError(
      f"config.codebook.{name}={config[name]} must be at least 0 and "
      "less than 1."
    )
