"""Plays worlds in PyTorch, without JAX.

    from genie_jax.ports import torch as genie_torch
    world = genie_torch.load_world("world").to("cuda", torch.bfloat16)
    state = world.reset(picture)                # uint8 [H, W, C]
    state, frame = world.step(state, action=3)

Needs torch, numpy and safetensors (`pip install genie_jax[torch]`). Given the
same tokens, its float32 logits differ from those of JAX by at most 1e-4 of the
largest logit. Its random numbers differ from those of JAX; `step` can be given
noise instead.

Shapes:
  P  prompt frames      M  frames of history      A  actions
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from genie_jax.core import errors, files
from genie_jax.models import world_sizes
from genie_jax.ports.torch import layers, models, samplers, weights
from genie_jax.worlds import shipped, world_manifest


@dataclasses.dataclass(frozen=True)
class State:
  """The state of one player, which is never changed in place.

  Attributes:
    tokens: int64 [M, h, w], the last frames, newest last.
    incoming: int64 [M], the action that led to each of them.
    cache: Keys and values of the frames in the window, including the newest;
      None if the window is full, because the next step recomputes them.
    position: Index of the newest frame in the window.
    decoder_cache: Keys and values of the frames that the decoder attends to,
      including the newest.
    frame: uint8 [H, W, C], the newest frame.
  """

  tokens: torch.Tensor
  incoming: torch.Tensor
  cache: layers.Cache | None
  position: int
  decoder_cache: layers.Cache
  frame: np.ndarray


class World(torch.nn.Module):
  """A playable world.

  A parameter has the name of its tensor in the world's files, with dots instead
  of slashes, for example "dynamics.stack.layers.mlp_in.kernel". `.to()` moves
  the world to another device or dtype; a state can be used only with the device
  and dtype that it was created with.

  Attributes:
    tokenizer: Its tokenizer.
    dynamics: Its dynamics model.
    lam: Its latent action model, or None.
    sampling: The frame sampler.
    drop: Number of frames that a full window drops at once.
    manifest: The whole manifest.json.
    name: Its name.
    prompts: Paths of images to start from.
    num_actions: A.
    frame_shape: (H, W, C).
  """

  def __init__(
    self,
    parts: Mapping[str, models.Part],
    sampling: samplers.FrameSampler,
    drop: int,
    manifest: Mapping[str, Any],
    prompts: tuple[pathlib.Path, ...] = (),
  ):
    """Builds the world; see `load_world`."""
    super().__init__()
    self.tokenizer = models.Tokenizer(parts["tokenizer"])
    self.dynamics = models.Dynamics(parts["dynamics"])
    self.lam = models.Lam(parts["lam"]) if "lam" in parts else None
    self.sampling, self.drop = sampling, drop
    self.manifest, self.name = dict(manifest), manifest["name"]
    self.prompts = prompts
    world = parts["dynamics"].world
    self.num_actions = world["num_latent_actions"]
    self.frame_shape = (world["height"], world["width"], world["channels"])

  @property
  def device(self) -> torch.device:
    """The device of the parameters."""
    return self.dynamics["token_embedding"].device

  def forward(
    self, state: State, action: int, noise: Any = None
  ) -> tuple[State, np.ndarray]:
    """Same as `step`."""
    return self.step(state, action, noise)

  @torch.no_grad()
  def reset(self, frames: np.ndarray) -> State:
    """Starts a player from uint8 [H, W, C] or [P, H, W, C].

    Raises:
      UserError: The frames have another shape or dtype, or there are several
        and the world has no LAM.
    """
    frames = np.asarray(frames)
    frames = frames[None] if frames.ndim == 3 else frames
    if (
      frames.dtype != np.uint8
      or not len(frames)
      or (frames.shape[1:] != self.frame_shape)
    ):
      raise errors.UserError(
        f"Prompt frames are {frames.dtype} of {frames.shape[1:]}, this "
        f"world's are uint8 of {self.frame_shape}; resize them first."
      )
    if len(frames) > 1 and self.lam is None:
      raise errors.UserError(
        "This world has no latent action model, which a prompt of several "
        "frames needs; give one frame."
      )
    seen = (
      torch.from_numpy(frames[-self.dynamics.window :].copy())
      .to(self.device)[None]
      .float()
      / 255
    )
    inside = (
      self.lam.encode(seen)[0]
      if self.lam is not None and seen.shape[1] > 1
      else (torch.zeros(0, dtype=torch.int64, device=self.device))
    )
    return self.reset_tokens(self.tokenizer.encode(seen)[0], inside)

  @torch.no_grad()
  def reset_tokens(
    self, tokens: torch.Tensor, latent_actions: torch.Tensor
  ) -> State:
    """Starts a player from tokens [P, h, w] and actions [P - 1]."""
    first = torch.full((1,), self.dynamics.no_action, device=self.device)
    incoming = torch.cat([first, latent_actions])
    position = len(tokens) - 1
    full = position == self.dynamics.window - 1
    decoder_cache, frame = self._show(tokens[-self.tokenizer.window :])
    return State(
      tokens,
      incoming,
      None if full else self._cache_of(tokens, incoming),
      position,
      decoder_cache,
      frame,
    )

  @torch.no_grad()
  def step(
    self, state: State, action: int, noise: Any = None
  ) -> tuple[State, np.ndarray]:
    """Draws the frame that an action leads to.

    Args:
      state: The player; it is not changed.
      action: In [0, A).
      noise: Noise of the structure that the sampler's `noise` returns; None to
        draw it from torch's global generator.

    Returns:
      The next state, and the frame, uint8 [H, W, C].

    Raises:
      UserError: The action is out of range.
    """
    if not 0 <= int(action) < self.num_actions:
      raise errors.UserError(
        f"Action {action} is out of range: this world has "
        f"{self.num_actions} actions, 0 to {self.num_actions - 1}."
      )
    cache, position = state.cache, state.position
    if cache is None:
      kept = self.dynamics.window - self.drop
      incoming = state.incoming[-kept:].clone()
      incoming[0] = self.dynamics.no_action
      cache, position = self._cache_of(state.tokens[-kept:], incoming), kept - 1
    position += 1
    cache = cache.with_room(1)  # A copy: the state must not change.
    incoming = torch.full((1, 1), int(action), device=self.device)
    last = state.tokens[-1:]
    if noise is None:
      noise = self.sampling.noise(
        self.dynamics.grid, self.dynamics.num_codes, self.device
      )
    tokens = self.sampling.draw(
      lambda tokens, hidden: self.dynamics.score(
        tokens[None, None], incoming, hidden[None, None], cache, last
      )[0, 0],
      self.dynamics.grid,
      noise,
    )[None]
    if position == self.dynamics.window - 1:
      cache = None  # The next step drops frames and recomputes it.
    else:
      cache = self.dynamics.remember(tokens[None], incoming, cache, last)
    window = self.tokenizer.window
    history = max(self.dynamics.window, window)
    all_tokens = torch.cat([state.tokens, tokens])[-history:]
    if state.decoder_cache.length < window:
      decoder_cache, frame = self._show(tokens, state.decoder_cache)
    else:  # The window is full: drop frames, and compute the others again.
      kept = window - min(self.drop, window - 1)
      decoder_cache, frame = self._show(all_tokens[-(kept + 1) :])
    return State(
      all_tokens,
      torch.cat([state.incoming, incoming[0]])[-history:],
      cache,
      position,
      decoder_cache,
      frame,
    ), frame

  def _cache_of(
    self, tokens: torch.Tensor, incoming: torch.Tensor
  ) -> layers.Cache:
    return self.dynamics.remember(tokens[None], incoming[None])

  def _show(
    self, tokens: torch.Tensor, cache: layers.Cache | None = None
  ) -> tuple[layers.Cache, np.ndarray]:
    """Decodes the last of some frames.

    Args:
      tokens: int64 [T, h, w], the frames that are not in the cache.
      cache: The decoder's cache, which is not changed; None if it is empty.

    Returns:
      The cache with these frames, and the last frame, uint8 [H, W, C].
    """
    if cache is None:
      cache = self.tokenizer.empty_cache(clips=1, slots=len(tokens))
    else:
      cache = cache.with_room(len(tokens))  # A copy, as in `step`.
    shown = self.tokenizer.decode(tokens[None], newest=1, cache=cache)[0, -1]
    frame = (shown * 255).round().to(torch.uint8).cpu().numpy()
    return dataclasses.replace(cache, length=cache.length + len(tokens)), frame


def load_world(
  folder: files.PathLike,
  *,
  device: str | torch.device = "cpu",
  dtype: torch.dtype = torch.float32,
  slide: str | None = None,
) -> World:
  """Loads a world folder, with the same checks as the JAX loader.

  Args:
    folder: A folder that `genie export` wrote, or the name of a world that
      ships with genie_jax (see `genie_jax.worlds`).
    device: The device of the weights.
    dtype: The dtype of weights and activations.
    slide: "exact", the only mode in PyTorch, to override the world's mode;
      None for the world's mode.

  Raises:
    UserError: The folder is not a world, is damaged, or needs a slide mode or
      a frame sampler that PyTorch does not have.
  """
  if slide not in (None, "exact"):
    raise errors.UserError(
      f"slide is {slide!r}; only 'exact' is available in PyTorch."
    )
  folder = shipped.find(folder)
  manifest = world_manifest.read_manifest(folder)
  world_manifest.check_files(folder, manifest)
  config = files.read_json(folder / world_manifest.CONFIG)
  trees = weights.read(folder, config, torch.device(device))
  world_manifest.check_fingerprint(folder, manifest)
  for name in trees:
    world_sizes.check(
      f"{folder}/config.json: parts.{name}", config["parts"][name]
    )
  stated = {"mode": "exact", "drop": 1, **config.get("slide", {})}
  if stated["mode"] != "exact" and slide is None:
    raise errors.UserError(
      f"{folder} slides in mode {stated['mode']!r}, which only JAX supports; "
      'load it with slide="exact", or play it in JAX.'
    )
  parts = {
    name: models.Part(
      config["parts"][name]["world"],
      config["parts"][name]["model"],
      tree,
      config["parts"][name].get("quantizer"),
      config.get("trained_frames", {}).get(name),
    )
    for name, tree in trees.items()
  }
  return World(
    parts,
    samplers.make(config["sampling"]),
    stated["drop"],
    manifest,
    world_manifest.prompts(folder, manifest),
  ).to(dtype=dtype)
