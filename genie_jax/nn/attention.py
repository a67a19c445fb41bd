"""Attention over the tokens of a frame, or over frames at one position.

"Space" is attention among the tokens of one frame. "Time" is attention among
the tokens at one place, a position in the token grid, in successive frames.

Shapes:
  L  attended length            H  attention heads
  D  width of the residual      K  width of one head
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from genie_jax.core import chips
from genie_jax.nn import fused, initializers, norms, splash
from genie_jax.sharding import rules

# Wavelengths of the rotary pairs range from 2 pi to 2 pi times about this many
# frames. A window has 16 frames, so with the usual base of 10,000 most pairs
# would hardly rotate.
_ROTARY_BASE = 100.0

# The score of masked pairs: its softmax weight is 0, and it stays finite.
_MASKED = -1e30


# How attention is computed. "auto": with the fused kernels of the chip;
# "plain": without fused kernels; "interpreted": with the TPU kernels on any
# device, slowly, for tests.
IMPLEMENTATIONS = ("auto", "plain", "interpreted")

# On a GPU a fused kernel does not pay off for shorter sequences.
_CUDNN_MIN_TOKENS = 128

# Logical axes of arrays that are split among chips by frame, or by place.
_BY_FRAME = ("act_batch", "act_time", None, "act_heads", None)
_BY_PLACE = ("act_batch", None, "act_space", "act_heads")


def space_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  num_valid: int | None = None,
  implementation: str = "auto",
) -> jax.Array:
  """Softmax attention among all tokens of a frame.

  The scores of 920 tokens and 36 heads take 2 GB per clip. Fused kernels do
  not write scores to memory, so they are used where the chip has them: splash
  attention on a TPU (where `fused_attention` does not fit), cuDNN on a GPU.

  Args:
    query: [B, T, N, H, K].
    key: [B, T, N, H, K].
    value: [B, T, N, H, K].
    num_valid: Only the first `num_valid` tokens are attended to; None for all.
    implementation: A name in IMPLEMENTATIONS.

  Returns:
    [B, T, N, H, K] in the dtype of `value`.
  """
  chex.assert_equal_shape([query, key, value])
  n, k = query.shape[-3], query.shape[-1]
  platform = _platform(implementation)
  if platform == "tpu" and splash.fits(n, k):
    attend = functools.partial(
      splash.attend,
      num_valid=num_valid,
      checkpoint_name="attention",
      interpret=implementation == "interpreted",
    )
    return rules.per_device(attend, (_BY_FRAME,) * 3, _BY_FRAME)(
      query, key, value
    )
  if platform == "gpu" and fits_cudnn(n, k, query.dtype):
    return rules.per_device(
      functools.partial(_cudnn_attention, num_valid=num_valid),
      (_BY_FRAME,) * 3,
      _BY_FRAME,
    )(query, key, value)
  # Without `per_device`, XLA's partitioner would gather all frames in the
  # backward pass.
  return rules.per_device(
    functools.partial(plain_space_attention, num_valid=num_valid),
    (_BY_FRAME,) * 3,
    _BY_FRAME,
  )(query, key, value)


def fits_cudnn(tokens: int, head_dim: int, dtype: jnp.dtype) -> bool:
  """Returns whether attention within frames uses cuDNN on a GPU.

  Args:
    tokens: Tokens of a frame.
    head_dim: Width of a head.
    dtype: Dtype of the queries.
  """
  return (
    tokens >= _CUDNN_MIN_TOKENS
    and head_dim % 8 == 0
    and head_dim <= 128
    and dtype == jnp.bfloat16
  )


def _platform(implementation: str) -> str:
  """Returns the platform to choose kernels for: "tpu", "gpu" or "cpu"."""
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"attention={implementation!r} is unknown; use one of "
      f"{', '.join(IMPLEMENTATIONS)}."
    )
  if implementation == "auto":
    chip = chips.of_device(rules.device_kind())
    return rules.platform() if chip is None or chip.kernels else "cpu"
  return {"plain": "cpu", "interpreted": "tpu"}[implementation]


def _cudnn_attention(query, key, value, num_valid):
  b, t, n, h, k = query.shape
  frames = lambda x: x.reshape(b * t, n, h, k)
  lengths = (
    None if num_valid in (None, n) else jnp.full((b * t,), num_valid, jnp.int32)
  )
  out = jax.nn.dot_product_attention(
    frames(query),
    frames(key),
    frames(value),
    key_value_seq_lengths=lengths,
    implementation="cudnn",
  )
  return out.reshape(b, t, n, h, k)


def plain_space_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  num_valid: int | None = None,
) -> jax.Array:
  """Computes `space_attention` with all scores in memory, in float32."""
  scores = jnp.einsum(
    "...qhk,...lhk->...hql", query, key, preferred_element_type=jnp.float32
  )  # [..., H, N, N]
  scores *= query.shape[-1] ** -0.5
  if num_valid is not None:
    scores = jnp.where(jnp.arange(key.shape[-3]) < num_valid, scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...hql,...lhk->...qhk", weights, value)


def time_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  attention_mask: jax.Array,
) -> jax.Array:
  """Softmax attention over frames, separately at each place.

  The frame axis stays where it is, so callers need not transpose arrays.

  Args:
    query: [B, Tq, N, H, K].
    key: [B, Tk, N, H, K].
    value: [B, Tk, N, H, K].
    attention_mask: bool [Tq, Tk]; True where attention is allowed.

  Returns:
    [B, Tq, N, H, K] in the dtype of `value`.
  """
  chex.assert_equal_shape([key, value])
  scores = jnp.einsum(
    "bqnhk,btnhk->bnhqt", query, key, preferred_element_type=jnp.float32
  )
  scores = jnp.where(attention_mask, scores * query.shape[-1] ** -0.5, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bnhqt,btnhk->bqnhk", weights, value)


def fused_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  scales: jax.Array,
  positions: jax.Array | None,
  options: fused.Options,
) -> jax.Array:
  """Computes norm, rotary embedding and attention in one kernel; see `fused`.

  Args:
    query: [B, T, N, C], the output of the projection, not yet normalised.
    key: [B, T, N, C].
    value: [B, T, N, C].
    scales: float32 [2, K], of the norms of queries and keys.
    positions: [T] frame numbers; None for attention in space.
    options: Kernel options; `num_heads` is the total over all devices.

  Returns:
    [B, T, N, C].
  """
  head_dim = scales.shape[-1]
  if positions is None:
    axes, rotary = _BY_FRAME[:4], jnp.zeros((2, 1, 1, head_dim), jnp.float32)
  else:
    axes, rotary = _BY_PLACE[:4], fused.tables(*_angles(positions, head_dim))
  local = dataclasses.replace(
    options, num_heads=options.num_heads // rules.ways("act_heads")
  )
  attend = functools.partial(fused.attend, local)
  whole = ((None,) * 2, (None,) * 4)
  return rules.per_device(attend, (axes,) * 3 + whole, axes)(
    query, key, value, scales, rotary
  )


def _angles(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
  """Returns cosine and sine, float32 [L, K / 2], of the rotary angles."""
  half = head_dim // 2
  frequency = _ROTARY_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions.astype(jnp.float32)[:, None] * frequency
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
  """Rotates pairs of channels by an angle proportional to the position.

  With rotary embeddings (RoPE, arXiv:2104.09864) scores depend only on the
  distance between two frames, not on where the window begins. The window can
  therefore slide over a rollout while cached keys stay valid, which a table of
  learned positions would not allow.

  Args:
    x: [B, L, N, H, K] with K even.
    positions: [L], float or integer.

  Returns:
    [B, L, N, H, K], same dtype.
  """
  cos, sin = (table[:, None, None] for table in _angles(positions, x.shape[-1]))
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x.dtype)


def causal_mask(
  queries: jax.Array, keys: jax.Array, window: int = 0
) -> jax.Array:
  """Lets a query attend to keys at its own position and before.

  Args:
    queries: [Lq] positions.
    keys: [Lk] positions; keys at negative positions are masked.
    window: Number of positions attended to, including the query's own; 0 for
      all.

  Returns:
    bool [Lq, Lk].
  """
  distance = queries[:, None] - keys[None, :]
  seen = (distance >= 0) & (keys[None, :] >= 0)
  if window:
    seen &= distance < window
  return seen


class Attention(nn.Module):
  """Multi-head self-attention in space (bidirectional) or in time (causal).

  Queries and keys are normalised (QK norm; Genie, section 2.1, for the
  dynamics model) so that scores stay bounded in bfloat16.

  Attributes:
    num_heads: H.
    head_dim: K.
    causal: True for attention in time, which is causal and uses rotary
      positions; False for attention in space.
    window: Number of frames attended to in time, including the query's own; 0
      for all.
    output_scale: Factor on the standard deviation of the output projection.
    implementation: A name in IMPLEMENTATIONS.
    dtype: Dtype of the activations.
  """

  num_heads: int
  head_dim: int
  causal: bool
  window: int = 0
  output_scale: float = 1.0
  implementation: str = "auto"
  dtype: jnp.dtype = jnp.bfloat16

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    cache: tuple[jax.Array, jax.Array] | None = None,
    cached_positions: jax.Array | None = None,
    num_valid: int | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """Attends from x to itself and, in time, to the cached earlier frames.

    Args:
      x: [B, T, N, D].
      positions: [T] frame numbers; used in time only.
      cache: Keys and values of earlier frames, each [B, Tc, N, H, K].
      cached_positions: [Tc] frame numbers of the cache; negative where empty.
      num_valid: Only the first `num_valid` tokens of a frame are attended to;
        used in space only.

    Returns:
      The output [B, T, N, D]. In time also the keys and values of x, each
      [B, T, N, H, K], to be written to a cache; None in space.
    """
    shape = (self.num_heads, self.head_dim)
    fuses = (
      cache is None
      and _platform(self.implementation) == "tpu"
      and (
        fused.fits(
          x.shape[1],
          x.shape[2],
          self.num_heads // rules.ways("act_heads"),
          self.head_dim,
          self.causal,
        )
      )
    )
    qkv = initializers.Projection(
      (3, *shape),
      (None, "heads", "head_dim"),
      dtype=self.dtype,
      apart=fuses,
      name="qkv",
    )(x)
    scales = [
      norms.Scale(name=name)(self.head_dim)
      for name in ("query_norm", "key_norm")
    ]
    mixed: Any
    if fuses:
      mixed = self._fused(qkv, scales, positions, num_valid)
      own = None
      if self.causal:
        # Keys for a cache, computed again outside the kernel. In training
        # they are unused, and the compiler removes this code.
        heads = [part.reshape(*part.shape[:-1], *shape) for part in qkv]
        _, key, value = self._prepare(heads, scales, positions)
        own = (key, value)
    else:
      heads = [qkv[..., i, :, :] for i in range(3)]  # [B, T, N, H, K]
      query, key, value = self._prepare(
        [ad_checkpoint.checkpoint_name(part, "qkv") for part in heads],
        scales,
        positions,
      )
      own = (key, value) if self.causal else None
      if not self.causal:
        mixed = space_attention(
          query, key, value, num_valid, self.implementation
        )
      else:
        assert positions is not None  # Attention in time needs positions.
        key_positions = positions
        if cache is not None:
          assert cached_positions is not None
          key = jnp.concatenate([cache[0], key], axis=1)
          value = jnp.concatenate([cache[1], value], axis=1)
          key_positions = jnp.concatenate([cached_positions, positions])
        by_place = (*_BY_PLACE, None)
        mixed = rules.per_device(
          time_attention, (by_place,) * 3 + ((None, None),), by_place
        )(query, key, value, causal_mask(positions, key_positions, self.window))
    mixed = ad_checkpoint.checkpoint_name(mixed, "attention")
    out = initializers.Projection(
      (x.shape[-1],),
      ("embed",),
      inputs=2,
      input_axes=("heads", "head_dim"),
      scale=self.output_scale,
      dtype=self.dtype,
      name="out",
    )(mixed)
    return out, own

  def _prepare(self, heads, scales, positions):
    """Normalises queries and keys and, in time, rotary them."""
    query, key, value = heads
    query, key = (
      norms.normalise(part, scale, self.dtype)
      for part, scale in zip((query, key), scales, strict=True)
    )
    if self.causal:
      query, key = rotate(query, positions), rotate(key, positions)
    return query, key, value

  def _fused(self, qkv, scales, positions, num_valid):
    """Returns [B, T, N, H, K], computed by the fused kernel."""
    options = fused.Options(
      num_heads=self.num_heads,
      in_time=self.causal,
      window=self.window,
      num_valid=num_valid or 0,
      epsilon=norms.EPSILON,
      interpret=self.implementation == "interpreted",
    )
    query, key, value = (
      ad_checkpoint.checkpoint_name(part, "qkv") for part in qkv
    )
    mixed = fused_attention(
      query,
      key,
      value,
      jnp.stack(scales),
      positions if self.causal else None,
      options,
    )
    return mixed.reshape(*mixed.shape[:-1], self.num_heads, self.head_dim)
