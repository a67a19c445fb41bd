"""A playable world: prompts in, latent actions pressed, frames out.

    state = world.reset(picture)
    state, frame = world.step(state, 3)

Shapes:
  P  prompt frames      F  frames drawn      A  latent actions (buttons)
  S  players
"""

import contextlib
import copy
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from genie_jax.core import errors, images
from genie_jax.models import store
from genie_jax.sampling import decoding, player, prepare, samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import int8, param_tree
from genie_jax.worlds import buttons as buttons_lib
from genie_jax.worlds import functions as functions_lib
from genie_jax.worlds import pictures, validation

State = player.State

# Numbers of players for which a step is compiled; see `split`.
BATCHES = (16, 8, 4, 2, 1)

# Compiled programs, shared by all worlds of equal shapes. A step takes over the
# memory of the states it is given.
_encode = jax.jit(functions_lib.encode, static_argnames="module")
_step = jax.jit(player.step, static_argnames="models", donate_argnames="state")
_step_many = jax.jit(
  player.step_many, static_argnames="models", donate_argnames="states"
)


@jax.jit
def _reset(functions, frames, latent_actions, key):
  return functions.reset(functions.params, frames, key, latent_actions)


@jax.jit
def _copy(state):
  return jax.tree.map(jnp.copy, state)


def split(players: int, sizes: Sequence[int]) -> Iterator[slice]:
  """Splits players into groups for which a step is compiled.

  Args:
    players: How many there are.
    sizes: The sizes of groups that may be used; 1 is one of them.

  Yields:
    Slices of the players, in order, each as large as `sizes` allow.
  """
  begin = 0
  while begin < players:
    end = begin + max(size for size in sizes if size <= players - begin)
    yield slice(begin, end)
    begin = end


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
    slide: What happens when the window is full.
    name: The world's name, "" where it has none.
    manifest: Its folder's manifest.json, {} where it has none.
    prompts: Pictures to start from.
    buttons: What each button was measured to do.
  """

  def __init__(
    self,
    parts: Mapping[str, store.Part],
    *,
    sampling: samplers.FrameSampler | None = None,
    slide: slide_lib.Slide | None = None,
    actions: str = "latent",
    fingerprint: str = "",
    name: str = "",
    manifest: Mapping[str, Any] | None = None,
    prompts: Sequence[pathlib.Path] = (),
    dtype: str | None = None,
    mesh: Mesh | None = None,
  ):
    """Puts models together.

    Args:
      parts: Name -> model.
      sampling: How frames are drawn; the paper's way when left out.
      slide: What happens when the window is full; exact when left out.
      actions: "latent" or "true".
      fingerprint: Of configs and weights.
      name: The world's name.
      manifest: Its folder's manifest.json.
      prompts: Pictures to start from.
      dtype: Of the products, "float32" or "bfloat16"; by device when left
        out (see `prepare.default_dtype`).
      mesh: Where the parameters lie, if they are split; axes tensor and
        frame only, since a player has no batch to split.

    Raises:
      UserError: A model is missing, two do not fit together, or a model or
        the sampler does not keep its protocol.
    """
    validation.check_parts(parts)
    if mesh is not None and mesh_lib.batch_ways(mesh) > 1:
      raise errors.UserError(
        f"The mesh splits a batch {mesh_lib.batch_ways(mesh)} ways, but a "
        "player has none; give its devices to the axis tensor."
      )
    self._mesh = mesh
    self.parts = dict(parts)
    self._set_sampling(samplers.default() if sampling is None else sampling)
    self.actions = actions
    self.fingerprint = fingerprint
    world = parts["dynamics"].config["world"]
    self.num_frames = world["num_frames"]
    self.frame_shape = (world["height"], world["width"], world["channels"])
    self.num_actions = world["num_latent_actions"]
    self.fps = world["fps"]
    self.name = name
    self.manifest = dict(manifest or {})
    self.prompts = tuple(prompts)
    self.buttons = buttons_lib.of(self.manifest, self.num_actions)
    ready = {
      name: prepare.for_play(part.module, part.params, dtype)
      for name, part in parts.items()
    }
    self._modules = {name: module for name, (module, _) in ready.items()}
    self._params = {
      name: jax.device_put(params) for name, (_, params) in ready.items()
    }
    self._play_params = {
      name: self._params[name] for name in ("tokenizer", "dynamics")
    }
    self._set_slide(slide or slide_lib.Slide())

  def with_options(
    self,
    *,
    sampling: samplers.FrameSampler | None = None,
    slide: slide_lib.Slide | None = None,
  ) -> "World":
    """Returns the same world, played otherwise; the weights are shared.

    A state belongs to the kind of slide with which it was reset.

    Args:
      sampling: Any frame sampler, registered or not; the world's when left
        out.
      slide: What happens when the window is full; the world's when left out.

    Raises:
      UserError: The slide does not fit the window, or the sampler does not
        keep the protocol.
    """
    other = copy.copy(self)
    if sampling is not None:
      other._set_sampling(sampling)
    other._set_slide(slide or self.slide)
    return other

  def _set_sampling(self, sampling: samplers.FrameSampler) -> None:
    self.sampling = samplers.check(sampling)

  def _set_slide(self, slide: slide_lib.Slide) -> None:
    self.slide = slide.check(self.num_frames)
    self._models = player.Models(
      self._modules["tokenizer"],
      self._modules["dynamics"],
      self.num_frames,
      self.parts["tokenizer"].config["world"]["num_frames"],
      self.slide,
    )

  def __repr__(self) -> str:
    height, width, channels = self.frame_shape
    count = sum(
      math.prod(leaf.shape)
      for part in self.parts.values()
      for leaf in param_tree.flatten(dict(part.params)).values()
    )
    return (
      f"World({self.name!r}, {self.num_actions} {self.actions} actions, "
      f"{height}x{width}x{channels} frames at {self.fps} a second, window "
      f"{self.num_frames}, {self.slide.mode} slide, {count:,} parameters)"
    )

  def functions(self) -> functions_lib.Functions:
    """Returns this world as pure functions for `jit`, `vmap` and `scan`.

    They draw frames as this world does, with its sampling and its slide. Those
    of a world that is split over a mesh are traced inside `jax.set_mesh(mesh)`.
    """
    lam = self.parts.get("lam")
    return functions_lib.Functions(
      params=self._params,
      sampling=self.sampling,
      models=self._models,
      lam=self._modules.get("lam"),
      lam_frames=lam and store.most_frames("lam", lam),
      frame_shape=self.frame_shape,
      num_actions=self.num_actions,
    )

  def reset(
    self,
    picture: Any = None,
    *,
    seed: int = 0,
    latent_actions: Sequence[int] | None = None,
  ) -> State:
    """Starts a player from a prompt.

    Args:
      picture: A path, a PIL image, an array [H, W, C] or [P, H, W, C] of any
        size, or a list of these; cut and resized as in `pictures.as_frames`.
        Only the last of what fits the window is used. The world's first prompt
        when left out.
      seed: Fixes all noise of the player.
      latent_actions: int [P - 1], those between the prompt's frames; the LAM
        finds them when left out.

    Returns:
      The player, to be given to `step`.

    Raises:
      UserError: It is not a picture, the world has no prompts, actions are out
        of range or too few, several frames come without actions and without a
        LAM, or the seed is out of range.
    """
    if picture is None:
      picture = self._first_prompt()
    frames = pictures.as_frames(picture, self.frame_shape)
    validation.check_seed(seed)
    between = None
    if latent_actions is not None:
      between = self.check_actions(latent_actions)
      if between.shape != (len(frames) - 1,):
        raise errors.UserError(
          f"{between.size} actions were given with a prompt of "
          f"{len(frames)} frames; give one fewer than frames."
        )
      between = between[-(self.num_frames - 1) :]
    functions = self.functions()
    with self._on_mesh():
      return _reset(
        functions,
        frames[-self.num_frames :],
        between,
        functions.key(seed),
      )

  def step(self, state: State, action: int) -> tuple[State, np.ndarray]:
    """Presses a button.

    Args:
      state: The player; it is used up, `fork` it first to keep it.
      action: In [0, A).

    Returns:
      The player after it, and the frame, uint8 [H, W, C].

    Raises:
      UserError: The action is out of range, or the player is used up.
    """
    validation.check_players([state])
    pressed = self.check_actions(action)
    if pressed.shape:
      raise errors.UserError(
        f"{pressed.size} actions were given for one player; give one number, "
        "or play several with `step_many`."
      )
    with self._on_mesh():
      state, frame = _step(
        self._models,
        self._play_params,
        state,
        jnp.asarray(pressed),
        self.sampling,
      )
    return state, np.asarray(frame)

  def step_many(
    self,
    states: Sequence[State],
    actions: Sequence[int],
    *,
    sizes: Sequence[int] = BATCHES,
  ) -> tuple[list[State], np.ndarray]:
    """Presses a button of each of several players at once.

    Args:
      states: S players, at any places of their rollouts; used up.
      actions: S buttons.
      sizes: Numbers of players that one compiled call may step, 1 among them;
        S is split into these.

    Returns:
      The players after it, and their frames, uint8 [S, H, W, C].

    Raises:
      UserError: An action is out of range, or too few of them, or a player
        is used up or stands there twice.
    """
    validation.check_players(states)
    pressed = self.check_actions(actions)
    if pressed.shape != (len(states),):
      raise errors.UserError(
        f"{pressed.size} actions were given for {len(states)} players; give "
        "one for each."
      )
    after, shown = [], []
    for group in split(len(states), sizes):
      if group.stop - group.start == 1:  # Needs no program of its own.
        state, frame = self.step(states[group.start], int(pressed[group.start]))
        several, frames = [state], frame[None]
      else:
        with self._on_mesh():
          several, frames = _step_many(
            self._models,
            self._play_params,
            tuple(states[group]),
            jnp.asarray(pressed[group]),
            self.sampling,
          )
      after += several
      shown.append(np.asarray(frames))
    return after, np.concatenate(
      [np.zeros((0, *self.frame_shape), np.uint8), *shown]
    )

  def fork(self, state: State) -> State:
    """Returns a copy of a player, to go back to or to branch from."""
    validation.check_players([state])
    return _copy(state)

  def show(self, state: State) -> np.ndarray:
    """Returns a player's newest frame, uint8 [H, W, C]."""
    validation.check_players([state])
    # A copy: the device's own memory is given away by the next step.
    return np.array(state.frame)

  def warm_up(self, batches: Sequence[int] = (1,)) -> None:
    """Compiles all that stepping so many players at once needs.

    Resetting from one frame is compiled too.
    """
    for count in batches:
      states = [
        self.reset(np.zeros(self.frame_shape, np.uint8)) for _ in range(count)
      ]
      self.fork(states[0])
      self.step_many(states, [0] * count)

  def _on_mesh(self) -> contextlib.AbstractContextManager:
    if self._mesh is None:
      return contextlib.nullcontext()
    return jax.set_mesh(self._mesh)

  def _first_prompt(self) -> pathlib.Path:
    if not self.prompts:
      raise errors.UserError(
        "This world has no prompts; give a picture to start from."
      )
    return self.prompts[0]

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
      UserError: The world has no LAM, or its LAM was trained on shorter clips.
    """
    if "lam" not in self.parts:
      raise errors.UserError(
        "This world holds no latent action model, which a prompt of several "
        "frames needs; give one frame, or export the world with its LAM."
      )
    store.check_length("lam", self.parts["lam"], frames.shape[1])
    return self._encode("lam", frames)

  def decode(self, tokens: jax.Array) -> np.ndarray:
    """Returns uint8 frames [B, T, H, W, C] of tokens [B, T, h, w], any T."""
    with self._on_mesh():
      frames = decoding.decode(
        self._modules["tokenizer"],
        int8.dequantize(self._params["tokenizer"]),
        tokens,
        window=self._models.decoder_window,
      )
    return images.to_uint8(frames)

  def rollout(
    self,
    picture: Any,
    latent_actions: np.ndarray,
    *,
    seed: int = 0,
  ) -> np.ndarray:
    """Continues one prompt under latent actions, as frames.

    Args:
      picture: One picture or several, as in `reset`; only the last of what
        fits the window is used.
      latent_actions: int [F] in [0, A), pressed after the prompt.
      seed: Fixes all noise.

    Returns:
      uint8 [min(P, window) + F, H, W, C]: the prompt as the tokenizer shows
      it, then the drawn frames.

    Raises:
      UserError: An action is out of range, or it is not a picture.
    """
    latent_actions = self.check_actions(latent_actions)
    prompt = pictures.as_frames(picture, self.frame_shape)[-self.num_frames :]
    state = self.reset(prompt, seed=seed)
    frames = list(self.decode(self.encode(prompt[None]))[0])
    for action in latent_actions:
      state, frame = self.step(state, action)
      frames.append(frame)
    return np.stack(frames)

  def check_actions(self, actions: npt.ArrayLike) -> np.ndarray:
    """Returns actions as int32, in the same shape.

    Raises:
      UserError: One of them is not a button of this world.
    """
    found = np.asarray(actions)
    if found.size and found.dtype.kind not in "iu":
      raise errors.UserError(
        f"Actions are {found.dtype}; give whole numbers from 0 to "
        f"{self.num_actions - 1}."
      )
    wrong = found[(found < 0) | (found >= self.num_actions)]
    if wrong.size:
      raise errors.UserError(
        f"Action {wrong[0]} is out of range: this world has "
        f"{self.num_actions} {self.actions} actions, 0 to "
        f"{self.num_actions - 1}."
      )
    return found.astype(np.int32)

  def _encode(self, name: str, frames: np.ndarray) -> jax.Array:
    with self._on_mesh():
      return _encode(
        self._modules[name], self._params[name], jnp.asarray(frames)
      )
