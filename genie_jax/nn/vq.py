"""Vector quantisation with straight-through gradients and no dead codes.

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

# How a codebook learns: by the gradient of its loss (the paper's plain
# VQ-VAE), or as the moving average of the inputs that chose each code.
_UPDATES = ("gradient", "average")


class Codebook(codes_lib.Quantizer):
  """A table of vectors, looked up by nearest neighbour.

  With `unit_norm`, inputs and codes live on a sphere, where no code can be
  left behind by the growth of the inputs (arXiv:2110.04627).

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
    x = self._normal(x.astype(jnp.float32))
    table = self._normal(self.codebook)
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
    return jnp.take(self._normal(self.codebook), codes, axis=0)

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
    """Raises UserError unless `config.codebook` makes sense."""
    if config.learn_by not in _UPDATES:
      raise errors.UserError(
        f"config.codebook.learn_by={config.learn_by!r} is unknown"
        f"{errors.closest(str(config.learn_by), _UPDATES)}; use one of "
        f"{', '.join(_UPDATES)}."
      )
    for name in ("share_decay", "centre_decay"):
      codes_lib.check_decay(config, name)

  @nn.nowrap
  def fresh(self) -> "CodeStatistics":
    """Returns statistics in which no code has been used."""
    return CodeStatistics.fresh(self.num_codes, self.code_dim)

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
      state: The running use.
      quantized: The batch's quantisation.
      rng: Key for drawing the replacements.
      config: `config.codebook`: `share_decay` of the running use and
        `centre_decay` of the centres.
    """
    state = state.update(quantized, config.share_decay, config.centre_decay)
    return state, candidates(quantized, rng, self.num_codes)

  @nn.nowrap
  def after_update(
    self,
    params: Any,
    state: "CodeStatistics",
    aux: jax.Array,
    config: Any,
  ) -> tuple[Any, "CodeStatistics"]:
    """Moves the codes: to their centres if asked for, dead ones to inputs.

    Args:
      params: {"codebook": float32 [V, E]}.
      state: The running use.
      aux: The replacements, float32 [V, E].
      config: `config.codebook`: `learn_by` "gradient" or "average", and
        `dead_below`, the part of an even share below which a code is dead.
    """
    codebook = params["codebook"]
    if config.learn_by == "average":
      codebook = state.centres(codebook)
    codebook, state = revive(codebook, state, aux, config.dead_below)
    return {"codebook": codebook}, state

  def _normal(self, x: jax.Array) -> jax.Array:
    if not self.unit_norm:
      return x
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


@flax.struct.dataclass
class CodeStatistics:
  """Running use and centre of each code; checkpointed, but not optimized.

  Attributes:
    share: float32 [V], a moving average of each code's share of the vectors.
    mass: float32 [V], a moving average of how many inputs chose each code.
    total: float32 [V, E], the same of their sum; total / mass is the centre
      of a code's inputs.
    age: float32 scalar, batches seen.
  """

  share: jax.Array
  mass: jax.Array
  total: jax.Array
  age: jax.Array

  @classmethod
  def fresh(cls, num_codes: int, code_dim: int) -> "CodeStatistics":
    """Returns statistics in which no code has been used.

    The first batch then finds nearly all codes dead, and `revive` seeds the
    codebook with its inputs.
    """
    zeros = jnp.zeros((num_codes,), jnp.float32)
    return cls(
      zeros,
      zeros,
      jnp.zeros((num_codes, code_dim), jnp.float32),
      jnp.zeros((), jnp.float32),
    )

  def update(
    self, quantized: codes_lib.Quantized, decay: float, centre_decay: float
  ) -> "CodeStatistics":
    """Mixes in one batch.

    Averages are short at first, so that codes that the first batch seeded
    badly move on quickly, and long later: a rare code is not a dead one, and
    the centre of few inputs is a noisy one.

    Args:
      quantized: The batch's quantisation.
      decay: Of the shares, after some hundred batches.
      centre_decay: Of the masses and sums, likewise.
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
      mix(centre_rate, self.mass, counts),
      mix(centre_rate, self.total, sums),
      self.age + 1,
    )

  def centres(self, codebook: jax.Array) -> jax.Array:
    """Returns where the inputs of each code lie, or the code if it has none.

    Args:
      codebook: float32 [V, E], the codes as they are.
    """
    mass = self.mass[:, None]
    return jnp.where(
      mass > 1e-4, self.total / jnp.maximum(mass, 1e-4), codebook
    )


def candidates(
  quantized: codes_lib.Quantized, rng: jax.Array, count: int
) -> jax.Array:
  """Draws inputs of the batch on which dead codes may be put.

  An input is drawn with a chance in proportion to its squared distance from
  its code, as k-means++ seeds its centres. Even draws would put most dead
  codes among the many inputs that are alike and already well served.

  Args:
    quantized: The batch's quantisation, M vectors in all.
    rng: Key.
    count: R.

  Returns:
    float32 [R, E]; distinct inputs as long as R is at most M.
  """
  inputs = jax.lax.stop_gradient(quantized.inputs)
  inputs = inputs.reshape(-1, inputs.shape[-1])
  log_chance = jnp.log(
    jax.lax.stop_gradient(quantized.losses["commitment"]).reshape(-1) + 1e-12
  )
  if count > inputs.shape[0]:
    drawn = jax.random.categorical(rng, log_chance, shape=(count,))
  else:
    # The largest of log chance + Gumbel noise are draws without replacement.
    noisy = log_chance + jax.random.gumbel(rng, log_chance.shape)
    drawn = jax.lax.top_k(noisy, count)[1]
  return inputs[drawn]


def revive(
  codebook: jax.Array,
  statistics: CodeStatistics,
  replacements: jax.Array,
  threshold: Any,
) -> tuple[jax.Array, CodeStatistics]:
  """Moves dead codes to where inputs are.

  A code that no input chooses gets no gradient and stays dead for good; it is
  put on an input of the current batch instead (random restarts, section 3 of
  arXiv:2005.00341). The paper does not say how Genie kept its codes alive.

  Args:
    codebook: float32 [V, E].
    statistics: Running use.
    replacements: [R, E] with R >= V, inputs of the current batch.
    threshold: Codes used less than this part of an even share are dead.

  Returns:
    The new codebook, and statistics in which a revived code has an even
    share, so that it gets time to prove itself.
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
