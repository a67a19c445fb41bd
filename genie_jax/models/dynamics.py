"""Dynamics: MaskGIT over the tokens of the next frame (Genie, section 2.1).

The input at position t is frame t itself, partly hidden, and the action that
leads to it; the output at position t predicts the hidden tokens of frame t.
The paper's text has inputs 1..T-1 and outputs 2..T, but its sampler feeds the
tokens of frame t that are already drawn back in, which requires frame t as an
input. Predictions for frames before t do not depend on frame t or its action.

Shapes:
  h, w  token grid; N = h * w       V   codes
  A     latent actions              Tc  frames in a cache
"""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.nn import initializers, patches, st_transformer
from genie_jax.sharding import rules


class Dynamics(nn.Module):
  """Predicts hidden tokens from past frames, actions and known tokens.

  Attributes:
    grid: (h, w).
    num_codes: V.
    num_latent_actions: A (or the number of true actions).
    transformer: Fields of the `STTransformer`.
    actions_enter: "add" adds the action's embedding to each token (the paper's
      choice); "prepend" makes it an additional token of the frame.
    last_frame: Whether the embeddings of the tokens of frame t - 1 are added
      at position t, which are the inputs in the paper's text. Attention in
      time can also read them, but only in later layers and after many steps
      of training.
    last_frame_reach: With `last_frame`, how many places away the tokens of
      frame t - 1 are that also enter at each position, through one linear map
      of the square around it. What moves by a token then needs no attention.
      0 for none.
  """

  grid: tuple[int, int]
  num_codes: int
  num_latent_actions: int
  transformer: Any
  actions_enter: str = "add"
  last_frame: bool = False
  last_frame_reach: int = 0

  # Kernels, in addition to those of the stack, that each call casts to the
  # stack's dtype.
  kernels_in_dtype = ("to_logits", "last_frame_around")

  def setup(self):
    fields = dict(self.transformer)
    width = fields["width"]
    table = lambda name, count, axes, deviation: self.param(
      name,
      initializers.labelled(nn.initializers.normal(deviation), axes),
      (count, width),
      jnp.float32,
    )
    self.token_embedding = table(
      "token_embedding", self.num_codes, ("vocab", "embed"), 1.0
    )
    self.hidden_token = table("hidden_token", 1, (None, "embed"), 1.0)
    # The last row is for the first frame of a window, which has no incoming
    # action.
    self.action_embedding = table(
      "action_embedding", self.num_latent_actions + 1, ("table", "embed"), 1.0
    )
    if self.last_frame:
      self.last_frame_scale = self.param(
        "last_frame_scale",
        initializers.labelled(nn.initializers.ones, ("norm",)),
        (width,),
        jnp.float32,
      )
    if self.last_frame_reach:
      self.last_frame_around = initializers.Projection(
        (width,),
        ("embed",),
        inputs=2,
        input_axes=(None, None),
        scale=0.0,
        dtype=jnp.dtype(fields["dtype"]),
      )
    self.position = st_transformer.GridPosition(self.grid)
    self.stack = st_transformer.STTransformer(**fields)
    self.to_logits = initializers.Projection(
      (self.num_codes,), ("vocab",), bias=True, dtype=jnp.dtype(fields["dtype"])
    )

  @property
  def no_action(self) -> int:
    """The index that means "no incoming action"."""
    return self.num_latent_actions

  def __call__(
    self, tokens: jax.Array, latent_actions: jax.Array, hidden: jax.Array
  ) -> jax.Array:
    """Returns logits for every code at every position of the grid.

    Args:
      tokens: int32 [B, T, h, w]; ignored where hidden.
      latent_actions: int32 [B, T-1]; action t leads from frame t to t + 1.
      hidden: bool [B, T, h, w], True where the model must predict.

    Returns:
      Logits, float32 [B, T, h, w, V].
    """
    chex.assert_equal_shape([tokens, hidden])
    chex.assert_shape(latent_actions, (tokens.shape[0], tokens.shape[1] - 1))
    incoming = jnp.pad(
      latent_actions, ((0, 0), (1, 0)), constant_values=self.no_action
    )
    logits, _ = self._run(tokens, incoming, hidden, None, 0, None)
    return logits

  def step(
    self,
    tokens: jax.Array,
    incoming: jax.Array,
    hidden: jax.Array,
    cache: st_transformer.Cache | None,
    position: jax.Array | int,
    last: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Returns logits for frames that follow those in a cache.

    Args:
      tokens: int32 [B, T, h, w], usually T = 1.
      incoming: int32 [B, T], the action that leads to each frame, or
        `no_action`.
      hidden: bool [B, T, h, w].
      cache: Keys and values of the previous frames.
      position: int32 scalar, the frame number of tokens[:, 0].
      last: int32 [B, h, w], the tokens of the frame before tokens[:, 0]; None
        if tokens[:, 0] is the first frame of its window. Only used by a model
        with `last_frame`.

    Returns:
      Logits float32 [B, T, h, w, V], and the keys and values of the T frames.
    """
    return self._run(tokens, incoming, hidden, cache, position, last)

  @nn.nowrap
  def empty_cache(self, num_clips: int, slots: int) -> st_transformer.Cache:
    """Returns an empty cache for `slots` frames of `num_clips` clips."""
    num_tokens = self.grid[0] * self.grid[1]
    num_tokens += self.actions_enter == "prepend"
    return st_transformer.empty_cache(
      self.transformer, num_clips, num_tokens, slots
    )

  def _run(self, tokens, incoming, hidden, cache, position, last):
    b, t = tokens.shape[:2]
    flat = tokens.reshape(b, t, -1)  # [B, T, N]
    # Tables are gathered before the lookup: from a split table the partitioner
    # would copy either the table or the results from device to device.
    whole = lambda table: rules.constrain(table, (None, None))
    embed = lambda z: jnp.take(whole(self.token_embedding), z, axis=0)
    x = jnp.where(
      hidden.reshape(b, t, -1, 1), self.hidden_token[0], embed(flat)
    )
    if self.last_frame:
      x += self._embed_last(embed, flat, last)
    action = jnp.take(whole(self.action_embedding), incoming, axis=0)[
      :, :, None
    ]
    x = self.position(x)
    if self.actions_enter == "add":
      x, own = self.stack(x + action, cache, position)
    else:
      x, own = self.stack(jnp.concatenate([action, x], axis=2), cache, position)
      x = x[:, :, 1:]
    logits = self.to_logits(x).astype(jnp.float32)
    return logits.reshape(b, t, *self.grid, self.num_codes), own

  def _embed_last(self, embed, flat, last):
    """Returns each position's embedding of the frame before, or zero.

    The frame before is used without its mask, because when a frame is played
    all tokens of the frame before are known.
    """
    if last is None:
      first = jnp.zeros_like(embed(flat[:, :1]))
    else:
      first = embed(last.reshape(flat.shape[0], 1, -1))
    before = jnp.concatenate([first, embed(flat[:, :-1])], axis=1)
    same_place = before * self.last_frame_scale
    if not self.last_frame_reach:
      return same_place
    squares = patches.squares(before, self.grid, self.last_frame_reach)
    return same_place + self.last_frame_around(squares)
