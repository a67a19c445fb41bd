"""Normalisation in float32."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.nn import initializers

EPSILON = 1e-6


class Scale(nn.Module):
  """The learned scale of a norm, for callers that normalise themselves."""

  @nn.compact
  def __call__(self, width: int) -> jax.Array:
    """Returns float32 [width]."""
    return self.param(
      "scale",
      initializers.labelled(nn.initializers.ones, ("norm",)),
      (width,),
      jnp.float32,
    )


def normalise(x: jax.Array, scale: jax.Array, dtype: Any) -> jax.Array:
  """Divides by the root mean square of the last axis, then scales.

  Args:
    x: [..., D].
    scale: float32 [D].
    dtype: Dtype of the result; the arithmetic is float32.
  """
  wide = x.astype(jnp.float32)
  mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(mean_square + EPSILON) * scale).astype(dtype)


class RMSNorm(Scale):
  """Divides by the root mean square of the last axis, then scales.

  Attributes:
    dtype: Dtype of the result; the arithmetic is float32.
  """

  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises x: [..., D]; same shape out."""
    return normalise(x, Scale.__call__(self, x.shape[-1]), self.dtype)
