"""Clipping of outliers: of gradients by their history, of updates by their RMS.

The paper states no clipping. A fixed global norm (`optimizer.clip_norm`) has to
be chosen for each size; what is here adapts to a run.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of arXiv:2504.02507: decay of the averages, and steps before the first clip.
_DECAY, _WARM_UP = 0.97, 25


class NormHistory(NamedTuple):
  """What is known of the gradient's global norm.

  Attributes:
    count: int32 scalar, steps seen.
    mean: float32 scalar, a moving average of the norm.
    variance: float32 scalar, a moving average of its squared deviation.
  """

  count: jax.Array
  mean: jax.Array
  variance: jax.Array


def clip_outliers(threshold: float) -> optax.GradientTransformation:
  """Scales down gradients whose global norm is an outlier among recent ones.

  A norm above mean + threshold * standard deviation is reduced to that value.
  The averages are over about 33 steps and see the reduced norm, so that a spike
  does not raise the limit for the next one. In the first 25 steps, in which
  norms change by orders of magnitude, nothing is clipped. This follows ZClip
  (arXiv:2504.02507), whose threshold is 2.5.

  Differs from it: an outlier is reduced to the threshold and not below it, so
  that the norm after clipping is a continuous function of the norm before.

  Args:
    threshold: In standard deviations.
  """

  def init(params):
    del params
    return NormHistory(jnp.int32(0), jnp.float32(0), jnp.float32(0))

  def update(updates, state, params=None):
    del params
    norm = optax.tree.norm(updates).astype(jnp.float32)
    limit = state.mean + threshold * jnp.sqrt(state.variance)
    warm = state.count >= _WARM_UP
    seen = jnp.where(warm, jnp.minimum(norm, limit), norm)
    scale = jnp.where(seen < norm, seen / jnp.maximum(norm, 1e-12), 1.0)
    # Plain averages while warming up, so that they do not begin at 0.
    rate = jnp.where(warm, 1 - _DECAY, 1 / (state.count + 1.0))
    mean = state.mean + rate * (seen - state.mean)
    variance = (1 - rate) * (state.variance + rate * (seen - state.mean) ** 2)
    return (
      jax.tree.map(lambda x: (x * scale).astype(x.dtype), updates),
      NormHistory(state.count + 1, mean, variance),
    )

  return optax.GradientTransformation(init, update)


def clip_update_rms(limit: float) -> optax.GradientTransformation:
  """Scales down each array's update to a root mean square of at most `limit`.

  It belongs after Adam, whose updates have an RMS near 1 or below: a larger one
  means that the second moment lags behind the gradient, which comes before loss
  spikes (arXiv:1804.04235, section 6; arXiv:2304.13013). Arrays of stacked
  layers are limited layer by layer.

  Differs from these papers: the RMS is that of the update with momentum, which
  is what is applied, and not that of the gradient over the second moment.

  Args:
    limit: 1 in these papers.
  """

  def leaf(path, x):
    stacked = any(getattr(key, "key", None) == "layers" for key in path)
    axes = tuple(range(1 if stacked else 0, x.ndim))
    mean = jnp.mean(jnp.square(x.astype(jnp.float32)), axes, keepdims=True)
    return (x / jnp.maximum(1.0, jnp.sqrt(mean) / limit)).astype(x.dtype)

  def update(updates: Any, state, params=None):
    del params
    return jax.tree_util.tree_map_with_path(leaf, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
