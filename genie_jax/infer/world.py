"""A playable world: prompts in, latent actions pressed, frames out.

Shapes:
  P  prompt frames      F  frames drawn      A  latent actions (buttons)
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.core import errors, images
from genie_jax.models import saved
from genie_jax.sampling import maskgit, pixels, rollout, static


class World:
  """A tokenizer and a dynamics model, and the LAM where there is one.

  Attributes:
    parts: "tokenizer", "dynamics" and perhaps "lam".
    sampling: How frames are drawn unless a call says otherwise.
    actions: "latent" or "true": what the buttons are.
    num_frames: Frames that the dynamics model sees at once, the window.
    frame_shape: (H, W, C).
    num_actions: A.
    fps: Frames a second at which the world was recorded.
    fingerprint: Of configs and weights.
  """

  def __init__(
      self,
      parts: Mapping[str, saved.Part],
      *,
      sampling: maskgit.Sampling | None = None,
      actions: str = "latent",
      fingerprint: str = "",
  ):
    """Puts models together.

    Args:
      parts: Name -> model.
      sampling: How frames are drawn; the paper's way when left out.
      actions: "latent" or "true".
      fingerprint: Of configs and weights.

    Raises:
      UserError: A model is missing, or two do not fit together.
    """
    check_parts(parts)
    self.parts = dict(parts)
    self.sampling = sampling or maskgit.Sampling()
    self.actions = actions
    self.fingerprint = fingerprint
    world = parts["dynamics"].config["world"]
    self.num_frames = world["num_frames"]
    self.frame_shape = (world["height"], world["width"], world["channels"])
    self.num_actions = world["num_latent_actions"]
    self.fps = world["fps"]
    self._modules = {
        name: static.hashable(part.module) for name, part in parts.items()}
    self._params = {
        name: jax.device_put(part.params) for name, part in parts.items()}

  def encode(self, frames: np.ndarray) -> jax.Array:
    """Returns tokens, int32 [B, T, h, w], of uint8 frames [B, T, H, W, C]."""
    return self._encode("tokenizer", frames)

  def infer_actions(self, frames: np.ndarray) -> jax.Array:
    """Returns the latent actions that lead through frames.

    Args:
      frames: uint8 [B, T, H, W, C].

    Returns:
      int32 [B, T-1].

    Raises:
      UserError: The world has no LAM.
    """
    if "lam" not in self.parts:
      raise errors.UserError(
          "This world holds no latent action model, which a prompt of several "
          "frames needs; give one frame, or export the world with its LAM.")
    return self._encode("lam", frames)

  def decode(self, tokens: jax.Array) -> np.ndarray:
    """Returns uint8 frames [B, T, H, W, C] of tokens [B, T, h, w], any T."""
    frames = pixels.decode(
        self._modules["tokenizer"], self._params["tokenizer"], tokens,
        window=self.parts["tokenizer"].config["world"]["num_frames"])
    return images.to_uint8(frames)

  def rollout_tokens(
      self,
      prompt_frames: np.ndarray,
      latent_actions: np.ndarray,
      *,
      seed: int = 0,
      sampling: maskgit.Sampling | None = None,
  ) -> jax.Array:
    """Continues prompts under latent actions, as tokens.

    Args:
      prompt_frames: uint8 [B, P, H, W, C]; only the last of what fits the
        window is used.
      latent_actions: int [B, F] in [0, A), pressed after the prompt.
      seed: Fixes all noise; a row's noise depends on its number only.
      sampling: How to draw; the world's way when left out.

    Returns:
      int32 [B, min(P, window) + F, h, w].

    Raises:
      UserError: An action is out of range, or frames of another shape.
    """
    latent_actions = self.check_actions(latent_actions)
    prompt_frames = np.asarray(prompt_frames)[:, -self.num_frames:]
    if prompt_frames.shape[2:] != self.frame_shape:
      raise errors.UserError(
          f"Prompt frames are {prompt_frames.shape[2:]}, this world's are "
          f"{self.frame_shape}; resize them first.")
    tokens = self.encode(prompt_frames)
    inside = np.zeros((len(tokens), 0), np.int32)
    if prompt_frames.shape[1] > 1:
      inside = np.asarray(self.infer_actions(prompt_frames))
    return rollout.rollout(
        self._modules["dynamics"], self._params["dynamics"], tokens,
        jnp.asarray(np.concatenate([inside, latent_actions], 1)),
        jax.random.key(seed), num_frames=latent_actions.shape[1],
        window=self.num_frames, sampling=sampling or self.sampling)

  def rollout(
      self,
      prompt_frames: np.ndarray,
      latent_actions: np.ndarray,
      *,
      seed: int = 0,
      sampling: maskgit.Sampling | None = None,
  ) -> np.ndarray:
    """Continues one prompt under latent actions, as frames.

    Args:
      prompt_frames: uint8 [P, H, W, C].
      latent_actions: int [F] in [0, A).
      seed: Fixes all noise.
      sampling: How to draw; the world's way when left out.

    Returns:
      uint8 [min(P, window) + F, H, W, C]: the prompt as the tokenizer shows
      it, then the drawn frames.

    Raises:
      UserError: An action is out of range, or frames of another shape.
    """
    tokens = self.rollout_tokens(
        np.asarray(prompt_frames)[None], np.asarray(latent_actions)[None],
        seed=seed, sampling=sampling)
    return self.decode(tokens)[0]

  def check_actions(self, latent_actions: np.ndarray) -> np.ndarray:
    """Returns actions as int32.

    Raises:
      UserError: One of them is no button of this world.
    """
    latent_actions = np.asarray(latent_actions)
    wrong = latent_actions[
        (latent_actions < 0) | (latent_actions >= self.num_actions)]
    if wrong.size:
      raise errors.UserError(
          f"Action {wrong[0]} is out of range: this world has "
          f"{self.num_actions} {self.actions} actions, 0 to "
          f"{self.num_actions - 1}.")
    return latent_actions.astype(np.int32)

  def _encode(self, name: str, frames: np.ndarray) -> jax.Array:
    return _encode(
        self._modules[name], self._params[name], jnp.asarray(frames))


def check_parts(parts: Mapping[str, saved.Part]) -> None:
  """Checks that models make up a world.

  Raises:
    UserError: One is missing, or two were made for different worlds.
  """
  for name in ("tokenizer", "dynamics"):
    if name not in parts:
      raise errors.UserError(
          f"A world needs a {name}, and only {', '.join(parts) or 'nothing'} "
          "was given; add the workdir that trained it.")
  shared = {
      "tokenizer": ("height", "width", "channels", "token_patch", "num_codes"),
      "lam": ("height", "width", "channels", "num_latent_actions")}
  needed = parts["dynamics"].config["world"]
  for name, fields in shared.items():
    if name not in parts:
      continue
    found = parts[name].config["world"]
    for field in fields:
      if found[field] != needed[field]:
        raise errors.UserError(
            f"The {name} was trained with config.world.{field}="
            f"{found[field]!r}, the dynamics with {needed[field]!r}; put "
            "together models of the same world.")


@functools.partial(jax.jit, static_argnames="module")
def _encode(module: Any, params: Any, frames: jax.Array) -> jax.Array:
  return module.apply(
      {"params": params}, frames.astype(jnp.float32) / 255, method="encode")
