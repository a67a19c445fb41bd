"""The models that a player runs, for one clip of frames [T, ...]."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genie_jax.models import dynamics as dynamics_lib
from genie_jax.models import tokenizer as tokenizer_lib
from genie_jax.nn import st_transformer
from genie_jax.sampling import prepare, static
from genie_jax.sampling import slide as slides

# Keys and values in time, each [Y, 1, T, N, H, K].
_Own = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Models:
  """What a player runs; hashable, so a static argument of `jax.jit`.

  Attributes:
    tokenizer: The tokenizer.
    dynamics: The dynamics model.
    window: W, frames that the dynamics model was trained on, at least 2.
    decoder_window: Frames that the tokenizer was trained on.
    slide: What happens when the window is full.
  """
  tokenizer: tokenizer_lib.Tokenizer
  dynamics: dynamics_lib.Dynamics
  window: int
  decoder_window: int
  slide: slides.Slide = dataclasses.field(default_factory=slides.Slide)

  def __post_init__(self):
    for name in ("tokenizer", "dynamics"):
      object.__setattr__(self, name, static.hashable(getattr(self, name)))
    if self.window < 2:
      raise ValueError(
          f"window={self.window}; a frame needs one before it, so 2.")
    self.slide.check(self.window)

  @property
  def history(self) -> int:
    """M, how many of the last frames' tokens a state keeps."""
    return max(self.window, self.decoder_window)

  def score(
      self,
      params: Any,
      tokens: jax.Array,
      incoming: jax.Array,
      hidden: jax.Array,
      cache: st_transformer.Cache | None,
      position: jax.Array | int,
      last: jax.Array | None,
  ) -> tuple[jax.Array, _Own]:
    """Runs `Dynamics.step`.

    Args:
      params: {"tokenizer": ..., "dynamics": ...}.
      tokens: int32 [T, h, w].
      incoming: int32 [T].
      hidden: bool [T, h, w].
      cache: Of the frames before.
      position: Of the first frame.
      last: int32 [h, w], the frame before it, or None.

    Returns:
      Logits float32 [T, h, w, V], and these frames' keys and values.
    """
    logits, own = _suited(self.dynamics, len(tokens)).apply(
        {"params": params["dynamics"]}, tokens[None], incoming[None],
        hidden[None], cache, position, None if last is None else last[None],
        method="step")
    return logits[0], own

  def show(
      self,
      params: Any,
      tokens: jax.Array,
      cache: st_transformer.Cache | None,
      position: jax.Array | int,
  ) -> tuple[jax.Array, _Own]:
    """Returns uint8 frames [T, H, W, C] of tokens, with keys and values."""
    frames, own = _suited(self.tokenizer, len(tokens)).apply(
        {"params": params["tokenizer"]}, tokens[None], cache, position,
        method="decode_step")
    return jnp.round(frames[0] * 255).astype(jnp.uint8), own

  def encode(self, params: Any, frames: jax.Array) -> jax.Array:
    """Returns tokens int32 [T, h, w] of frames uint8 [T, H, W, C]."""
    return _suited(self.tokenizer, len(frames)).apply(
        {"params": params["tokenizer"]}, frames[None].astype(jnp.float32) / 255,
        method="encode")[0]


def _suited(module: nn.Module, num_frames: int) -> nn.Module:
  return module if num_frames == 1 else prepare.rolled(module)
