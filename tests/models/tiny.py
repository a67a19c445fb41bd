"""Models of a few thousand parameters whose every path carries weight."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from genie_jax.models import saved

# Six rows of 4-pixel patches: the last two of a patch are padding.
WORLD = {
    "num_frames": 4, "height": 6, "width": 8, "channels": 3, "fps": 10,
    "token_patch": 4, "num_codes": 11, "num_latent_actions": 5}
GRID = (2, 2)
STACK = {
    "num_layers": 2, "width": 16, "num_heads": 2, "head_dim": 8,
    "mlp_dim": 24, "dtype": "float32"}
_AUTOENCODER = {"code_dim": 4, "encoder": STACK, "decoder": STACK}
MODELS = {
    "tokenizer": _AUTOENCODER,
    "lam": {**_AUTOENCODER, "patch": 4},
    "dynamics": {"transformer": STACK}}
CLIPS, FRAMES = 2, 4


def fields(name: str, **model: Any) -> dict[str, Any]:
  """Returns {"world", "model"} of a part."""
  return {"world": dict(WORLD), "model": {**MODELS[name], **model}}


def part(name: str, **model: Any) -> saved.Part:
  """Returns a tiny model with random weights; `model` changes its fields."""
  made = saved.part(name, fields(name, **model), {})
  shapes = nn.unbox(saved.abstract_params(name, made.config))
  rng = np.random.default_rng(0)
  # Larger than a fresh model's, so that each influence shows in float32.
  deviation = lambda x: 1.5 / np.sqrt(x.shape[-2] if x.ndim > 1 else 1)
  draw = lambda x: rng.normal(0, deviation(x), x.shape).astype(np.float32)
  return saved.Part(made.module, made.config, jax.tree.map(draw, shapes))


def compiled(
    made: saved.Part, method: str = "__call__"
) -> Callable[..., Any]:
  """Returns a method of a model as a compiled function of its inputs.

  It takes other parameters than the model's own as `params`.
  """
  run = jax.jit(lambda params, *inputs: made.module.apply(
      {"params": params}, *inputs, method=method))
  return lambda *inputs, params=made.params: jax.tree.map(
      np.asarray, run(params, *inputs))


def clip(frames: int = FRAMES, seed: int = 0) -> np.ndarray:
  """Returns frames [B, T, H, W, C] in [0, 1]."""
  shape = (CLIPS, frames, WORLD["height"], WORLD["width"], 3)
  return np.random.default_rng(seed).random(shape, dtype=np.float32)


def tokens(seed: int = 0) -> np.ndarray:
  """Returns tokens [B, T, h, w]."""
  return np.random.default_rng(seed).integers(
      0, WORLD["num_codes"], (CLIPS, FRAMES, *GRID), dtype=np.int32)


def actions(count: int, seed: int = 0) -> np.ndarray:
  """Returns latent actions [B, count]."""
  return np.random.default_rng(seed).integers(
      0, WORLD["num_latent_actions"], (CLIPS, count), dtype=np.int32)


def moved(before: Any, after: Any) -> np.ndarray:
  """Returns by how much each frame of [B, T, ...] differs, [T]."""
  difference = np.abs(
      np.asarray(before, np.float64) - np.asarray(after, np.float64))
  return difference.swapaxes(0, 1).reshape(difference.shape[1], -1).max(1)
