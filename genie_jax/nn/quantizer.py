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
            nn.initializers.normal(self.code_dim ** -0.5), ("table", None)),
        (self.num_codes, self.code_dim), jnp.float32)

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
        inputs=x)

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
  """
  share: jax.Array

  @classmethod
  def fresh(cls, num_codes: int) -> "CodeStatistics":
    """Returns statistics in which all codes are used alike."""
    return cls(jnp.full((num_codes,), 1 / num_codes, jnp.float32))

  def update(self, codes: jax.Array, decay: float) -> "CodeStatistics":
    """Mixes in the shares of one batch of codes: int32 [...]."""
    counts = jnp.zeros_like(self.share).at[codes.reshape(-1)].add(1.0)
    return CodeStatistics(
        decay * self.share + (1 - decay) * counts / codes.size)

  def perplexity(self) -> jax.Array:
    """Returns exp(entropy) of the shares: V when all are used alike."""
    share = self.share / self.share.sum()
    return jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))


def candidates(
    quantized: Quantized, rng: jax.Array, count: int
) -> jax.Array:
  """Returns `count` inputs drawn from the batch, [R, E], for `revive`."""
  inputs = jax.lax.stop_gradient(quantized.inputs)
  inputs = inputs.reshape(-1, inputs.shape[-1])
  drawn = jax.random.randint(rng, (count,), 0, inputs.shape[0])
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
      dead[:, None], replacements[:codebook.shape[0]], codebook)
  return codebook, CodeStatistics(jnp.where(dead, even, statistics.share))
