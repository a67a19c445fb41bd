"""Latent action model: learns actions from video alone (Genie, section 2.1).

Shapes:
  N  patches in one frame       E  width of a code
  P  pixel values in one patch  A  latent actions
"""

from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.nn import (
  initializers,
  motion,
  patches,
  quantizers,
  st_transformer,
)

_EDGE = 0.02  # Keeps the logit of black and white pixels finite.
_MATCH_SCALE = 4.0  # Mean differences of pixels are small.


@flax.struct.dataclass
class Prediction:
  """Next frames, predicted through the bottleneck of one action per frame.

  Attributes:
    frames: float32 [B, T-1, H, W, C], predictions of frames 2..T.
    targets: float32 [B, T-1, H, W, C], the true frames 2..T, shrunk like the
      input if `shrink` is not 1.
    latent_actions: int32 [B, T-1].
    quantized: The quantizer's losses and inputs.
  """

  frames: jax.Array
  targets: jax.Array
  latent_actions: jax.Array
  quantized: quantizers.Quantized


class Lam(nn.Module):
  """Infers the action that led from each frame to the next.

  The encoder reads frames 1..t+1 and quantises one learned token per frame. The
  decoder sees only frames 1..t and the actions, so all information about what
  is new in frame t+1 must pass through the action.

  Attributes:
    height: H.
    width: W.
    channels: C.
    patch: Side of a patch, in pixels of the shrunk frame.
    shrink: Factor by which frames are downsampled first; 1 for none.
    num_latent_actions: A.
    code_dim: E, for quantizers that do not determine it themselves.
    encoder: Fields of the encoder's `STTransformer`.
    decoder: Fields of the decoder's `STTransformer`. A small `window` hides
      the history: with 1 the decoder sees only frame t, and the action must
      encode the motion.
    unit_norm: Whether codes have length 1, for the same quantizers.
    actions_enter: "add" adds the action's embedding to each patch (the paper's
      choice); "prepend" makes it an additional token of the frame.
    predict: "change" adds the decoder's output to the logits of frame t, so
      that the untrained model copies frame t; "shift" adds it to frame t after
      moving each patch by a predicted mix of shifts; "frame" is the paper's
      choice.
    reach: (rows, columns), the largest shift of a frame in pixels of the shrunk
      frame; needed for `predict="shift"` and `match`.
    match: Whether the encoder also sees how well each patch matches the shifted
      frames before it, which makes motion easy to find.
    quantizer: Fields from `quantizers.complete`; None for the default.
    buttons: A `button_map.ButtonMap`, which `encode` applies to the codes;
      None if the codes are the buttons. Training does not use it.
  """

  height: int
  width: int
  channels: int
  patch: int
  num_latent_actions: int
  code_dim: int
  encoder: Any
  decoder: Any
  shrink: int = 1
  unit_norm: bool = True
  actions_enter: str = "add"
  predict: str = "frame"
  reach: tuple[int, int] = (0, 0)
  match: bool = False
  quantizer: Any = None
  buttons: Any = None

  def setup(self):
    encoder, decoder = dict(self.encoder), dict(self.decoder)
    self.rows, self.columns = (
      self.height // self.shrink,
      self.width // self.shrink,
    )
    self.grid = patches.grid(self.rows, self.columns, self.patch)
    values = patches.patch_dim(self.patch, self.channels)
    embed = lambda width, dtype: initializers.Projection(
      (width,),
      ("embed",),
      input_axes=(None,),
      bias=True,
      dtype=jnp.dtype(dtype),
    )
    self.encoder_embed = embed(encoder["width"], encoder["dtype"])
    if self.match:
      self.encoder_match = initializers.Projection(
        (encoder["width"],),
        ("embed",),
        input_axes=(None,),
        dtype=jnp.dtype(encoder["dtype"]),
        scale=_MATCH_SCALE,
      )
    self.encoder_position = st_transformer.GridPosition(self.grid)
    self.action_token = self.param(
      "action_token",
      initializers.labelled(nn.initializers.normal(1.0), ("embed",)),
      (encoder["width"],),
      jnp.float32,
    )
    self.encoder_stack = st_transformer.STTransformer(**encoder)
    self.codes = self.make_quantizer()
    self.to_code = initializers.Projection(
      (self.codes.code_dim,), (None,), bias=True, dtype=jnp.float32
    )
    self.from_code = initializers.Projection(
      (decoder["width"],),
      ("embed",),
      input_axes=(None,),
      scale=self.codes.read_scale,
      dtype=jnp.dtype(decoder["dtype"]),
    )
    self.decoder_embed = embed(decoder["width"], decoder["dtype"])
    self.decoder_position = st_transformer.GridPosition(self.grid)
    self.decoder_stack = st_transformer.STTransformer(**decoder)
    self.to_pixels = initializers.Projection(
      (values,),
      (None,),
      bias=True,
      dtype=jnp.float32,
      scale=1.0 if self.predict == "frame" else 0.1,
    )
    if self.predict == "shift":
      self.to_shifts = initializers.Projection(
        (motion.num_shifts(self.reach),), (None,), bias=True, dtype=jnp.float32
      )

  @property
  def context(self) -> int:
    """Number of frames that a code depends on; 0 for all frames before it."""
    encoder = dict(self.encoder)
    window = encoder.get("window", 0)
    if not window:
      return 0
    return encoder["num_layers"] * (window - 1) + 1 + self.match

  @nn.nowrap
  def make_quantizer(self) -> quantizers.Quantizer:
    """Returns the model's quantizer, for example for training."""
    return quantizers.build(
      self.quantizer,
      num_codes=self.num_latent_actions,
      code_dim=self.code_dim,
      unit_norm=self.unit_norm,
    )

  def __call__(self, frames: jax.Array) -> Prediction:
    """Infers actions and predicts frames: float [B, T, H, W, C] in [0, 1]."""
    chex.assert_rank(frames, 5)
    frames = patches.shrink(frames, self.shrink)
    quantized = self.codes(self._encode(frames))  # [B, T-1]
    return Prediction(
      frames=self._decode(frames[:, :-1], quantized.vectors),
      targets=frames[:, 1:],
      latent_actions=quantized.codes,
      quantized=quantized,
    )

  def encode(self, frames: jax.Array) -> jax.Array:
    """Returns latent actions, int32 [B, T-1], of frames [B, T, H, W, C]."""
    found = self.codes(self._encode(patches.shrink(frames, self.shrink))).codes
    return found if self.buttons is None else self.buttons.press(found)

  def code_vectors(self) -> jax.Array:
    """Returns the vectors of all codes, float32 [A, E]."""
    return self.codes.lookup(jnp.arange(self.num_latent_actions))

  def decode(self, frames: jax.Array, latent_actions: jax.Array) -> jax.Array:
    """Predicts the frame that follows each frame after an action.

    Args:
      frames: float [B, T, H, W, C] in [0, 1].
      latent_actions: int32 [B, T]; action t leads from frame t to t + 1.

    Returns:
      float32 [B, T, H / shrink, W / shrink, C]; position t sees frames and
      actions 1..t.
    """
    frames = patches.shrink(frames, self.shrink)
    return self._decode(frames, self.codes.lookup(latent_actions))

  def _encode(self, frames: jax.Array) -> jax.Array:
    x = patches.patchify(frames, self.patch)  # [B, T, N, P]
    x = self.encoder_embed(2 * x - 1)
    if self.match:
      x += self.encoder_match(motion.mismatch(frames, self.reach, self.patch))
    x = self.encoder_position(x)
    token = jnp.broadcast_to(
      self.action_token.astype(x.dtype), (*x.shape[:2], 1, x.shape[-1])
    )
    x, _ = self.encoder_stack(jnp.concatenate([token, x], axis=2))
    return self.to_code(x[:, 1:, 0])  # [B, T-1, E]

  def _decode(self, frames: jax.Array, vectors: jax.Array) -> jax.Array:
    seen = patches.patchify(frames, self.patch)
    x = self.decoder_position(self.decoder_embed(2 * seen - 1))
    action = self.from_code(vectors)[:, :, None]  # [B, T, 1, D]
    if self.actions_enter == "add":
      x, _ = self.decoder_stack(x + action)
    else:
      x, _ = self.decoder_stack(jnp.concatenate([action, x], axis=2))
      x = x[:, :, 1:]
    logits = self.to_pixels(x)  # [B, T, N, P]
    if self.predict == "shift":
      seen = motion.blend(frames, self.to_shifts(x), self.reach, self.patch)
    if self.predict != "frame":
      seen = seen.clip(_EDGE, 1 - _EDGE)
      logits += jnp.log(seen) - jnp.log1p(-seen)
    return patches.unpatchify(
      jax.nn.sigmoid(logits), self.rows, self.columns, self.patch
    )
