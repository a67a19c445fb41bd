"""The models' layers in PyTorch, for inference, on the same weights.

Shapes:
  B  clips in the batch         N  tokens in one frame (h * w)
  T  frames in one clip         D  width of the residual stream
  H  attention heads            K  width of one head
  Y  layers                     Tc frames in a cache
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

EPSILON = 1e-6
ROTARY_BASE = 100.0
_MASKED = -1e30

Params = Mapping[str, Any]


@dataclasses.dataclass
class Cache:
  """Keys and values of the frames that attention in time has seen.

  Attributes:
    key: [Y, B, Tc, N, H, K].
    value: [Y, B, Tc, N, H, K].
    positions: int64 [Tc], the frame number of each slot.
  """

  key: torch.Tensor
  value: torch.Tensor
  positions: torch.Tensor

  def extended(self, own: tuple[torch.Tensor, torch.Tensor]) -> "Cache":
    """Returns a cache with the next frames' keys and values at its end."""
    frames = own[0].shape[2]
    first = int(self.positions[-1]) + 1 if len(self.positions) else 0
    return Cache(
      torch.cat([self.key, own[0]], 2),
      torch.cat([self.value, own[1]], 2),
      torch.cat(
        [
          self.positions,
          torch.arange(first, first + frames, device=self.positions.device),
        ]
      ),
    )

  @classmethod
  def of(cls, own: tuple[torch.Tensor, torch.Tensor]) -> "Cache":
    """Returns a cache of frames numbered from 0."""
    return cls(*own, torch.arange(own[0].shape[2], device=own[0].device))


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
  """Returns (h, w), the patches that cover a frame."""
  return -(-height // patch), -(-width // patch)


def patchify(frames: torch.Tensor, patch: int) -> torch.Tensor:
  """Cuts frames [B, T, H, W, C] into patches [B, T, h * w, P]."""
  b, t, height, width, c = frames.shape
  h, w = grid(height, width, patch)
  # The last row and column are repeated where patches stand over.
  rows = torch.arange(h * patch, device=frames.device).clamp(max=height - 1)
  columns = torch.arange(w * patch, device=frames.device).clamp(max=width - 1)
  x = frames[:, :, rows][:, :, :, columns]
  x = x.reshape(b, t, h, patch, w, patch, c).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * w, -1)


def unpatchify(
  patches: torch.Tensor, height: int, width: int, patch: int
) -> torch.Tensor:
  """Joins patches [B, T, h * w, P] to frames [B, T, H, W, C], cropped."""
  b, t = patches.shape[:2]
  h, w = grid(height, width, patch)
  x = patches.reshape(b, t, h, w, patch, patch, -1).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * patch, w * patch, -1)[:, :, :height, :width]


def shrink(frames: torch.Tensor, factor: int) -> torch.Tensor:
  """Averages squares of factor x factor pixels of [B, T, H, W, C]."""
  b, t, height, width, c = frames.shape
  return frames.reshape(
    b, t, height // factor, factor, width // factor, factor, c
  ).mean((3, 5))


def cast(x: torch.Tensor, fields: Mapping[str, Any]) -> torch.Tensor:
  """Returns x in the dtype of a stack's activations."""
  return x.to(
    torch.bfloat16 if fields["dtype"] == "bfloat16" else torch.float32
  )


def rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
  """Divides by the root mean square of the last axis, in float32."""
  wide = x.float()
  wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
  return (wide * scale).to(x.dtype)


def project(x: torch.Tensor, params: Params, inputs: int = 1) -> torch.Tensor:
  """Maps the last `inputs` axes of x by a kernel [*inputs, *outputs]."""
  kernel = params["kernel"].to(x.dtype)
  y = torch.tensordot(x, kernel, dims=inputs)
  return y + params["bias"].to(x.dtype) if "bias" in params else y


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
  """Turns pairs of channels (i, i + K / 2) of [B, L, N, H, K] by position."""
  half = x.shape[-1] // 2
  frequency = ROTARY_BASE ** (
    -torch.arange(half, device=x.device, dtype=torch.float32) / half
  )
  angle = (positions.float()[:, None] * frequency)[:, None, None]
  cos, sin = angle.cos(), angle.sin()
  first, second = x.float().split(half, -1)
  return torch.cat(
    [first * cos - second * sin, second * cos + first * sin], -1
  ).to(x.dtype)


def attend_space(x: torch.Tensor, params: Params) -> torch.Tensor:
  """Lets the tokens of each frame of [B, T, N, D] see one another."""
  query, key, value = project(x, params["qkv"]).unbind(-3)  # [B, T, N, H, K]
  query = rms_norm(query, params["query_norm"]["scale"])
  key = rms_norm(key, params["key_norm"]["scale"])
  mixed = functional.scaled_dot_product_attention(
    *(part.transpose(2, 3) for part in (query, key, value))
  )
  return project(mixed.transpose(2, 3), params["out"], inputs=2)


def attend_time(
  x: torch.Tensor,
  params: Params,
  positions: torch.Tensor,
  past: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
  window: int,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
  """Lets each place see itself in earlier frames.

  Args:
    x: [B, T, N, D].
    params: Of this attention.
    positions: [T] frame numbers.
    past: Keys and values [B, Tc, N, H, K] and their positions [Tc].
    window: Frames seen, the own one included; 0 for all.

  Returns:
    [B, T, N, D], and x's own keys and values.
  """
  query, key, value = project(x, params["qkv"]).unbind(-3)
  query = rotate(rms_norm(query, params["query_norm"]["scale"]), positions)
  key = rotate(rms_norm(key, params["key_norm"]["scale"]), positions)
  own, at = (key, value), positions
  if past is not None:
    key, value = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
    at = torch.cat([past[2], positions])
  distance = positions[:, None] - at[None]
  seen = distance >= 0
  if window:
    seen = seen & (distance < window)
  scores = torch.einsum("bqnhk,btnhk->bnhqt", query, key).float()
  scores = scores * query.shape[-1] ** -0.5
  weights = scores.masked_fill(~seen, _MASKED).softmax(-1).to(value.dtype)
  mixed = torch.einsum("bnhqt,btnhk->bqnhk", weights, value)
  return project(mixed, params["out"], inputs=2), own


def transformer(
  x: torch.Tensor,
  params: Params,
  fields: Mapping[str, Any],
  cache: Cache | None = None,
  first: int = 0,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
  """Runs a stack of space-time blocks.

  Args:
    x: [B, T, N, D].
    params: Of the stack; each of its layers' tensors has a first axis [Y].
    fields: Of the stack, from config.json.
    cache: Frames before x.
    first: Frame number of x[:, 0].

  Returns:
    [B, T, N, D], and the keys and values in time of x, [Y, B, T, N, H, K].
  """
  x = cast(x, fields)
  positions = first + torch.arange(x.shape[1], device=x.device)
  keys, values = [], []
  for number in range(fields["num_layers"]):
    layer = _layer(params["layers"], number)
    x = x + attend_space(
      rms_norm(x, layer["space_norm"]["scale"]), layer["space"]
    )
    past = (
      None
      if cache is None
      else (cache.key[number], cache.value[number], cache.positions)
    )
    mixed, (key, value) = attend_time(
      rms_norm(x, layer["time_norm"]["scale"]),
      layer["time"],
      positions,
      past,
      fields.get("window", 0),
    )
    x = x + mixed
    hidden = project(rms_norm(x, layer["mlp_norm"]["scale"]), layer["mlp_in"])
    # The hyperbolic approximation, as in `jax.nn.gelu`.
    x = x + project(
      functional.gelu(hidden, approximate="tanh"), layer["mlp_out"]
    )
    keys.append(key)
    values.append(value)
  if fields.get("final_norm", True):
    x = rms_norm(x, params["norm"]["scale"])
  return x, (torch.stack(keys), torch.stack(values))


def add_position(x: torch.Tensor, params: Params) -> torch.Tensor:
  """Adds row and column vectors to x: [B, T, h * w, D]."""
  place = params["row_position"][:, None] + params["column_position"][None]
  return x + place.reshape(-1, x.shape[-1]).to(x.dtype)


def _layer(params: Params, number: int) -> dict[str, Any]:
  return {
    name: _layer(value, number) if isinstance(value, dict) else value[number]
    for name, value in params.items()
  }
