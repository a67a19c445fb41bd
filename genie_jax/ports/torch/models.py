"""Tokenizer, dynamics and latent action model in PyTorch, for inference."""

import dataclasses
from typing import Any

import torch

from genie_jax.ports.torch import layers, quantizers


@dataclasses.dataclass(frozen=True)
class Part:
  """One model.

  Attributes:
    world: The world's fixed facts, from config.json.
    model: The model's fields, from config.json.
    params: Nested dict of float32 tensors.
    quantizer: The quantizer's fields, where config.json has them.
  """

  world: dict[str, Any]
  model: dict[str, Any]
  params: dict[str, Any]
  quantizer: dict[str, Any] | None = None

  def make_quantizer(self, num_codes: int) -> Any:
    """Returns the quantizer, see `quantizers`."""
    tensors = self.params.get("codes", {})
    return quantizers.build(self.quantizer, self.model, tensors, num_codes)


class Tokenizer:
  """Frames to tokens and back; causal in time."""

  def __init__(self, part: Part):
    """Takes the "tokenizer" part of a world."""
    self._part = part
    world = part.world
    self.window = world["num_frames"]
    self.grid = layers.grid(
      world["height"], world["width"], world["token_patch"]
    )
    self._codes = part.make_quantizer(world["num_codes"])

  def encode(self, frames: torch.Tensor) -> torch.Tensor:
    """Returns tokens, int64 [B, T, h, w], of [B, T, H, W, C] in [0, 1]."""
    fields, params = self._part.model, self._part.params
    x = layers.patchify(frames, self._part.world["token_patch"])
    x = layers.project(
      layers.cast(2 * x - 1, fields["encoder"]), params["embed"]
    )
    x = layers.add_position(x, params["encoder_position"])
    x, _ = layers.transformer(x, params["encoder_stack"], fields["encoder"])
    codes = self._codes.encode(layers.project(x.float(), params["to_code"]))
    return codes.reshape(*codes.shape[:2], *self.grid)

  def decode(self, tokens: torch.Tensor) -> torch.Tensor:
    """Returns frames, float32 [B, T, H, W, C], of tokens [B, T, h, w]."""
    fields, params = self._part.model, self._part.params
    world = self._part.world
    x = self._codes.lookup(tokens.reshape(*tokens.shape[:2], -1))
    x = layers.project(layers.cast(x, fields["decoder"]), params["from_code"])
    x = layers.add_position(x, params["decoder_position"])
    x, _ = layers.transformer(x, params["decoder_stack"], fields["decoder"])
    pixels = layers.project(x.float(), params["to_pixels"])
    pixels = (
      0.5 + 0.5 * pixels
      if fields.get("output") == "linear"
      else (pixels.sigmoid())
    )
    return layers.unpatchify(
      pixels, world["height"], world["width"], world["token_patch"]
    ).clamp(0, 1)


class Dynamics:
  """Scores the tokens of a frame given those before it and the actions."""

  def __init__(self, part: Part):
    """Takes the "dynamics" part of a world."""
    self._part = part
    world = part.world
    self.window = world["num_frames"]
    self.no_action = world["num_latent_actions"]
    self.num_codes = world["num_codes"]
    self.grid = layers.grid(
      world["height"], world["width"], world["token_patch"]
    )

  def __call__(
    self,
    tokens: torch.Tensor,
    latent_actions: torch.Tensor,
    hidden: torch.Tensor,
  ) -> torch.Tensor:
    """Scores every code at every place.

    Args:
      tokens: int64 [B, T, h, w]; ignored where hidden.
      latent_actions: int64 [B, T-1]; action t leads from frame t to t + 1.
      hidden: bool [B, T, h, w].

    Returns:
      Logits, float32 [B, T, h, w, V].
    """
    first = torch.full_like(tokens[:, :1, 0, 0], self.no_action)
    incoming = torch.cat([first, latent_actions], 1)
    return self.step(tokens, incoming, hidden)[0]

  def step(
    self,
    tokens: torch.Tensor,
    incoming: torch.Tensor,
    hidden: torch.Tensor,
    cache: layers.Cache | None = None,
    position: int = 0,
    last: torch.Tensor | None = None,
  ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Scores frames that follow those in a cache.

    Args:
      tokens: int64 [B, T, h, w], usually T = 1.
      incoming: int64 [B, T], the action that leads to each frame.
      hidden: bool [B, T, h, w].
      cache: Keys and values of the frames before.
      position: Number of the first of these frames.
      last: int64 [B, h, w], the frame before them; None where there is none.

    Returns:
      Logits float32 [B, T, h, w, V], and these frames' keys and values.
    """
    fields, params = self._part.model, self._part.params
    b, t = tokens.shape[:2]
    flat = tokens.reshape(b, t, -1)
    table = params["token_embedding"]
    x = torch.where(
      hidden.reshape(b, t, -1, 1), params["hidden_token"][0], table[flat]
    )
    if fields.get("last_frame", False):
      first = (
        torch.zeros_like(x[:, :1])
        if last is None
        else (table[last.reshape(b, 1, -1)])
      )
      x = x + params["last_frame_scale"] * torch.cat(
        [first, table[flat[:, :-1]]], 1
      )
    action = params["action_embedding"][incoming][:, :, None]
    x = layers.add_position(x, params["position"])
    prepend = fields.get("actions_enter", "add") == "prepend"
    x = torch.cat([action, x], 2) if prepend else x + action
    x, own = layers.transformer(
      x, params["stack"], fields["transformer"], cache, position
    )
    logits = layers.project(x[:, :, 1:] if prepend else x, params["to_logits"])
    return logits.float().reshape(b, t, *self.grid, self.num_codes), own


class Lam:
  """Finds the latent actions that lead through frames."""

  def __init__(self, part: Part):
    """Takes the "lam" part of a world."""
    self._part = part
    self._codes = part.make_quantizer(part.world["num_latent_actions"])

  def encode(self, frames: torch.Tensor) -> torch.Tensor:
    """Returns latent actions, int64 [B, T-1], of [B, T, H, W, C] in [0, 1]."""
    fields, params = self._part.model, self._part.params
    x = layers.patchify(
      layers.shrink(frames, fields.get("shrink", 1)), fields["patch"]
    )
    x = layers.project(
      layers.cast(2 * x - 1, fields["encoder"]), params["encoder_embed"]
    )
    x = layers.add_position(x, params["encoder_position"])
    token = params["action_token"].to(x.dtype).expand(*x.shape[:2], 1, -1)
    x, _ = layers.transformer(
      torch.cat([token, x], 2), params["encoder_stack"], fields["encoder"]
    )
    return self._codes.encode(
      layers.project(x[:, 1:, 0].float(), params["to_code"])
    )
