"""Normalisation in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.nn import initializers

_EPSILON = 1e-6


class RMSNorm(nn.Module):
  """Divides by the root mean square of the last axis, then scales.

  Attributes:
    dtype: Dtype of the result; the arithmetic is float32.
  """
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x: [..., D]; same shape out."""
    scale = self.param(
        "scale", initializers.labelled(nn.initializers.ones, ("norm",)),
        (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + _EPSILON) * scale).astype(
        self.dtype)
