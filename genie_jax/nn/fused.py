"""Attention of one head over a block of rows, as one TPU kernel.

In space the rows are the N tokens of a frame. In time the rows are the T
frames of P neighbouring places (positions in the token grid), in their order
in memory, so that no array is transposed. One matrix product computes the
scores among all T * P rows, and the mask keeps the pairs at the same place.
This computes P times as many scores as needed, but the scores of 16 frames
alone would leave most of a 128 x 128 matrix unit idle.

The kernel also normalises queries and keys and, in time, applies rotary
embeddings: as separate operations these would read and write each array
several times. Scores never leave the chip's fast memory (VMEM); the backward
kernel computes them again.

A vector register has 128 lanes, so heads narrower than that share a block. For
each head the channels of the other heads are set to zero. This adds no work,
since the matrix products of a single head would be padded to 128 lanes.

Shapes:
  P  places in a block            C  channels of all heads, H * K
  R  rows of a block, N or T * P  K  width of one head
  G  heads of a block             L  channels of a block, G * K
"""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

# Rows of a bfloat16 tile: a block of places is a whole tile of each frame, so
# merging the two axes moves no data.
PLACES = 16
LANES = 128
# The scores of this many rows, their gradients and the blocks being copied fit
# into half of the VMEM of the supported chips (v5p, v5e, v6e).
MAX_ROWS = 1024
_VMEM_BYTES = 48 * 2**20

_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Options:
  """Options that are fixed when the kernel is compiled.

  Attributes:
    num_heads: H on this device.
    in_time: Whether rows are frames (causal) or the tokens of a frame.
    window: Number of frames attended to, including the query's own; 0 for
      all. In time only.
    num_valid: Only the first `num_valid` tokens are attended to; 0 for all. In
      space only.
    epsilon: Added to the mean square of queries and keys.
    interpret: Whether to run as plain JAX, for tests on a CPU.
  """

  num_heads: int
  in_time: bool
  window: int = 0
  num_valid: int = 0
  epsilon: float = 1e-6
  interpret: bool = False


def fits(
  num_frames: int,
  num_tokens: int,
  num_heads: int,
  head_dim: int,
  in_time: bool,
) -> bool:
  """Returns whether the kernel supports arrays of this size.

  Args:
    num_frames: T.
    num_tokens: N.
    num_heads: H on one device.
    head_dim: K.
    in_time: Whether attention is over frames or within one.
  """
  rows = num_frames * PLACES if in_time else num_tokens
  whole = head_dim % LANES == 0 or (
    LANES % head_dim == 0
    and head_dim >= 32
    and num_heads % (LANES // head_dim) == 0
  )
  return whole and rows <= MAX_ROWS


def heads_together(head_dim: int) -> int:
  """Returns G, the number of heads of this width that share a block."""
  return max(1, LANES // head_dim)


def tables(cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Arranges the cosines and sines of rotary angles for `attend`.

  Args:
    cos: float32 [T, K / 2].
    sin: float32 [T, K / 2].

  Returns:
    float32 [2, T, P, K]: the factors of a row, and the factors of the row
    with the two halves of each head swapped.
  """
  both = jnp.stack(
    [
      jnp.concatenate([cos, cos], axis=-1),
      jnp.concatenate([-sin, sin], axis=-1),
    ]
  )  # [2, T, K]
  return jnp.repeat(both[:, :, None], PLACES, axis=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
  options: Options,
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  scales: jax.Array,
  rotary: jax.Array,
) -> jax.Array:
  """Softmax attention of normalised queries and keys.

  Args:
    options: See `Options`.
    query: [B, T, N, C], float32 or bfloat16, the output of the projection.
    key: [B, T, N, C].
    value: [B, T, N, C].
    scales: float32 [2, K], of the norms of queries and keys.
    rotary: float32 [2, T, P, K] from `tables`; not read in space. Its gradient
      is zero.

  Returns:
    [B, T, N, C] in the dtype of `value`; scores are computed in float32.
  """
  return _attend_forward(options, query, key, value, scales, rotary)[0]


def _attend_forward(options, query, key, value, scales, rotary):
  chex.assert_rank(query, 4)
  chex.assert_equal_shape([query, key, value])
  (out,) = _call(
    options,
    _forward_kernel,
    "forward",
    (query, key, value),
    scales,
    rotary,
    1,
    False,
  )
  return out, (query, key, value, scales, rotary)


def _attend_backward(options, saved, cotangent):
  *inputs, scales, rotary = saved
  *grads, scales_grad = _call(
    options,
    _backward_kernel,
    "backward",
    (*inputs, cotangent),
    scales,
    rotary,
    3,
    True,
  )
  scales_grad = scales_grad.sum((0, 1, 2))  # [2, L]
  scales_grad = scales_grad.reshape(2, -1, scales.shape[-1]).sum(1)
  return (*grads, scales_grad, jnp.zeros_like(rotary))


attend.defvjp(_attend_forward, _attend_backward)


def _call(options, kernel, name, arrays, scales, rotary, outputs, sums):
  """Runs a kernel on every block of rows of every head."""
  b, t, n, c = arrays[0].shape
  together = heads_together(c // options.num_heads)
  blocks = options.num_heads // together
  channels = c // blocks
  if options.in_time:
    grid = (b, pl.cdiv(n, PLACES), blocks)
    block = pl.BlockSpec(
      (1, t, PLACES, channels), lambda i, place, head: (i, 0, place, head)
    )
  else:
    grid = (b, t, blocks)
    block = pl.BlockSpec(
      (1, 1, n, channels), lambda i, frame, head: (i, frame, 0, head)
    )
  whole = lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)
  small = (scales, rotary) if options.in_time else (scales,)
  # All heads of a block have the same scales and angles.
  small = [jnp.concatenate([x] * together, axis=-1) for x in small]
  out_specs = [block] * outputs
  out_shape = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * outputs
  if sums:
    # Each block writes its own partial gradient of the scales, because blocks
    # run in any order.
    out_specs.append(
      pl.BlockSpec(
        (1, 1, 1, 2, channels), lambda i, j, head: (i, j, head, 0, 0)
      )
    )
    out_shape.append(jax.ShapeDtypeStruct((*grid, 2, channels), jnp.float32))
  place = "time" if options.in_time else "space"
  name = f"{place}_attention_{name}"
  if together > 1:
    name += f"_of_{together}"
  return pl.pallas_call(
    functools.partial(kernel, options, n, channels // together),
    grid=grid,
    in_specs=[block] * len(arrays) + [whole(x) for x in small],
    out_specs=out_specs,
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(vmem_limit_bytes=_VMEM_BYTES),
    interpret=options.interpret,
    name=name,
  )(*arrays, *small)


def _load_rows(options, num_tokens, ref):
  """Returns a block as [R, K], frames first, with zeros in padded rows.

  The memory of rows beyond the last place is undefined: it may contain NaN,
  and NaN times an attention weight of zero is still NaN.
  """
  block = ref[0]
  if options.in_time and num_tokens % PLACES:
    place = pl.program_id(1) * PLACES + jax.lax.broadcasted_iota(
      jnp.int32, block.shape, 1
    )
    block = jnp.where(place < num_tokens, block, jnp.zeros_like(block))
  return block.reshape(-1, block.shape[-1])


def _keep_head(x, head_dim, head):
  """Returns x with the channels of all other heads set to zero."""
  if head_dim == x.shape[-1]:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane // head_dim == head, x, jnp.zeros_like(x))


def _mean(x, head_dim):
  """Returns the mean over each head's channels.

  Its last axis has the width of x, or width 1 if x has one head.
  """
  channels = x.shape[-1]
  if head_dim == channels:
    return jnp.mean(x, axis=-1, keepdims=True)
  return sum(
    _keep_head(
      jnp.broadcast_to(
        jnp.sum(_keep_head(x, head_dim, head), axis=-1, keepdims=True)
        / head_dim,
        x.shape,
      ),
      head_dim,
      head,
    )
    for head in range(channels // head_dim)
  )


def _swap_halves(x, head_dim):
  """Returns x with the two halves of each head's channels swapped."""
  half, channels = head_dim // 2, x.shape[-1]
  after = pltpu.roll(x, half, 1)
  if head_dim == channels:
    return after
  before = pltpu.roll(x, channels - half, 1)
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane % head_dim < half, before, after)


def _rotate(x, rotary, head_dim):
  """Applies the rotary embedding; `rotary` is None in space."""
  if rotary is None:
    return x
  return x * rotary[0] + _swap_halves(x, head_dim) * rotary[1]


def _rotate_backward(grad, rotary, head_dim):
  """Returns the gradient with respect to the input of `_rotate`."""
  if rotary is None:
    return grad
  return grad * rotary[0] + _swap_halves(grad * rotary[1], head_dim)


def _normalise(options, x, head_dim):
  """Returns rows scaled to root mean square 1, and the factors used."""
  x = x.astype(jnp.float32)
  factor = jax.lax.rsqrt(_mean(x * x, head_dim) + options.epsilon)
  return x * factor, factor


def _normalise_backward(normal, factor, grad, head_dim):
  """Returns the gradient with respect to the input of `_normalise`."""
  return factor * (grad - normal * _mean(grad * normal, head_dim))


def _matmul(a, b, contract_a, contract_b):
  return jax.lax.dot_general(
    a,
    b,
    (((contract_a,), (contract_b,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _weights(options, query, key):
  """Returns softmax weights, float32 [R, R]; queries are already scaled."""
  scores = _matmul(query, key, 1, 1)
  row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  if options.in_time:
    distance = row - column  # A multiple of P if and only if places are equal.
    seen = (distance >= 0) & (distance % PLACES == 0)
    if options.window:
      seen &= distance < options.window * PLACES
    scores = jnp.where(seen, scores, _MASKED)
  elif options.num_valid:
    scores = jnp.where(column < options.num_valid, scores, _MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def _prepare(options, num_tokens, head_dim, refs, scales_ref, rotary_ref):
  """Loads a block, and normalises and rotates its queries and keys.

  Returns:
    The rows of each array; for queries and keys, the normalised rows with
    their factors, and the scaled and rotated rows; the rotary table (None in
    space); the factors of queries and keys.
  """
  rotary = None
  if rotary_ref is not None:
    rotary = rotary_ref[...].reshape(2, -1, rotary_ref.shape[-1])
  rows = [_load_rows(options, num_tokens, ref) for ref in refs]
  normal = [_normalise(options, x, head_dim) for x in rows[:2]]
  # The factor of the scores is applied to the queries.
  factors = (head_dim**-0.5, 1.0)
  rotated = [
    _rotate(x * (scales_ref[i : i + 1] * factors[i]), rotary, head_dim).astype(
      rows[i].dtype
    )
    for i, (x, _) in enumerate(normal)
  ]
  return rows, normal, rotated, rotary, factors


def _split(options, refs, inputs):
  """Splits references into arrays, scales, rotary table (or None), outputs."""
  arrays, rest = refs[:inputs], refs[inputs:]
  if options.in_time:
    return arrays, rest[0], rest[1], rest[2:]
  return arrays, rest[0], None, rest[1:]


def _forward_kernel(options, num_tokens, head_dim, *refs):
  arrays, scales_ref, rotary_ref, (out_ref,) = _split(options, refs, 3)
  rows, _, (query, key), _, _ = _prepare(
    options, num_tokens, head_dim, arrays, scales_ref, rotary_ref
  )
  value = rows[2]
  out: Any = 0.0
  for head in range(value.shape[-1] // head_dim):
    weights = _weights(options, _keep_head(query, head_dim, head), key)
    mixed = _matmul(weights.astype(value.dtype), value, 1, 0)
    out += _keep_head(mixed, head_dim, head)
  out_ref[0] = out.astype(out_ref.dtype).reshape(out_ref.shape[1:])


def _backward_kernel(options, num_tokens, head_dim, *refs):
  arrays, scales_ref, rotary_ref, outs = _split(options, refs, 4)
  rows, normal, rotated, rotary, factors = _prepare(
    options, num_tokens, head_dim, arrays, scales_ref, rotary_ref
  )
  (query, key), (_, _, value, cotangent) = rotated, rows
  query_grad: Any = 0.0
  key_grad: Any = 0.0
  value_grad: Any = 0.0
  for head in range(value.shape[-1] // head_dim):
    only = lambda x: _keep_head(x, head_dim, head)  # noqa: B023
    weights = _weights(options, only(query), key)
    value_grad += _matmul(weights.astype(value.dtype), only(cotangent), 0, 0)
    weights_grad = _matmul(only(cotangent), value, 1, 1)
    mean = jnp.sum(weights_grad * weights, axis=-1, keepdims=True)
    scores_grad = (weights * (weights_grad - mean)).astype(query.dtype)
    query_grad += only(_matmul(scores_grad, key, 1, 0))
    key_grad += _matmul(scores_grad, only(query), 0, 0)
  grads, sums = [query_grad, key_grad], []
  for i, (x, factor) in enumerate(normal):
    grad = _rotate_backward(grads[i], rotary, head_dim) * factors[i]
    sums.append(jnp.sum(grad * x, axis=0, keepdims=True))
    grads[i] = _normalise_backward(
      x, factor, grad * scales_ref[i : i + 1], head_dim
    )
  for ref, grad in zip(outs[:3], (*grads, value_grad), strict=True):
    ref[0] = grad.astype(ref.dtype).reshape(ref.shape[1:])
  outs[3][0, 0, 0] = jnp.concatenate(sums, axis=0)
