"""Vector quantisation with straight-through gradients and no dead codes.

Shapes:
  M  vectors in a batch         V  codes
  E  width of a code            R  candidates kept for dead codes
"""

from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.nn import initializers


@flax.struct.dataclass
class Quantized:
  """What quantising a batch of vectors gives.

  Attributes:
    vectors: [..., E], the chosen codes; their gradient goes to the input
      (straight-through, arXiv:1711.00937).
    codes: int32 [...], which code was chosen.
    codebook_loss: [...], squared distance of the code to the input, with a
      gradient for the code.
    commitment_loss: [...], the same with a gradient for the input.
    inputs: [..., E], what was quantised (after normalisation).
  """

  vectors: jax.Array
  codes: jax.Array
  codebook_loss: jax.Array
  commitment_loss: jax.Array
  inputs: jax.Array


class Codebook(nn.Module):
  """A table of vectors, looked up by nearest neighbour.

  With `unit_norm`, inputs and codes live on a sphere, where no code can be
  left behind by the growth of the inputs (arXiv:2110.04627).

  Attributes:
    num_codes: V.
    code_dim: E.
    unit_norm: Whether inputs and codes are scaled to length 1.
  """

  num_codes: int
  code_dim: int
  unit_norm: bool = True

  def setup(self):
    self.codebook = self.param(
      "codebook",
      initializers.labelled(
        nn.initializers.normal(self.code_dim**-0.5), ("table", None)
      ),
      (self.num_codes, self.code_dim),
      jnp.float32,
    )

  def __call__(self, x: jax.Array) -> Quantized:
    """Quantises x: [..., E], any float dtype; arithmetic is float32."""
    chex.assert_axis_dimension(x, -1, self.code_dim)
    x = self._normal(x.astype(jnp.float32))
    table = self._normal(self.codebook)
    # The nearest code in Euclidean distance; |x|^2 is the same for all.
    affinity = x @ table.T - 0.5 * jnp.sum(table * table, axis=-1)
    codes = jax.lax.stop_gradient(affinity).argmax(-1).astype(jnp.int32)
    chosen = jnp.take(table, codes, axis=0)
    squared = lambda a, b: jnp.sum(jnp.square(a - b), axis=-1)
    return Quantized(
      vectors=x + jax.lax.stop_gradient(chosen - x),
      codes=codes,
      codebook_loss=squared(chosen, jax.lax.stop_gradient(x)),
      commitment_loss=squared(x, jax.lax.stop_gradient(chosen)),
      inputs=x,
    )

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Returns the vectors [..., E] of codes: int32 [...]."""
    return jnp.take(self._normal(self.codebook), codes, axis=0)

  def _normal(self, x: jax.Array) -> jax.Array:
    if not self.unit_norm:
      return x
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


@flax.struct.dataclass
class CodeStatistics:
  """Running use of each code; checkpointed, and no optimizer's business.

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
    self, quantized: Quantized, decay: float, centre_decay: float
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
    young = (1 + self.age) / (10 + self.age)
    decay = jnp.minimum(decay, young)
    centre_decay = jnp.minimum(centre_decay, young)
    codes = quantized.codes.reshape(-1)
    inputs = jax.lax.stop_gradient(quantized.inputs)
    counts = jnp.zeros_like(self.mass).at[codes].add(1.0)
    sums = (
      jnp.zeros_like(self.total)
      .at[codes]
      .add(inputs.reshape(-1, inputs.shape[-1]))
    )
    mix = lambda rate, old, new: rate * old + (1 - rate) * new
    return CodeStatistics(
      mix(decay, self.share, counts / codes.size),
      mix(centre_decay, self.mass, counts),
      mix(centre_decay, self.total, sums),
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

  def perplexity(self) -> jax.Array:
    """Returns exp(entropy) of the shares: V when all are used alike."""
    share = self.share / jnp.maximum(self.share.sum(), 1e-12)
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def candidates(quantized: Quantized, rng: jax.Array, count: int) -> jax.Array:
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
    jax.lax.stop_gradient(quantized.commitment_loss).reshape(-1) + 1e-12
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
