"""Vector quantisation with straight-through gradients and code restarts.

Shapes:
  M  vectors in a batch         V  codes
  E  width of a code            R  candidates kept for dead codes
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.nn import codes as codes_lib
from genie_jax.nn import flops, initializers

# How a codebook learns: by gradient descent on its loss (the VQ-VAE that the
# paper uses), or as the moving average of the inputs that chose each code.
_UPDATES = ("gradient", "average")
# Batches after which averages have their final decay, see `codes.young_decay`.
_OLD = 10_000.0


class Codebook(codes_lib.Quantizer):
  """A table of vectors, looked up by nearest neighbour.

  With `unit_norm`, inputs and codes are on the unit sphere, so codes stay in
  use even if the inputs grow in magnitude (arXiv:2110.04627).

  Its losses are squared distances of an input to its code: "codebook" has a
  gradient for the code, "commitment" for the input (arXiv:1711.00937,
  equation 3).

  Attributes:
    num_codes: V.
    code_dim: E.
    unit_norm: Whether inputs and codes are scaled to length 1.
  """

  LOSSES: ClassVar[tuple[str, ...]] = ("codebook", "commitment")

  num_codes: int
  code_dim: int
  unit_norm: bool = True

  @classmethod
  def build(cls, num_codes: int, fields: Mapping[str, Any]) -> "Codebook":
    """Returns the codebook that `config.model` describes."""
    return cls(num_codes, fields["code_dim"], fields["unit_norm"])

  def setup(self):
    self.codebook = self.param(
      "codebook",
      initializers.labelled(
        nn.initializers.normal(self.code_dim**-0.5), ("table", None)
      ),
      (self.num_codes, self.code_dim),
      jnp.float32,
    )

  def __call__(self, x: jax.Array) -> codes_lib.Quantized:
    """Quantises x: [..., E], any float dtype; arithmetic is float32."""
    chex.assert_axis_dimension(x, -1, self.code_dim)
    x = self._normalise(x.astype(jnp.float32))
    table = self._normalise(self.codebook)
    # The nearest code in Euclidean distance; |x|^2 is the same for all.
    affinity = x @ table.T - 0.5 * jnp.sum(table * table, axis=-1)
    codes = jax.lax.stop_gradient(affinity).argmax(-1).astype(jnp.int32)
    chosen = jnp.take(table, codes, axis=0)
    squared = lambda a, b: jnp.sum(jnp.square(a - b), axis=-1)
    return codes_lib.Quantized(
      vectors=x + jax.lax.stop_gradient(chosen - x),
      codes=codes,
      inputs=x,
      losses={
        "codebook": squared(chosen, jax.lax.stop_gradient(x)),
        "commitment": squared(x, jax.lax.stop_gradient(chosen)),
      },
    )

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Returns the vectors [..., E] of codes: int32 [...]."""
    return jnp.take(self._normalise(self.codebook), codes, axis=0)

  def vectors(self) -> jax.Array:
    """Returns the table as it is stored, float32 [V, E]."""
    return self.codebook

  @property
  def read_scale(self) -> float:
    """Initial scale of the layer that reads the vectors: 1 / their RMS."""
    return self.code_dim**0.5 if self.unit_norm else 1.0

  @nn.nowrap
  def flops(self, count: int) -> float:
    """Returns the FLOPs of comparing `count` vectors with the table."""
    return flops.linear(self.code_dim, self.num_codes, count)

  @classmethod
  def check_training(cls, config: Any) -> None:
    """Raises UserError if a field of `config.codebook` is invalid."""
    if config.learn_by not in _UPDATES:
      raise errors.UserError(
        f"config.codebook.learn_by={config.learn_by!r} is unknown"
        f"{errors.closest(str(config.learn_by), _UPDATES)}; use one of "
        f"{', '.join(_UPDATES)}."
      )
    if config.learn_by == "gradient" and not config.get("loss_gradient", True):
      raise errors.UserError(
        'config.codebook.loss_gradient=False needs learn_by="average"; with '
        '"gradient" the codes would never learn.'
      )
    for name in ("share_decay", "centre_decay"):
      codes_lib.check_decay(config, name)

  @classmethod
  def losses_without_gradient(cls, config: Any) -> frozenset[str]:
    """Returns the codebook's loss if averages move the codes anyway.

    Its gradient moves no code then, but it counts in the global norm by which
    `optimizer.clip_norm` scales down all other gradients. Configs without the
    field `loss_gradient` were trained with it.

    Args:
      config: `config.codebook`.
    """
    return frozenset(() if config.get("loss_gradient", True) else ["codebook"])

  @nn.nowrap
  def fresh(self) -> "CodeStatistics":
    """Returns statistics in which no code has been used."""
    return CodeStatistics.fresh(self.num_codes, self.code_dim)

  @nn.nowrap
  def warm(self, params: Any) -> "CodeStatistics":
    """Returns statistics in which all codes of a table are equally used."""
    return CodeStatistics.warm(params["codebook"])

  @nn.nowrap
  def update(
    self,
    state: "CodeStatistics",
    quantized: codes_lib.Quantized,
    rng: jax.Array,
    config: Any,
  ) -> tuple["CodeStatistics", jax.Array]:
    """Returns statistics after a batch, and inputs that may replace codes.

    Args:
      state: The statistics before the batch.
      quantized: The batch's quantisation.
      rng: Key for drawing the replacements.
      config: `config.codebook`; its `share_decay` is the decay of the shares,
        its `centre_decay` that of the centres. `microbatches`, 1 if absent, is
        the number of equal parts of the batch of which this is one; the mean
        over the parts is the update with the whole batch.
    """
    state = state.update(
      quantized,
      config.share_decay,
      config.centre_decay,
      config.get("microbatches", 1),
    )
    return state, candidates(quantized, rng, self.num_codes)

  @nn.nowrap
  def after_update(
    self,
    params: Any,
    state: "CodeStatistics",
    aux: jax.Array,
    config: Any,
  ) -> tuple[Any, "CodeStatistics"]:
    """Moves codes to their centres if configured, and revives dead ones.

    Args:
      params: {"codebook": float32 [V, E]}.
      state: The statistics.
      aux: Inputs that may replace dead codes, float32 [V, E].
      config: `config.codebook`: `learn_by` is "gradient" or "average"; a code
        whose share is below `dead_below` times an even share is dead.
    """
    codebook = params["codebook"]
    if config.learn_by == "average":
      codebook = state.centres(codebook)
    codebook, state = revive(codebook, state, aux, config.dead_below)
    return {"codebook": codebook}, state

  def _normalise(self, x: jax.Array) -> jax.Array:
    if not self.unit_norm:
      return x
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


@flax.struct.dataclass
class CodeStatistics:
  """Running share and centre of each code; checkpointed, but not optimized.

  Attributes:
    share: float32 [V], a moving average of each code's share of the vectors.
    mass: float32 [V], a moving average of how many inputs chose each code.
    total: float32 [V, E], a moving average of the sum of these inputs;
      total / mass is the centre of a code's inputs.
    age: float32 scalar, number of batches seen.
  """

  share: jax.Array
  mass: jax.Array
  total: jax.Array
  age: jax.Array

  @classmethod
  def fresh(cls, num_codes: int, code_dim: int) -> "CodeStatistics":
    """Returns statistics in which no code has been used.

    In the first batch nearly all codes are therefore dead, and `revive`
    replaces them with inputs of that batch.
    """
    zeros = jnp.zeros((num_codes,), jnp.float32)
    return cls(
      zeros,
      zeros,
      jnp.zeros((num_codes, code_dim), jnp.float32),
      jnp.zeros((), jnp.float32),
    )

  @classmethod
  def warm(cls, codebook: jax.Array) -> "CodeStatistics":
    """Returns statistics in which each code was used equally, at its centre.

    With those of `fresh`, the first batch would replace the codes, and models
    that were trained on their tokens would no longer understand them.

    Args:
      codebook: float32 [V, E].
    """
    used = jnp.ones(codebook.shape[:1], jnp.float32)
    return cls(
      used / len(codebook),
      used,
      codebook.astype(jnp.float32),
      jnp.full((), _OLD, jnp.float32),
    )

  def update(
    self,
    quantized: codes_lib.Quantized,
    decay: float,
    centre_decay: float,
    microbatches: int = 1,
  ) -> "CodeStatistics":
    """Updates the averages with one batch.

    Averages are over few batches at first, so that codes that were initialised
    badly from the first batch are replaced quickly. Later they are over many
    batches, because a rare code is not dead, and the centre of few inputs is
    noisy.

    Args:
      quantized: The batch's quantisation.
      decay: Decay of the shares after some hundred batches.
      centre_decay: Decay of masses and sums after some hundred batches.
      microbatches: The number of parts of the batch of which `quantized` is
        one. Masses and sums are totals of a batch, so those of a part count
        so many times in the mean over the parts.
    """
    use_rate = codes_lib.young_decay(self.age, decay)
    centre_rate = codes_lib.young_decay(self.age, centre_decay)
    codes = quantized.codes.reshape(-1)
    inputs = jax.lax.stop_gradient(quantized.inputs)
    counts = codes_lib.counts(codes, self.mass.shape[0])
    sums = (
      jnp.zeros_like(self.total)
      .at[codes]
      .add(inputs.reshape(-1, inputs.shape[-1]))
    )
    mix = lambda rate, old, new: rate * old + (1 - rate) * new
    return CodeStatistics(
      mix(use_rate, self.share, counts / codes.size),
      mix(centre_rate, self.mass, microbatches * counts),
      mix(centre_rate, self.total, microbatches * sums),
      self.age + 1,
    )

  def centres(self, codebook: jax.Array) -> jax.Array:
    """Returns the centre of each code's inputs, or the code if it has none.

    Args:
      codebook: float32 [V, E], the current codes.
    """
    mass = self.mass[:, None]
    return jnp.where(
      mass > 1e-4, self.total / jnp.maximum(mass, 1e-4), codebook
    )


def candidates(
  quantized: codes_lib.Quantized, rng: jax.Array, count: int
) -> jax.Array:
  """Draws inputs of the batch that may replace dead codes.

  The probability of an input is proportional to its squared distance from its
  code, as in k-means++. Uniform draws would put most dead codes near the many
  similar inputs that already have a close code.

  Args:
    quantized: The batch's quantisation, of M vectors.
    rng: Key.
    count: R.

  Returns:
    float32 [R, E]; the inputs are distinct if R is at most M.
  """
  inputs = jax.lax.stop_gradient(quantized.inputs)
  inputs = inputs.reshape(-1, inputs.shape[-1])
  log_chance = jnp.log(
    jax.lax.stop_gradient(quantized.losses["commitment"]).reshape(-1) + 1e-12
  )
  if count > inputs.shape[0]:
    drawn = jax.random.categorical(rng, log_chance, shape=(count,))
  else:
    # The R largest values of log probability + Gumbel noise are draws without
    # replacement.
    noisy = log_chance + jax.random.gumbel(rng, log_chance.shape)
    drawn = jax.lax.top_k(noisy, count)[1]
  return inputs[drawn]


def revive(
  codebook: jax.Array,
  statistics: CodeStatistics,
  replacements: jax.Array,
  threshold: Any,
) -> tuple[jax.Array, CodeStatistics]:
  """Replaces dead codes with inputs of the current batch.

  A code that no input chooses gets no gradient and would stay dead, so it is
  set to an input of the current batch (random restarts, section 3 of
  arXiv:2005.00341). The Genie paper does not say how it avoids dead codes.

  Args:
    codebook: float32 [V, E].
    statistics: Running share and centre of each code.
    replacements: [R, E] with R >= V, inputs of the current batch.
    threshold: Codes whose share is less than this times an even share are
      dead.

  Returns:
    The new codebook, and statistics in which a revived code has an even
    share, so that it is not replaced again before inputs can choose it.
  """
  even = 1.0 / codebook.shape[0]
  dead = statistics.share < threshold * even
  codebook = jnp.where(
    dead[:, None], replacements[: codebook.shape[0]], codebook
  )
  return codebook, CodeStatistics(
    share=jnp.where(dead, even, statistics.share),
    mass=jnp.where(dead, 1.0, statistics.mass),
    total=jnp.where(dead[:, None], codebook, statistics.total),
    age=statistics.age,
  )
