"""Attention over few frames at many places, as one TPU kernel.

A window of 16 frames gives scores of 16 x 16 at each of 920 places: as plain
matrix products they fill a hundredth of a 128 x 128 matrix unit, and XLA
moves every query, key and value through two transposes to form them. Here the
T frames of P neighbouring places are read as they lie, as T * P rows of one
head. All scores among those rows are one matrix product, of which the mask
keeps the pairs of the same place. That computes P times too many scores, on a
unit that would otherwise idle, and reads and writes each array once.

Shapes:
  P  places in a block            C  channels of all heads, H * K
  R  rows of a block, T * P       K  width of one head, a multiple of 128
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# Rows of a bfloat16 tile: a block of places is a whole tile of each frame,
# so merging the two axes moves nothing.
PLACES = 16
LANES = 128

_MASKED = -1e30


def fits(num_frames: int, head_dim: int) -> bool:
  """Returns whether the kernel can and should attend over these frames.

  Longer windows than 32 would hold scores of more than a MiB a block, and are
  large enough for ordinary kernels.
  """
  return head_dim % LANES == 0 and num_frames <= 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    num_heads: int,
    window: int = 0,
    interpret: bool = False,
) -> jax.Array:
  """Causal softmax attention over frames, at each place by itself.

  Args:
    query: [B, T, N, C], float32 or bfloat16.
    key: [B, T, N, C].
    value: [B, T, N, C].
    num_heads: H.
    window: Frames seen, the own one included; 0 for all before.
    interpret: Whether to run the kernel as plain JAX, for tests on a CPU.

  Returns:
    [B, T, N, C] in the dtype of `value`; scores are float32.
  """
  return _forward(query, key, value, num_heads, window, interpret)[0]


def _forward(query, key, value, num_heads, window, interpret):
  chex.assert_rank(query, 4)
  chex.assert_equal_shape([query, key, value])
  kernel = functools.partial(
      _forward_kernel, window=window, num_places=query.shape[2])
  out = _call(
      kernel, "time_attention_forward", (query, key, value), 1, num_heads,
      interpret)[0]
  return out, (query, key, value)


def _backward(num_heads, window, interpret, inputs, cotangent):
  kernel = functools.partial(
      _backward_kernel, window=window, num_places=inputs[0].shape[2])
  return tuple(_call(
      kernel, "time_attention_backward", (*inputs, cotangent), 3, num_heads,
      interpret))


attend.defvjp(_forward, _backward)


def _call(kernel, name, inputs, outputs, num_heads, interpret):
  """Runs a kernel on every clip, block of places and head."""
  b, t, n, c = inputs[0].shape
  head_dim = c // num_heads
  block = pl.BlockSpec(
      (1, t, PLACES, head_dim), lambda i, place, head: (i, 0, place, head))
  like = jax.ShapeDtypeStruct((b, t, n, c), inputs[0].dtype)
  return pl.pallas_call(
      kernel,
      grid=(b, pl.cdiv(n, PLACES), num_heads),
      in_specs=[block] * len(inputs),
      out_specs=[block] * outputs,
      out_shape=[like] * outputs,
      interpret=interpret,
      name=name)(*inputs)


def _rows(ref, num_places):
  """Returns a block as [R, K], frames first; zero beyond the last place.

  What lies beyond is undefined: it could be NaN, which a weight of zero does
  not undo.
  """
  block = ref[0]  # [T, P, K]
  if num_places % PLACES:
    place = pl.program_id(1) * PLACES + jax.lax.broadcasted_iota(
        jnp.int32, block.shape, 1)
    block = jnp.where(place < num_places, block, jnp.zeros_like(block))
  return block.reshape(-1, block.shape[-1])


def _weights(query, key, window):
  """Returns softmax weights, float32 [R, R], and the factor on scores."""
  factor = query.shape[-1] ** -0.5
  scores = _product(query, key, 1, 1) * factor
  row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  distance = row - column  # A multiple of P exactly at the same place.
  allowed = (distance >= 0) & (distance % PLACES == 0)
  if window:
    allowed &= distance < window * PLACES
  scores = jnp.where(allowed, scores, _MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True), factor


def _product(a, b, contract_a, contract_b):
  return jax.lax.dot_general(
      a, b, (((contract_a,), (contract_b,)), ((), ())),
      preferred_element_type=jnp.float32)


def _forward_kernel(query_ref, key_ref, value_ref, out_ref, *, window,
                    num_places):
  query, key, value = (
      _rows(ref, num_places) for ref in (query_ref, key_ref, value_ref))
  weights, _ = _weights(query, key, window)
  out = _product(weights.astype(value.dtype), value, 1, 0)
  out_ref[0] = out.astype(out_ref.dtype).reshape(out_ref.shape[1:])


def _backward_kernel(
    query_ref, key_ref, value_ref, cotangent_ref, query_grad_ref,
    key_grad_ref, value_grad_ref, *, window, num_places):
  """Recomputes the weights: to keep them would cost more than to redo them."""
  query, key, value, cotangent = (_rows(ref, num_places) for ref in (
      query_ref, key_ref, value_ref, cotangent_ref))
  weights, factor = _weights(query, key, window)
  low = weights.astype(value.dtype)
  value_grad = _product(low, cotangent, 0, 0)
  weights_grad = _product(cotangent, value, 1, 1)
  mean = jnp.sum(weights_grad * weights, axis=-1, keepdims=True)
  scores_grad = (weights * (weights_grad - mean) * factor).astype(query.dtype)
  query_grad = _product(scores_grad, key, 1, 0)
  key_grad = _product(scores_grad, query, 0, 0)
  for ref, grad in ((query_grad_ref, query_grad), (key_grad_ref, key_grad),
                    (value_grad_ref, value_grad)):
    ref[0] = grad.astype(ref.dtype).reshape(ref.shape[1:])
