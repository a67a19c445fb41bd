"""Attention within a frame on a TPU, without writing scores to memory.

Wraps the splash kernel that is part of JAX: tokens are padded to whole blocks,
and padded keys are masked by their segment ids.

Shapes:
  F  frames of all clips        M  N padded to a multiple of the block
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

# With fewer tokens the scores of a frame are so small that XLA's plain
# attention reads less memory than the padded kernel.
MIN_TOKENS = 256
_LANES = 128  # Blocks of keys are multiples of a register's lanes.
_MAX_BLOCK = 1024  # Float32 scores of a block of this side take 4 MiB.


def fits(num_tokens: int, head_dim: int) -> bool:
  """Returns whether the kernel supports this size and is worth using for it."""
  return num_tokens >= MIN_TOKENS and head_dim % 64 == 0


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  num_valid: int | None = None,
  checkpoint_name: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Softmax attention among all tokens of a frame.

  Args:
    query: [B, T, N, H, K], not yet scaled.
    key: [B, T, N, H, K].
    value: [B, T, N, H, K].
    num_valid: Only the first `num_valid` tokens are attended to; None for all.
    checkpoint_name: Name under which a remat policy may save the residuals
      for the backward pass.
    interpret: Whether to run the kernel as plain JAX, for tests on a CPU.

  Returns:
    [B, T, N, H, K] in the dtype of `value`.
  """
  chex.assert_rank(query, 5)
  b, t, n, h, k = query.shape
  num_valid = n if num_valid is None else num_valid
  block, padded = _blocks(n)
  # The kernel does not scale scores. Scaling queries here is fused with the
  # norm before it.
  query = query * jnp.asarray(k**-0.5, query.dtype)

  def arrange(x):
    x = x.transpose(0, 1, 3, 2, 4).reshape(b * t, h, n, k)
    return jnp.pad(x, ((0, 0), (0, 0), (0, padded - n), (0, 0)))

  seen = np.arange(padded) < num_valid
  # Padded queries also attend to valid keys: a softmax over no keys is NaN.
  segments = splash_attention.SegmentIds(
    q=jnp.ones((padded,), jnp.int32), kv=jnp.asarray(seen, jnp.int32)
  )
  kernel = _kernel(h, padded, block, checkpoint_name, interpret)
  out: Any = jax.vmap(kernel, in_axes=(0, 0, 0, None))(
    arrange(query), arrange(key), arrange(value), segments
  )
  out = out[:, :, :n].reshape(b, t, h, n, k)
  return out.transpose(0, 1, 3, 2, 4).astype(value.dtype)


def _blocks(num_tokens: int) -> tuple[int, int]:
  """Returns the block size and the padded number of tokens.

  It chooses the least padding, and of equals the largest block.
  """
  choices = []
  for count in range(1, 1 + -(-num_tokens // _LANES)):
    block = -(-num_tokens // (count * _LANES)) * _LANES
    if block <= _MAX_BLOCK:
      choices.append((count * block, count, block))
  padded, _, block = min(choices)
  return block, padded


@functools.lru_cache(maxsize=32)
def _kernel(num_heads, num_tokens, block, checkpoint_name, interpret):
  mask = splash_attention.MultiHeadMask(
    [splash_attention.FullMask((num_tokens, num_tokens))] * num_heads
  )
  sizes = splash_attention.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  # The kernel contains constant tables. Because the kernel is cached, tables
  # created while a function is traced must not become values of that trace.
  with jax.ensure_compile_time_eval():
    return splash_attention.make_splash_mha(
      mask,
      head_shards=1,
      q_seq_shards=1,
      block_sizes=sizes,
      residual_checkpoint_name=checkpoint_name,
      interpret=interpret,
    )
