"""The models' layers in PyTorch, for inference with the same weights.

Shapes:
  B  clips in the batch         N  tokens in one frame (h * w)
  T  frames in one clip         D  width of the residual stream
  H  attention heads            K  width of one head
  Y  layers                     Tc frames in a cache
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

EPSILON = 1e-6
ROTARY_BASE = 100.0


class Tree(nn.Module):
  """A module tree whose parameters have their names in a world's files.

  The tensor "stack/norm/scale" of a file is the parameter "stack.norm.scale",
  and `tree["stack"]["norm"]["scale"]`.
  """

  def __init__(self, tensors: Mapping[str, Any]):
    """Registers tensors as parameters, without copying them.

    Args:
      tensors: Nested dict of tensors.
    """
    super().__init__()
    for name, value in tensors.items():
      if isinstance(value, Mapping):
        self.add_module(name, Tree(value))
      else:
        # Not trainable by default; call `requires_grad_()` to train them.
        self.register_parameter(name, nn.Parameter(value, requires_grad=False))

  def __getitem__(self, name: str) -> Any:
    return getattr(self, name)

  def __contains__(self, name: str) -> bool:
    return name in self._parameters or name in self._modules

  def unbound(self) -> list[dict[str, Any]]:
    """Splits all parameters along their first axis, into nested dicts."""
    values = {
      **{name: value.unbind() for name, value in self._parameters.items()},
      **{name: value.unbound() for name, value in self._modules.items()},
    }
    count = len(next(iter(values.values())))
    return [
      {name: value[number] for name, value in values.items()}
      for number in range(count)
    ]


Params = Tree | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of earlier frames for attention in time.

  Attributes:
    key: [Y, B, slots, N, H, K]; frame t of the window is in slot t.
    value: [Y, B, slots, N, H, K].
    length: Tc, number of slots with a finished frame.
  """

  key: torch.Tensor
  value: torch.Tensor
  length: int

  def with_room(self, frames: int) -> "Cache":
    """Returns a copy with free slots for `frames` more frames."""
    return Cache(
      _with_slots(self.key[:, :, : self.length], frames),
      _with_slots(self.value[:, :, : self.length], frames),
      self.length,
    )


def empty_cache(
  like: torch.Tensor,
  fields: Mapping[str, Any],
  clips: int,
  slots: int,
  places: int,
) -> Cache:
  """Returns a cache without frames.

  Args:
    like: A tensor of the device and dtype to use.
    fields: The stack's fields in config.json.
    clips: B.
    slots: Number of frames that it has room for.
    places: N.
  """
  shape = (
    fields["num_layers"],
    clips,
    slots,
    places,
    fields["num_heads"],
    fields["head_dim"],
  )
  return Cache(like.new_empty(shape), like.new_empty(shape), 0)


def _with_slots(x: torch.Tensor, slots: int) -> torch.Tensor:
  """Appends uninitialized slots to the frame axis."""
  free = x.new_empty(*x.shape[:2], slots, *x.shape[3:])
  return torch.cat([x, free], 2)


def grid(height: int, width: int, patch: int) -> tuple[int, int]:
  """Returns (h, w), the grid of patches that covers a frame."""
  return -(-height // patch), -(-width // patch)


def patchify(frames: torch.Tensor, patch: int) -> torch.Tensor:
  """Cuts frames [B, T, H, W, C] into patches [B, T, h * w, P]."""
  b, t, height, width, c = frames.shape
  h, w = grid(height, width, patch)
  # Frames are padded with copies of their last row and column.
  rows = torch.arange(h * patch, device=frames.device).clamp(max=height - 1)
  columns = torch.arange(w * patch, device=frames.device).clamp(max=width - 1)
  x = frames[:, :, rows][:, :, :, columns]
  x = x.reshape(b, t, h, patch, w, patch, c).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * w, patch * patch * c)


def unpatchify(
  patches: torch.Tensor, height: int, width: int, patch: int
) -> torch.Tensor:
  """Joins patches [B, T, h * w, P] to frames [B, T, H, W, C], cropped."""
  b, t = patches.shape[:2]
  h, w = grid(height, width, patch)
  x = patches.reshape(b, t, h, w, patch, patch, -1).permute(0, 1, 2, 4, 3, 5, 6)
  return x.reshape(b, t, h * patch, w * patch, -1)[:, :, :height, :width]


def shrink(frames: torch.Tensor, factor: int) -> torch.Tensor:
  """Averages squares of factor x factor pixels of frames [B, T, H, W, C]."""
  b, t, height, width, c = frames.shape
  return frames.reshape(
    b, t, height // factor, factor, width // factor, factor, c
  ).mean((3, 5))


def mismatch(
  frames: torch.Tensor, reach: Sequence[int], patch: int
) -> torch.Tensor:
  """Compares each patch with the shifted frames before it.

  Args:
    frames: [B, T, H, W, C] in [0, 1].
    reach: (rows, columns), the largest shift in pixels; S shifts in all.
    patch: Side of a patch in pixels.

  Returns:
    [B, T, N, S], as `genie_jax.nn.motion.mismatch`.
  """
  (rows, columns), (height, width) = reach, frames.shape[2:4]
  index = lambda shift, size: (
    torch.arange(size, device=frames.device) + shift
  ).clamp(0, size - 1)
  before, now = frames[:, :-1], patchify(frames[:, 1:], patch)
  costs = torch.stack(
    [
      (
        patchify(
          before[:, :, index(row, height)][:, :, :, index(column, width)], patch
        )
        - now
      )
      .abs()
      .mean(-1)
      for row in range(-rows, rows + 1)
      for column in range(-columns, columns + 1)
    ],
    -1,
  )
  costs = costs - costs.mean(-1, keepdim=True)
  return functional.pad(costs, (0, 0, 0, 0, 1, 0))


def rms_norm(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
  """Divides by the root mean square of the last axis, in float32."""
  wide = x.float()
  size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
  mean = size.square_().div_(x.shape[-1])
  return (wide * mean.add_(EPSILON).rsqrt_() * scale).to(x.dtype)


def project(x: torch.Tensor, params: Params) -> torch.Tensor:
  """Applies a linear layer, kernel [D, outputs] and optional bias, to x."""
  y = x @ params["kernel"].to(x.dtype)
  return y + params["bias"].to(x.dtype) if "bias" in params else y


def rotation(
  positions: torch.Tensor, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns the rotary tables of `rotate` for frames at positions [T].

  Returns:
    Cosines and signed sines, float32 [T, 1, 1, 1, K].
  """
  half = head_dim // 2
  frequency = ROTARY_BASE ** (
    -torch.arange(half, device=positions.device, dtype=torch.float32) / half
  )
  angle = (positions.float()[:, None] * frequency)[:, None, None, None]
  cos, sin = angle.cos(), angle.sin()
  return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(
  x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
  """Applies rotary embeddings to channels (i, i + K / 2).

  Args:
    x: [B, T, N, 2, H, K], queries and keys.
    tables: From `rotation`.

  Returns:
    [B, T, N, 2, H, K], same dtype as x.
  """
  cos, sin = tables
  wide = x.float()
  swapped = wide.roll(wide.shape[-1] // 2, -1)
  return torch.addcmul(wide * cos, swapped, sin).to(x.dtype)


def query_key_value(
  x: torch.Tensor, params: Params, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
  """Computes queries, keys and values of an attention layer.

  Args:
    x: [B * T * N, D].
    params: Parameters of the attention layer.
    shape: (B, T, N).

  Returns:
    Normalized queries and keys [B, T, N, 2, H, K], and values
    [B, T, N, H, K].
  """
  kernel = params["qkv"]["kernel"]  # [D, 3, H, K]
  qkv = (x @ kernel.flatten(1)).view(*shape, *kernel.shape[1:])
  scale = torch.stack(
    [params["query_norm"]["scale"], params["key_norm"]["scale"]]
  )
  return rms_norm(qkv[..., :2, :, :], scale[:, None]), qkv[..., 2, :, :]


def attend_space(both: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
  """Attends over all tokens of a frame.

  Args:
    both: [B, T, N, 2, H, K], queries and keys.
    value: [B, T, N, H, K].

  Returns:
    [B, T, N, H, K].
  """
  parts = (both[..., 0, :, :], both[..., 1, :, :], value)
  mixed = functional.scaled_dot_product_attention(
    *(part.flatten(0, 1).transpose(1, 2) for part in parts)
  )
  return mixed.transpose(1, 2).unflatten(0, value.shape[:2])


def attend_time(
  query: torch.Tensor,
  key: torch.Tensor,
  value: torch.Tensor,
  attention_mask: torch.Tensor | None,
) -> torch.Tensor:
  """Attends over frames, separately at each place.

  Args:
    query: [B, T, N, H, K].
    key: [B, Tk, N, H, K].
    value: [B, Tk, N, H, K].
    attention_mask: bool [T, Tk], True where attention is allowed; None for
      everywhere.

  Returns:
    [B, T, N, H, K].
  """
  mixed = functional.scaled_dot_product_attention(
    *(
      part.permute(0, 2, 3, 1, 4).flatten(0, 1) for part in (query, key, value)
    ),
    attn_mask=attention_mask,
  )
  b, _, n = query.shape[:3]
  return mixed.unflatten(0, (b, n)).permute(0, 3, 1, 2, 4)


def transformer(
  x: torch.Tensor,
  params: Tree,
  fields: Mapping[str, Any],
  cache: Cache | None = None,
  *,
  newest: int | None = None,
) -> torch.Tensor:
  """Runs a stack of space-time blocks.

  Args:
    x: [B, T, N, D].
    params: Parameters of the stack; the tensors of its layers have a first
      axis [Y].
    fields: The stack's fields in config.json.
    cache: Cache of the frames before x. The keys and values of x are written
      to the T slots after them. None if x begins at the first frame; its keys
      and values are then not stored.
    newest: Number of last frames to return; None for all. The last layer does
      not compute the others.

  Returns:
    [B, newest, N, D].
  """
  b, t, n, width = x.shape
  newest = t if newest is None else newest
  past = cache.length if cache is not None else 0
  positions = torch.arange(past + t, device=x.device)
  tables = rotation(positions[past:], fields["head_dim"])
  attention_mask = _causal_mask(
    positions[past:], positions, fields.get("window", 0)
  )
  x = x.reshape(-1, width)
  layers = params["layers"].unbound()
  for number, layer in enumerate(layers):
    space, time = layer["space"], layer["time"]
    mixed = attend_space(
      *query_key_value(
        rms_norm(x, layer["space_norm"]["scale"]), space, (b, t, n)
      )
    )
    x = _add_projected(x, mixed, space["out"])
    both, value = query_key_value(
      rms_norm(x, layer["time_norm"]["scale"]), time, (b, t, n)
    )
    query, key = rotate(both, tables).unbind(-3)
    if cache is not None:
      keys, values = cache.key[number], cache.value[number]
      keys[:, past : past + t], values[:, past : past + t] = key, value
      key, value = keys[:, : past + t], values[:, : past + t]
    if number == len(layers) - 1 and newest < t:
      query = query[:, t - newest :]
      if attention_mask is not None:
        attention_mask = attention_mask[t - newest :]
      x = x.view(b, t, n, width)[:, t - newest :].reshape(-1, width)
      if not newest:
        break
    mixed = attend_time(query, key, value, attention_mask)
    x = _add_projected(x, mixed, time["out"])
    hidden = rms_norm(x, layer["mlp_norm"]["scale"]) @ layer["mlp_in"]["kernel"]
    # The tanh approximation, as in `jax.nn.gelu`.
    hidden = functional.gelu(hidden, approximate="tanh")
    x = _add_projected(x, hidden, layer["mlp_out"])
  if fields.get("final_norm", True):
    x = rms_norm(x, params["norm"]["scale"])
  return x.view(b, newest, n, width)


def _add_projected(
  x: torch.Tensor, mixed: torch.Tensor, params: Params
) -> torch.Tensor:
  """Returns x [M, D] plus the projection of `mixed`.

  Args:
    x: [M, D].
    mixed: [M, C] or [B, T, N, H, K].
    params: The kernel, [C, D] or [H, K, D].
  """
  kernel = params["kernel"]
  return torch.addmm(
    x, mixed.reshape(len(x), -1), kernel.reshape(-1, kernel.shape[-1])
  )


def _causal_mask(
  queries: torch.Tensor, keys: torch.Tensor, window: int
) -> torch.Tensor | None:
  """Returns the attention mask in time, bool [T, Tk]; None if all are True.

  Args:
    queries: [T], positions of the frames that attend.
    keys: [Tk], positions of the frames that are attended to.
    window: Number of frames to attend to, including the query's own; 0 for all.
  """
  if len(queries) == 1 and (not window or len(keys) <= window):
    return None
  distance = queries[:, None] - keys[None]
  mask = distance >= 0
  return mask & (distance < window) if window else mask


def add_position(x: torch.Tensor, params: Params) -> torch.Tensor:
  """Adds the row and column embeddings of each place to x: [B, T, h * w, D]."""
  place = params["row_position"][:, None] + params["column_position"][None]
  return x + place.reshape(-1, x.shape[-1]).to(x.dtype)
