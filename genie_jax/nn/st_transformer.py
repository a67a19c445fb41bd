"""Space-time transformer (Genie, section 2).

Shapes:
  B  clips in the batch         N  tokens in one frame (h * w)
  T  frames in one clip         D  width of the residual stream
  H  attention heads            K  width of one head
  Y  layers
"""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import ad_checkpoint

from genie_jax.nn import attention, initializers, norms
from genie_jax.sharding import rules

REMAT_POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "attention": jax.checkpoint_policies.save_only_these_names("attention"),
  # Saves every product except the logits: nothing large is recomputed.
  "products": jax.checkpoint_policies.save_only_these_names(
    "qkv", "attention", "stream", "mlp_hidden"
  ),
  "attention_mlp": jax.checkpoint_policies.save_only_these_names(
    "attention", "mlp_hidden"
  ),
  # Like "attention", but saved in host memory until the backward pass.
  "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=["attention"],
    offload_src="device",
    offload_dst="pinned_host",
  ),
}

# Logical axes of activations that are split among chips by frame, or by place
# (position in the token grid).
_BY_FRAME = ("act_batch", "act_time", None, "act_embed")
_BY_PLACE = ("act_batch", None, "act_space", "act_embed")


# Rows of a TPU tile. If the tokens of a frame on one chip were not a multiple,
# they would be copied wherever frames and tokens are merged for a product.
_TILE_ROWS = 8


def _pin(x, *layouts):
  """Constrains x to one layout after the other, if frames are split.

  Without a split all layouts are the same, and constraints would only prevent
  the compiler from fusing.
  """
  if rules.ways("act_time") > 1:
    for layout in layouts:
      x = rules.constrain(x, layout)
  return x


@flax.struct.dataclass
class Cache:
  """Keys and values of the frames that attention in time has seen.

  Attributes:
    key: [Y, B, Tc, N, H, K].
    value: [Y, B, Tc, N, H, K].
    positions: int32 [Tc], the frame number of each slot; -1 where empty.
  """

  key: jax.Array
  value: jax.Array
  positions: jax.Array

  def write(
    self, own: tuple[jax.Array, jax.Array], position: jax.Array | int
  ) -> "Cache":
    """Returns a cache with these frames added, frame t in slot t mod Tc.

    Args:
      own: Keys and values [Y, B, T, N, H, K]; the last Tc frames are kept.
      position: int32 scalar, the frame number of the first of the T frames.
    """
    count, slots = own[0].shape[2], self.positions.shape[0]
    if count == 1:
      slot = position % slots
      put = lambda all_, one: jax.lax.dynamic_update_slice_in_dim(
        all_, one.astype(all_.dtype), slot, axis=2
      )
      at = self.positions.at[slot].set(position)
    else:
      # For each slot the newest of the frames that belongs in it; negative if
      # there is none.
      newest = position + count - 1
      frame = count - 1 - (newest - np.arange(slots)) % slots
      written = frame >= 0
      source = frame.clip(0)
      put = lambda all_, new: jnp.where(
        written[:, None, None, None],
        new[:, :, source].astype(all_.dtype),
        all_,
      )
      at = jnp.where(written, position + frame, self.positions)
    return Cache(
      put(self.key, own[0]), put(self.value, own[1]), at.astype(jnp.int32)
    )

  def before(self, position: jax.Array) -> "Cache":
    """Returns a cache in which frames from `position` on are marked empty."""
    return dataclasses.replace(
      self, positions=jnp.where(self.positions < position, self.positions, -1)
    )

  def renumbered(self, shift: int) -> "Cache":
    """Returns a cache whose frame numbers are reduced by `shift`.

    Scores depend only on distances between frames, so all positions can be
    shifted if the keys are rotated accordingly.
    """
    turns = jnp.full(self.positions.shape, -shift)
    rotate = lambda key: attention.rotate(key, turns)
    return dataclasses.replace(
      self,
      key=jax.vmap(rotate)(self.key),
      positions=self.positions - shift,
    )


class STBlock(nn.Module):
  """Attention within each frame, then causally across frames, then one MLP.

  One MLP after both attentions, not one after each: Genie (section 2) drops
  the post-spatial MLP to spend those parameters elsewhere.

  Attributes:
    num_valid: The first `num_valid` of the N tokens of a frame are real, the
      others are padding that `STTransformer` added; None if all are real.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  window: int = 0
  output_scale: float = 1.0
  attention: str = "auto"
  num_valid: int | None = None
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(
    self, x: jax.Array, cache, positions, cached_positions
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Mixes x: [B, T, N, D] in space and in time.

    Args:
      x: [B, T, N, D].
      cache: This layer's keys and values [B, Tc, N, H, K], or None.
      positions: int32 [T] frame numbers.
      cached_positions: int32 [Tc] frame numbers of the cache, or None.

    Returns:
      x in the same shape and dtype, and its keys and values of attention in
      time.
    """
    chex.assert_rank(x, 4)
    norm = lambda name: norms.RMSNorm(dtype=self.dtype, name=name)
    attend = lambda causal, name: attention.Attention(
      self.num_heads,
      self.head_dim,
      causal,
      self.window if causal else 0,
      self.output_scale,
      self.attention,
      self.dtype,
      name=name,
    )

    # Activations are split among chips by frame for attention in space, and by
    # place for attention in time: one all-to-all each way. The layouts before
    # and after each exchange are both constrained, because otherwise the
    # partitioner would move each term of a sum separately. The second exchange
    # is at the end of a layer, so that the activations saved for the backward
    # pass are saved after it.
    x = rules.constrain(x, _BY_FRAME)
    mixed, _ = attend(False, "space")(
      norm("space_norm")(x), num_valid=self.num_valid
    )
    x = _pin(x + mixed, _BY_FRAME, _BY_PLACE)
    x = ad_checkpoint.checkpoint_name(x, "stream")
    x = rules.constrain(x, _BY_PLACE)
    mixed, own = attend(True, "time")(
      norm("time_norm")(x), positions, cache, cached_positions
    )
    assert own is not None  # Attention in time returns keys and values.
    x = _pin(x + mixed, _BY_PLACE)
    x = ad_checkpoint.checkpoint_name(x, "stream")
    x += self._mlp(norm("mlp_norm")(x))
    return _pin(x, _BY_PLACE, _BY_FRAME), own

  def _mlp(self, x: jax.Array) -> jax.Array:
    hidden = initializers.Projection(
      (self.mlp_dim,), ("mlp",), dtype=self.dtype, name="mlp_in"
    )(x)
    hidden = rules.constrain(
      hidden, ("act_batch", None, "act_space", "act_mlp")
    )
    hidden = ad_checkpoint.checkpoint_name(hidden, "mlp_hidden")
    hidden = jax.nn.gelu(hidden)
    return initializers.Projection(
      (x.shape[-1],),
      ("embed",),
      input_axes=("mlp",),
      scale=self.output_scale,
      dtype=self.dtype,
      name="mlp_out",
    )(hidden)


class STTransformer(nn.Module):
  """A stack of space-time blocks, followed by a norm.

  Layers are scanned, so that compile time does not grow with depth, and
  recomputed in the backward pass according to `remat`.

  Attributes:
    num_layers: Y.
    width: D.
    num_heads: H.
    head_dim: K.
    mlp_dim: Width of the MLP's hidden layer.
    window: Number of frames that attention in time can see, including the
      query's own; 0 for all.
    final_norm: Whether the stack ends in a norm; without it the residual
      stream keeps the magnitude of its input.
    residual_scale: Factor on the initial magnitude of what each layer adds to
      the residual stream; with 0 the untrained stack is the identity (apart
      from the norm).
    remat: A name in REMAT_POLICIES: which activations are saved for the
      backward pass.
    attention: A name in `attention.IMPLEMENTATIONS`.
    unroll: Number of layers per iteration of the scan's loop. Unrolling all
      layers makes a small model faster on a CPU (by up to a quarter of a
      training step in our measurements).
    dtype: Name of the dtype of the activations.
  """

  num_layers: int
  width: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  window: int = 0
  final_norm: bool = True
  residual_scale: float = 1.0
  remat: str = "none"
  attention: str = "auto"
  unroll: int = 1
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(
    self, x: jax.Array, cache: Cache | None = None, first: Any = 0
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Runs the stack.

    Args:
      x: [B, T, N, D].
      cache: Keys and values of earlier frames, which attention in time also
        sees.
      first: int32 scalar, the frame number of x[:, 0].

    Returns:
      [B, T, N, D], and the keys and values of x for attention in time, each
      [Y, B, T, N, H, K] (the compiler removes them if they are not used).
    """
    dtype = jnp.dtype(self.dtype)
    block = STBlock
    if self.remat != "none":
      block = nn.remat(
        block, policy=REMAT_POLICIES[self.remat], prevent_cse=False
      )
    frames, tokens = x.shape[1:3]
    # Sizes that are not divisible by the mesh's frame axis are padded: with
    # frames at the end, which the causal mask hides, and with tokens, which
    # attention in space masks.
    share = rules.ways("act_time")
    unit = (
      share * _TILE_ROWS if share > 1 and rules.platform() == "tpu" else share
    )
    x = jnp.pad(x, ((0, 0), (0, -frames % share), (0, -tokens % unit), (0, 0)))
    num_valid = None if x.shape[2] == tokens else tokens
    in_axes: Any = (0, nn.broadcast, nn.broadcast)
    layers = nn.scan(
      block,
      variable_axes={"params": 0},
      split_rngs={"params": True},
      in_axes=in_axes,
      length=self.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )(
      self.num_heads,
      self.head_dim,
      self.mlp_dim,
      self.window,
      # Each layer adds three terms to the residual stream; this scale keeps
      # the variance of all of them together at 1.
      self.residual_scale * (3 * self.num_layers) ** -0.5,
      self.attention,
      num_valid,
      dtype,
      name="layers",
    )
    positions = first + jnp.arange(x.shape[1], dtype=jnp.int32)
    pair = None if cache is None else (cache.key, cache.value)
    at = None if cache is None else cache.positions
    x, own = layers(x.astype(dtype), pair, positions, at)
    x = x[:, :frames, :tokens]
    own = jax.tree.map(lambda y: y[:, :, :frames, :tokens], own)
    if self.final_norm:
      x = norms.RMSNorm(dtype=dtype, name="norm")(x)
    return x, own


def empty_cache(
  fields: Any, num_clips: int, num_tokens: int, slots: int
) -> Cache:
  """Returns a cache in which all slots are empty.

  Args:
    fields: The fields of the `STTransformer` that will fill it.
    num_clips: B.
    num_tokens: N.
    slots: Tc, the number of frames that it can hold.
  """
  shape = (
    fields["num_layers"],
    num_clips,
    slots,
    num_tokens,
    fields["num_heads"],
    fields["head_dim"],
  )
  dtype = jnp.dtype(fields["dtype"])
  return Cache(
    jnp.zeros(shape, dtype),
    jnp.zeros(shape, dtype),
    jnp.full((slots,), -1, jnp.int32),
  )


class GridPosition(nn.Module):
  """Adds a learned vector for the row and one for the column of each token.

  The vectors start at zero: random values would be larger than the
  differences between similar patches. The positions are absolute, not relative
  as those of frames, because the frame size of a world is fixed.
  """

  grid: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Adds positions to x: [B, T, h * w, D]."""
    h, w = self.grid
    table = lambda name, count: self.param(
      name,
      initializers.labelled(nn.initializers.zeros, (None, "embed")),
      (count, x.shape[-1]),
      jnp.float32,
    )
    place = (
      table("row_position", h)[:, None] + table("column_position", w)[None]
    )  # [h, w, D]
    return x + place.reshape(h * w, -1).astype(x.dtype)
