"""Worlds in PyTorch: the same folder, the same frames, no JAX.

    from genie_jax.ports import torch as genie_torch
    world = genie_torch.load_world("world").to("cuda", torch.bfloat16)
    state = world.reset(picture)                # uint8 [H, W, C]
    state, frame = world.step(state, action=3)

Needs torch, numpy and safetensors (`pip install genie_jax[torch]`). Given the
same tokens its float32 logits are those of JAX to within 1e-4 of their size;
its random numbers are its own unless noise is given.

Shapes:
  P  prompt frames      M  frames kept      W  frames in the window
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from genie_jax.core import errors, files
from genie_jax.ports.torch import layers, models, samplers, weights
from genie_jax.worlds import shipped, world_manifest


@dataclasses.dataclass(frozen=True)
class State:
  """One player between two frames; never changed in place.

  Attributes:
    tokens: int64 [M, h, w], the last frames, newest last.
    incoming: int64 [M], the action that led to each of them.
    cache: Keys and values of the frames in the window, the newest included;
      None where the window is full, as the next step computes them again.
    position: Place of the newest frame in the window.
    decoded: How many of the last frames the decoder sees.
    frame: uint8 [H, W, C], the newest frame.
  """

  tokens: torch.Tensor
  incoming: torch.Tensor
  cache: layers.Cache | None
  position: int
  decoded: int
  frame: np.ndarray


class World(torch.nn.Module):
  """A playable world.

  A parameter has the name of its tensor in the world's files, with dots for
  slashes: "dynamics.stack.layers.mlp_in.kernel". `.to()` moves it to another
  device or dtype; a state belongs to the device and dtype it was made with.

  Attributes:
    tokenizer: Its tokenizer.
    dynamics: Its dynamics model.
    lam: Its latent action model, or None.
    sampling: How frames are drawn.
    drop: Frames that a full window drops at once.
    manifest: The whole manifest.json.
    name: Its name.
    prompts: Paths of pictures to start from.
  """

  def __init__(
    self,
    parts: Mapping[str, models.Part],
    sampling: samplers.FrameSampler,
    drop: int,
    manifest: Mapping[str, Any],
    prompts: tuple[pathlib.Path, ...] = (),
  ):
    """Puts models together; see `load_world`."""
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
    """Where the parameters are."""
    return self.dynamics["token_embedding"].device

  def forward(
    self, state: State, action: int, noise: Any = None
  ) -> tuple[State, np.ndarray]:
    """Does what `step` does."""
    return self.step(state, action, noise)

  @torch.no_grad()
  def reset(self, frames: np.ndarray) -> State:
    """Starts a player from uint8 [H, W, C] or [P, H, W, C].

    Raises:
      UserError: Frames of another shape, or several without a LAM.
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
        "This world holds no latent action model, which a prompt of several "
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
    decoded = min(len(tokens), self.tokenizer.window)
    position = len(tokens) - 1
    full = position == self.dynamics.window - 1
    return State(
      tokens,
      incoming,
      None if full else self._cache_of(tokens, incoming),
      position,
      decoded,
      self._show(tokens, decoded),
    )

  @torch.no_grad()
  def step(
    self, state: State, action: int, noise: Any = None
  ) -> tuple[State, np.ndarray]:
    """Draws the frame that an action leads to.

    Args:
      state: The player, which stays as it is.
      action: In [0, A).
      noise: What is random, as the sampler's `noise` gives it; drawn from
        torch's generator when left out.

    Returns:
      The player after it, and the frame, uint8 [H, W, C].

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
    cache = cache.with_room(1)  # A copy: the state stays as it is.
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
      cache = None  # The next step drops frames and computes it again.
    else:
      cache = self.dynamics.remember(tokens[None], incoming, cache, last)
    window = self.tokenizer.window
    decoded = state.decoded + 1
    if decoded > window:
      decoded = window - min(self.drop, window - 1) + 1
    history = max(self.dynamics.window, window)
    all_tokens = torch.cat([state.tokens, tokens])[-history:]
    frame = self._show(all_tokens, decoded)
    return State(
      all_tokens,
      torch.cat([state.incoming, incoming[0]])[-history:],
      cache,
      position,
      decoded,
      frame,
    ), frame

  def _cache_of(
    self, tokens: torch.Tensor, incoming: torch.Tensor
  ) -> layers.Cache:
    return self.dynamics.remember(tokens[None], incoming[None])

  def _show(self, tokens: torch.Tensor, decoded: int) -> np.ndarray:
    shown = self.tokenizer.decode(tokens[None, -decoded:], newest=1)[0, -1]
    return (shown * 255).round().to(torch.uint8).cpu().numpy()


def load_world(
  folder: files.PathLike,
  *,
  device: str | torch.device = "cpu",
  dtype: torch.dtype = torch.float32,
  slide: str | None = None,
) -> World:
  """Loads a world folder, checked as strictly as JAX's loader does.

  Args:
    folder: A folder that `genie export` wrote, or the name of a world that
      ships (see `genie_jax.worlds`).
    device: Where the weights go.
    dtype: Of the weights and their products.
    slide: "exact", the only one that there is here, for worlds that ask for
      another; the world's when left out.

  Raises:
    UserError: It is no world, it is damaged, or it asks for what this loader
      does not do (slides other than "exact", or a frame sampler without a
      counterpart in PyTorch).
  """
  if slide not in (None, "exact"):
    raise errors.UserError(
      f"slide is {slide!r}; only 'exact' is there in PyTorch."
    )
  folder = shipped.find(folder)
  manifest = world_manifest.read_manifest(folder)
  world_manifest.check_files(folder, manifest)
  config = files.read_json(folder / world_manifest.CONFIG)
  trees = weights.read(folder, config, torch.device(device))
  stated = {"mode": "exact", "drop": 1, **config.get("slide", {})}
  if stated["mode"] != "exact" and slide is None:
    raise errors.UserError(
      f"{folder} slides in mode {stated['mode']!r}, which only the JAX "
      'player does; load it with slide="exact", or play it in JAX.'
    )
  parts = {
    name: models.Part(
      config["parts"][name]["world"],
      config["parts"][name]["model"],
      tree,
      config["parts"][name].get("quantizer"),
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
