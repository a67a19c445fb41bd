"""Tokenizer, dynamics and latent action model in PyTorch, for inference."""

import dataclasses
from typing import Any

import torch

from genie_jax.models import clip_length
from genie_jax.ports.torch import layers, quantizers


@dataclasses.dataclass(frozen=True)
class Part:
  """One model of a world folder.

  Attributes:
    world: The group `world` of config.json.
    model: The group `model` of config.json.
    params: Nested dict of tensors.
    quantizer: The group `quantizer` of config.json; None if there is none.
    trained_frames: Length of the clips that a LAM was trained on; None if
      config.json does not state it.
  """

  world: dict[str, Any]
  model: dict[str, Any]
  params: dict[str, Any]
  quantizer: dict[str, Any] | None = None
  trained_frames: int | None = None


class _Model(layers.Tree):
  """A model whose parameters have their names in a world's files."""

  def __init__(self, part: Part):
    """Builds the model from a part of a world."""
    super().__init__(part.params)
    self.world, self.fields = part.world, part.model
    self.quantizer = part.quantizer
    self.trained_frames = part.trained_frames
    self.window = part.world["num_frames"]

  @property
  def grid(self) -> tuple[int, int]:
    """(h, w), the token grid of a frame."""
    world = self.world
    return layers.grid(world["height"], world["width"], world["token_patch"])

  def _embedded(self, patches: torch.Tensor, name: str) -> torch.Tensor:
    """Embeds patches [B, T, N, P] of pixels in [0, 1] as [B, T, N, D]."""
    kernel = self[name]["kernel"]
    return layers.project((2 * patches - 1).to(kernel.dtype), self[name])

  def _codes(self, num_codes: int) -> Any:
    """Returns the quantizer with the current parameters."""
    tensors = self["codes"].named_parameters() if "codes" in self else ()
    return quantizers.build(
      self.quantizer,
      self.fields,
      {name: tensor.float() for name, tensor in tensors},
      num_codes,
    )


class Tokenizer(_Model):
  """Frames to tokens and back; causal in time."""

  def encode(self, frames: torch.Tensor) -> torch.Tensor:
    """Returns tokens, int64 [B, T, h, w], of [B, T, H, W, C] in [0, 1]."""
    x = self._embedded(
      layers.patchify(frames, self.world["token_patch"]), "embed"
    )
    x = layers.add_position(x, self["encoder_position"])
    x = layers.transformer(x, self["encoder_stack"], self.fields["encoder"])
    codes = self._codes(self.world["num_codes"]).encode(
      layers.project(x.float(), self["to_code"])
    )
    return codes.reshape(*codes.shape[:2], *self.grid)

  def empty_cache(self, clips: int, slots: int) -> layers.Cache:
    """Returns an empty cache of the decoder with room for `slots` frames."""
    places = self.grid[0] * self.grid[1]
    return layers.empty_cache(
      self["from_code"]["kernel"], self.fields["decoder"], clips, slots, places
    )

  def decode(
    self,
    tokens: torch.Tensor,
    newest: int | None = None,
    cache: layers.Cache | None = None,
  ) -> torch.Tensor:
    """Decodes tokens to frames.

    Args:
      tokens: int64 [B, T, h, w].
      newest: Number of last frames to decode; None for all.
      cache: Keys and values of the frames before these (`empty_cache`); those
        of these frames are written to its free slots. None to decode tokens
        that begin at the first frame, without a cache.

    Returns:
      float32 [B, newest, H, W, C] in [0, 1].
    """
    x = self._codes(self.world["num_codes"]).lookup(
      tokens.reshape(*tokens.shape[:2], -1)
    )
    dtype = self["from_code"]["kernel"].dtype
    x = layers.project(x.to(dtype), self["from_code"])
    x = layers.add_position(x, self["decoder_position"])
    x = layers.transformer(
      x, self["decoder_stack"], self.fields["decoder"], cache, newest=newest
    )
    pixels = layers.project(x.float(), self["to_pixels"])
    if self.fields.get("output") == "linear":
      pixels = 0.5 + 0.5 * pixels
    else:
      pixels = pixels.sigmoid()
    world = self.world
    return layers.unpatchify(
      pixels, world["height"], world["width"], world["token_patch"]
    ).clamp(0, 1)


class Dynamics(_Model):
  """Scores the tokens of a frame given earlier frames and actions."""

  def __init__(self, part: Part):
    """Builds the model from the "dynamics" part of a world."""
    super().__init__(part)
    self.no_action = part.world["num_latent_actions"]
    self.num_codes = part.world["num_codes"]
    self._prepend = part.model.get("actions_enter", "add") == "prepend"

  def forward(
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
    return self.score(tokens, incoming, hidden)

  def score(
    self,
    tokens: torch.Tensor,
    incoming: torch.Tensor,
    hidden: torch.Tensor,
    cache: layers.Cache | None = None,
    last: torch.Tensor | None = None,
  ) -> torch.Tensor:
    """Scores frames that follow those in a cache.

    Args:
      tokens: int64 [B, T, h, w], usually T = 1.
      incoming: int64 [B, T], the action that leads to each frame.
      hidden: bool [B, T, h, w].
      cache: Keys and values of earlier frames, with free slots for these.
      last: int64 [B, h, w], the frame before these; None at the first frame
        of a window, where its embedding is 0.

    Returns:
      Logits, float32 [B, T, h, w, V].
    """
    x = layers.transformer(
      self._inputs(tokens, incoming, hidden, last),
      self["stack"],
      self.fields["transformer"],
      cache,
    )
    x = x[:, :, 1:] if self._prepend else x
    logits = layers.project(x, self["to_logits"]).float()
    return logits.reshape(*tokens.shape, self.num_codes)

  def remember(
    self,
    tokens: torch.Tensor,
    incoming: torch.Tensor,
    cache: layers.Cache | None = None,
    last: torch.Tensor | None = None,
  ) -> layers.Cache:
    """Adds finished frames to a cache; arguments as in `score`.

    Returns:
      The cache, in the same memory; a new one if `cache` is None.
    """
    b, t = tokens.shape[:2]
    if cache is None:
      places = self.grid[0] * self.grid[1] + self._prepend
      cache = layers.empty_cache(
        self["token_embedding"], self.fields["transformer"], b, t, places
      )
    layers.transformer(
      self._inputs(
        tokens, incoming, torch.zeros_like(tokens, dtype=torch.bool), last
      ),
      self["stack"],
      self.fields["transformer"],
      cache,
      newest=0,
    )
    return dataclasses.replace(cache, length=cache.length + t)

  def _inputs(
    self,
    tokens: torch.Tensor,
    incoming: torch.Tensor,
    hidden: torch.Tensor,
    last: torch.Tensor | None,
  ) -> torch.Tensor:
    """Returns the stack's input, [B, T, N, D] or, with actions, N + 1."""
    table = self["token_embedding"]
    b, t = tokens.shape[:2]
    flat = tokens.reshape(b, t, -1)
    x = torch.where(
      hidden.reshape(b, t, -1, 1), self["hidden_token"][0], table[flat]
    )
    if self.fields.get("last_frame", False):
      first = (
        torch.zeros_like(x[:, :1])
        if last is None
        else table[last.reshape(b, 1, -1)]
      )
      before = torch.cat([first, table[flat[:, :-1]]], 1)
      x = x + self["last_frame_scale"] * before
      if self.fields.get("last_frame_reach", 0):
        x = x + self._around(before)
    action = self["action_embedding"][incoming][:, :, None]
    x = layers.add_position(x, self["position"])
    return torch.cat([action, x], 2) if self._prepend else x + action

  def _around(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the map of the square around each place of [B, T, N, D]."""
    reach, (h, w) = self.fields["last_frame_reach"], self.grid
    lead, width = x.shape[:2], x.shape[-1]
    padded = torch.nn.functional.pad(
      x.reshape(*lead, h, w, width), (0, 0, *[reach] * 4)
    )
    steps = range(2 * reach + 1)
    copies = [
      padded[:, :, row : row + h, column : column + w]
      for row in steps
      for column in steps
    ]
    squares = torch.cat(copies, -1).reshape(*lead, h * w, -1)
    return squares @ self["last_frame_around"]["kernel"].reshape(-1, width)


class Lam(_Model):
  """The latent action model; only its encoder is needed."""

  def encode(self, frames: torch.Tensor) -> torch.Tensor:
    """Returns latent actions, int64 [B, T-1], of [B, T, H, W, C] in [0, 1].

    Raises:
      UserError: The clips are longer than those that it was trained on.
    """
    fields = self.fields
    if not fields["encoder"].get("window", 0):
      clip_length.check("lam", frames.shape[1], self.trained_frames)
    frames = layers.shrink(frames, fields.get("shrink", 1))
    x = self._embedded(
      layers.patchify(frames, fields["patch"]), "encoder_embed"
    )
    if fields.get("match", False):
      costs = layers.mismatch(frames, fields["reach"], fields["patch"])
      x = x + layers.project(costs.to(x.dtype), self["encoder_match"])
    x = layers.add_position(x, self["encoder_position"])
    token = self["action_token"].to(x.dtype).expand(*x.shape[:2], 1, -1)
    x = layers.transformer(
      torch.cat([token, x], 2), self["encoder_stack"], fields["encoder"]
    )
    found = self._codes(self.world["num_latent_actions"]).encode(
      layers.project(x[:, 1:, 0].float(), self["to_code"])
    )
    buttons = fields.get("buttons")
    return found if buttons is None else _press(found, buttons)


def _press(codes: torch.Tensor, buttons: dict[str, Any]) -> torch.Tensor:
  """Returns the buttons of codes, both int64 [B, T].

  Args:
    codes: In order of time.
    buttons: Fields of a `models.button_map.ButtonMap`.
  """
  pressed = torch.empty_like(codes)
  for row, clip in enumerate(codes.tolist()):
    held, last, run = buttons["first"], -1, 0
    for time, code in enumerate(clip):
      button = buttons["button_of"][code]
      run = run + 1 if button == last else 1
      limit = buttons["longest"][button] if button >= 0 else 0
      over = button < 0 or (limit and run > limit)
      pressed[row, time] = held if over else button
      if not over and not limit:
        held = button
      last = button
  return pressed
