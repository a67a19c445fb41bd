"""Video tokenizer: a space-time VQ-VAE, causal in time (Genie, section 2.1).

Shapes:
  h, w  token grid; N = h * w       E  width of a code
  P     pixel values in one patch   V  codes
"""

import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.nn import (
  dct,
  initializers,
  patches,
  quantizers,
  st_transformer,
)


@flax.struct.dataclass
class Reconstruction:
  """Frames that were encoded to tokens and decoded again.

  Attributes:
    frames: float32 [B, T, H, W, C] in [0, 1]; with a linear output values may
      be outside, where the loss still has a gradient.
    tokens: int32 [B, T, h, w].
    quantized: The quantizer's losses and inputs.
  """

  frames: jax.Array
  tokens: jax.Array
  quantized: quantizers.Quantized


class Tokenizer(nn.Module):
  """Turns frames into a grid of codes and back.

  Encoder and decoder are causal in time: the codes of frame t depend on frames
  up to t (ST-ViViT), and therefore on where the clip begins.

  Attributes:
    height: H.
    width: W.
    channels: C.
    patch: Side of the square of pixels that a token stands for.
    num_codes: V.
    code_dim: E, for quantizers that do not determine it themselves.
    encoder: Fields of the encoder's `STTransformer`.
    decoder: Fields of the decoder's `STTransformer`.
    unit_norm: Whether codes have length 1, for the same quantizers.
    start: Initialisation, "random" or "cosine". With "cosine", embedding and
      output are initialised as a cosine transform of patches, and codes encode
      its coarsest coefficients, so that the untrained model already is a
      transform codec. If the stacks also start as the identity
      (`residual_scale=0, final_norm=False`), this saves short runs their first
      thousand steps. Differs from the paper, which does not state its
      initialisation.
    output: "sigmoid", the paper's choice, or "linear": pixels are
      (1 + x) / 2, clipped to [0, 1] when tokens are decoded. With a cosine
      start the linear output makes the untrained model an exact transform
      codec; with a sigmoid it is a decibel worse.
    quantizer: Fields from `quantizers.complete`; None for the default.
  """

  height: int
  width: int
  channels: int
  patch: int
  num_codes: int
  code_dim: int
  encoder: Any
  decoder: Any
  unit_norm: bool = True
  start: str = "random"
  output: str = "sigmoid"
  quantizer: Any = None

  def setup(self):
    encoder, decoder = dict(self.encoder), dict(self.decoder)
    self.codes = self.make_quantizer()
    code_dim, bounded = self.codes.code_dim, self.codes.BOUNDED
    cosine = self.start == "cosine"
    start = lambda part: (
      functools.partial(self._cosine, part, code_dim, bounded)
      if cosine
      else None
    )
    self.grid = patches.grid(self.height, self.width, self.patch)
    self.patch_values = patches.patch_dim(self.patch, self.channels)
    self.embed = initializers.Projection(
      (encoder["width"],),
      ("embed",),
      input_axes=(None,),
      bias=True,
      start=start("embed"),
      dtype=jnp.dtype(encoder["dtype"]),
    )
    self.encoder_position = st_transformer.GridPosition(self.grid)
    self.encoder_stack = st_transformer.STTransformer(**encoder)
    self.to_code = initializers.Projection(
      (code_dim,),
      (None,),
      bias=True,
      start=start("to_code"),
      dtype=jnp.float32,
    )
    self.from_code = initializers.Projection(
      (decoder["width"],),
      ("embed",),
      input_axes=(None,),
      bias=True,
      scale=self.codes.read_scale,
      start=start("from_code"),
      dtype=jnp.dtype(decoder["dtype"]),
    )
    self.decoder_position = st_transformer.GridPosition(self.grid)
    self.decoder_stack = st_transformer.STTransformer(**decoder)
    self.to_pixels = initializers.Projection(
      (self.patch_values,),
      (None,),
      bias=True,
      start=start("to_pixels"),
      dtype=jnp.float32,
    )

  @nn.nowrap
  def make_quantizer(self) -> quantizers.Quantizer:
    """Returns the model's quantizer, for example for training."""
    return quantizers.build(
      self.quantizer,
      num_codes=self.num_codes,
      code_dim=self.code_dim,
      unit_norm=self.unit_norm,
    )

  @nn.nowrap
  def _cosine(self, part: str, code_dim: int, bounded: bool) -> np.ndarray:
    """Returns the initial kernel of one of the four projections.

    Args:
      part: Name of the projection.
      code_dim: Width of a code's vector.
      bounded: Whether the vector's entries are between -1 and 1. If so,
        coefficients are divided by the patch's side. This makes the first
        coefficient the mean of a patch of pixels between -1 and 1, up to a
        factor from the colour transform.
    """
    basis = dct.cosine_basis(self.patch, self.channels)
    width = dict(
      self.encoder if part in ("embed", "to_code") else (self.decoder)
    )["width"]
    if part in ("to_code", "from_code"):
      kept = np.eye(width, code_dim)
      reach = self.patch if bounded else 1
      return kept / reach if part == "to_code" else kept.T * reach
    kept = np.zeros((len(basis), width), np.float32)
    count = min(width, len(basis))
    kept[:, :count] = basis[:, :count]
    return kept if part == "embed" else kept.T

  def __call__(self, frames: jax.Array) -> Reconstruction:
    """Encodes and decodes frames: float [B, T, H, W, C] in [0, 1]."""
    quantized = self.codes(self._encode(frames))
    return Reconstruction(
      frames=self._decode(quantized.vectors)[0],
      tokens=self._to_grid(quantized.codes),
      quantized=quantized,
    )

  def encode(self, frames: jax.Array) -> jax.Array:
    """Returns tokens, int32 [B, T, h, w], of frames [B, T, H, W, C]."""
    return self._to_grid(self.codes(self._encode(frames)).codes)

  def decode(self, tokens: jax.Array) -> jax.Array:
    """Returns frames, float32 [B, T, H, W, C], of tokens [B, T, h, w]."""
    return self.decode_step(tokens, None, 0)[0]

  def code_vectors(self) -> jax.Array:
    """Returns the vector of each code, float32 [V, E]."""
    return self.codes.vectors()

  def decode_step(
    self,
    tokens: jax.Array,
    cache: st_transformer.Cache | None,
    position: jax.Array | int,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Decodes frames that follow those in a cache.

    Args:
      tokens: int32 [B, T, h, w], usually T = 1.
      cache: Keys and values of the decoder for the previous frames.
      position: int32 scalar, the frame number of tokens[:, 0].

    Returns:
      Frames float32 [B, T, H, W, C], and the keys and values of these frames.
    """
    b, t = tokens.shape[:2]
    frames, own = self._decode(
      self.codes.lookup(tokens.reshape(b, t, -1)), cache, position
    )
    return frames.clip(0, 1), own

  @nn.nowrap
  def empty_cache(self, num_clips: int, slots: int) -> st_transformer.Cache:
    """Returns an empty cache for `slots` frames in the decoder."""
    h, w = patches.grid(self.height, self.width, self.patch)
    return st_transformer.empty_cache(self.decoder, num_clips, h * w, slots)

  def _encode(self, frames: jax.Array) -> jax.Array:
    x = patches.patchify(frames, self.patch)  # [B, T, N, P]
    x = self.encoder_position(self.embed(2 * x - 1))
    x, _ = self.encoder_stack(x)
    return self.to_code(x)  # [B, T, N, E]

  def _decode(
    self, vectors: jax.Array, cache: Any = None, position: Any = 0
  ) -> tuple[jax.Array, Any]:
    """Returns frames, and the decoder's keys and values for them."""
    x = self.decoder_position(self.from_code(vectors))
    x, own = self.decoder_stack(x, cache, position)
    pixels = self.to_pixels(x)  # [B, T, N, P]
    if self.output == "sigmoid":
      pixels = jax.nn.sigmoid(pixels)
    else:
      pixels = 0.5 + 0.5 * pixels
    frames = patches.unpatchify(pixels, self.height, self.width, self.patch)
    return frames, own

  def _to_grid(self, codes: jax.Array) -> jax.Array:
    return codes.reshape(*codes.shape[:2], *self.grid)
