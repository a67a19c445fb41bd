"""Attention of one head over a block of rows, as one TPU kernel.

In space the rows are the N tokens of a frame. In time they are the T frames
of P neighbouring places, read as they lie: scores among all T * P rows are
one matrix product of which the mask keeps pairs of the same place. That is P
times too many scores, on a matrix unit of 128 x 128 that 16 frames alone
would leave idle, and no array is transposed on the way.

Queries and keys are normalised (and in time turned) inside: as operations of
their own they read and write each array several times. Scores never leave the
chip's fast memory, and the backward kernel computes them again.

The lanes of a register are 128. Narrower heads share a block: each head sees
the others' channels as zeros, in products that would have filled up with
zeros anyway.

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
# merging the two axes moves nothing.
PLACES = 16
LANES = 128
# Scores of so many rows, their gradients and what is in flight fit into half
# of the fast memory of the chips that the kernel is for (v5p, v5e, v6e).
MAX_ROWS = 1024
_VMEM_BYTES = 48 * 2**20

_MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Options:
  """What is fixed when the kernel is compiled.

  Attributes:
    num_heads: H, on this device.
    in_time: Whether rows are frames (causal) or the tokens of a frame.
    window: Frames seen, the own one included; 0 for all. In time only.
    num_valid: Tokens that may be seen, the first ones; 0 for all. In space.
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
  """Returns whether the kernel takes arrays of this size.

  Args:
    num_frames: T.
    num_tokens: N.
    num_heads: H, on one device.
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
  """Returns G, how many heads of this width share a block."""
  return max(1, LANES // head_dim)


def tables(cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Lays rotary angles out for `attend`.

  Args:
    cos: float32 [T, K / 2].
    sin: float32 [T, K / 2].

  Returns:
    float32 [2, T, P, K]: what multiplies a row, and what multiplies the row
    with the halves of each head exchanged.
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
  turns: jax.Array,
) -> jax.Array:
  """Softmax attention of normalised queries and keys.

  Args:
    options: See `Options`.
    query: [B, T, N, C], float32 or bfloat16, as projected.
    key: [B, T, N, C].
    value: [B, T, N, C].
    scales: float32 [2, K], of the norms of queries and keys.
    turns: float32 [2, T, P, K] from `tables`; not read in space. It gets no
      gradient.

  Returns:
    [B, T, N, C] in the dtype of `value`; scores are float32.
  """
  return _attend_forward(options, query, key, value, scales, turns)[0]


def _attend_forward(options, query, key, value, scales, turns):
  chex.assert_rank(query, 4)
  chex.assert_equal_shape([query, key, value])
  (out,) = _call(
    options,
    _forward_kernel,
    "forward",
    (query, key, value),
    scales,
    turns,
    1,
    False,
  )
  return out, (query, key, value, scales, turns)


def _attend_backward(options, saved, cotangent):
  *inputs, scales, turns = saved
  *grads, scales_grad = _call(
    options,
    _backward_kernel,
    "backward",
    (*inputs, cotangent),
    scales,
    turns,
    3,
    True,
  )
  scales_grad = scales_grad.sum((0, 1, 2))  # [2, L]
  scales_grad = scales_grad.reshape(2, -1, scales.shape[-1]).sum(1)
  return (*grads, scales_grad, jnp.zeros_like(turns))


attend.defvjp(_attend_forward, _attend_backward)


def _call(options, kernel, name, arrays, scales, turns, outputs, sums):
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
  small = (scales, turns) if options.in_time else (scales,)
  # Heads of a block have the same scales and angles.
  small = [jnp.concatenate([x] * together, axis=-1) for x in small]
  out_specs = [block] * outputs
  out_shape = [jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)] * outputs
  if sums:
    # Each block's own share of the scales' gradients: blocks run in any order.
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


def _rows(options, num_tokens, ref):
  """Returns a block as [R, K], frames first; zero beyond the last place.

  What lies beyond is undefined: it could be NaN, which a weight of zero does
  not undo.
  """
  block = ref[0]
  if options.in_time and num_tokens % PLACES:
    place = pl.program_id(1) * PLACES + jax.lax.broadcasted_iota(
      jnp.int32, block.shape, 1
    )
    block = jnp.where(place < num_tokens, block, jnp.zeros_like(block))
  return block.reshape(-1, block.shape[-1])


def _lanes(x, head_dim, head):
  """Returns x with zeros in the channels of other heads."""
  if head_dim == x.shape[-1]:
    return x
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane // head_dim == head, x, jnp.zeros_like(x))


def _mean(x, head_dim):
  """Returns the mean over each head's channels, as wide as x or of width 1."""
  channels = x.shape[-1]
  if head_dim == channels:
    return jnp.mean(x, axis=-1, keepdims=True)
  return sum(
    _lanes(
      jnp.broadcast_to(
        jnp.sum(_lanes(x, head_dim, head), axis=-1, keepdims=True) / head_dim,
        x.shape,
      ),
      head_dim,
      head,
    )
    for head in range(channels // head_dim)
  )


def _exchange(x, head_dim):
  """Returns x with the halves of each head exchanged."""
  half, channels = head_dim // 2, x.shape[-1]
  after = pltpu.roll(x, half, 1)
  if head_dim == channels:
    return after
  before = pltpu.roll(x, channels - half, 1)
  lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(lane % head_dim < half, before, after)


def _turn(x, turns, head_dim):
  """Turns pairs of channels; `turns` is None in space."""
  if turns is None:
    return x
  return x * turns[0] + _exchange(x, head_dim) * turns[1]


def _turn_back(grad, turns, head_dim):
  """Returns the gradient of what `_turn` took."""
  if turns is None:
    return grad
  return grad * turns[0] + _exchange(grad * turns[1], head_dim)


def _normal(options, x, head_dim):
  """Returns rows of root mean square 1, and what they were multiplied by."""
  x = x.astype(jnp.float32)
  factor = jax.lax.rsqrt(_mean(x * x, head_dim) + options.epsilon)
  return x * factor, factor


def _normal_back(normal, factor, grad, head_dim):
  """Returns the gradient of what `_normal` took."""
  return factor * (grad - normal * _mean(grad * normal, head_dim))


def _product(a, b, contract_a, contract_b):
  return jax.lax.dot_general(
    a,
    b,
    (((contract_a,), (contract_b,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def _weights(options, query, key):
  """Returns softmax weights, float32 [R, R], of scaled queries."""
  scores = _product(query, key, 1, 1)
  row = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  column = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
  if options.in_time:
    distance = row - column  # A multiple of P exactly at the same place.
    seen = (distance >= 0) & (distance % PLACES == 0)
    if options.window:
      seen &= distance < options.window * PLACES
    scores = jnp.where(seen, scores, _MASKED)
  elif options.num_valid:
    scores = jnp.where(column < options.num_valid, scores, _MASKED)
  weights = jnp.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def _prepare(options, num_tokens, head_dim, refs, scales_ref, turns_ref):
  """Returns the rows of each array, normalised queries and keys, and turns."""
  turns = None
  if turns_ref is not None:
    turns = turns_ref[...].reshape(2, -1, turns_ref.shape[-1])
  rows = [_rows(options, num_tokens, ref) for ref in refs]
  normal = [_normal(options, x, head_dim) for x in rows[:2]]
  # Queries carry the factor of the scores.
  factors = (head_dim**-0.5, 1.0)
  turned = [
    _turn(x * (scales_ref[i : i + 1] * factors[i]), turns, head_dim).astype(
      rows[i].dtype
    )
    for i, (x, _) in enumerate(normal)
  ]
  return rows, normal, turned, turns, factors


def _split(options, refs, inputs):
  """Returns references of arrays, scales, turns (or None) and results."""
  arrays, rest = refs[:inputs], refs[inputs:]
  if options.in_time:
    return arrays, rest[0], rest[1], rest[2:]
  return arrays, rest[0], None, rest[1:]


def _forward_kernel(options, num_tokens, head_dim, *refs):
  arrays, scales_ref, turns_ref, (out_ref,) = _split(options, refs, 3)
  rows, _, (query, key), _, _ = _prepare(
    options, num_tokens, head_dim, arrays, scales_ref, turns_ref
  )
  value = rows[2]
  out: Any = 0.0
  for head in range(value.shape[-1] // head_dim):
    weights = _weights(options, _lanes(query, head_dim, head), key)
    mixed = _product(weights.astype(value.dtype), value, 1, 0)
    out += _lanes(mixed, head_dim, head)
  out_ref[0] = out.astype(out_ref.dtype).reshape(out_ref.shape[1:])


def _backward_kernel(options, num_tokens, head_dim, *refs):
  arrays, scales_ref, turns_ref, outs = _split(options, refs, 4)
  rows, normal, turned, turns, factors = _prepare(
    options, num_tokens, head_dim, arrays, scales_ref, turns_ref
  )
  (query, key), (_, _, value, cotangent) = turned, rows
  query_grad: Any = 0.0
  key_grad: Any = 0.0
  value_grad: Any = 0.0
  for head in range(value.shape[-1] // head_dim):
    only = lambda x: _lanes(x, head_dim, head)  # noqa: B023
    weights = _weights(options, only(query), key)
    value_grad += _product(weights.astype(value.dtype), only(cotangent), 0, 0)
    weights_grad = _product(only(cotangent), value, 1, 1)
    mean = jnp.sum(weights_grad * weights, axis=-1, keepdims=True)
    scores_grad = (weights * (weights_grad - mean)).astype(query.dtype)
    query_grad += only(_product(scores_grad, key, 1, 0))
    key_grad += _product(scores_grad, only(query), 0, 0)
  grads, sums = [query_grad, key_grad], []
  for i, (x, factor) in enumerate(normal):
    grad = _turn_back(grads[i], turns, head_dim) * factors[i]
    sums.append(jnp.sum(grad * x, axis=0, keepdims=True))
    grads[i] = _normal_back(x, factor, grad * scales_ref[i : i + 1], head_dim)
  for ref, grad in zip(outs[:3], (*grads, value_grad), strict=True):
    ref[0] = grad.astype(ref.dtype).reshape(ref.shape[1:])
  outs[3][0, 0, 0] = jnp.concatenate(sums, axis=0)
