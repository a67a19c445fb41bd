"""A world as pure functions that can be traced inside larger JAX programs.

    functions = world.functions()
    state = functions.reset(functions.params, picture, jax.random.key(0))
    state, frame = jax.jit(functions.step)(functions.params, state, 3)

Both run under `jit`, `vmap`, `scan` and `shard_map`: they do no work on the
host, their shapes depend only on the prompt's length, and all randomness comes
from the key. `World` draws its frames with the same code. docs/sampling.md has
a program that uses all four transformations. `shard_map` needs check_vma=False,
because JAX's check does not support the branches of a slide.

Shapes:
  P  prompt frames      A  latent actions (buttons)
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.models import clip_length
from genie_jax.sampling import player, prepare, samplers
from genie_jax.weights import int8


@flax.struct.dataclass
class Functions:
  """`reset` and `step` of one world, and its parameters.

  A pytree whose children are `params` and `sampling`, so it may be an argument
  of a transformed function.

  Attributes:
    params: {"tokenizer": ..., "dynamics": ...}, and "lam" if the world has a
      latent action model; leaves are arrays or `int8.Int8`.
    sampling: The frame sampler.
    models: The tokenizer, the dynamics model and the slide.
    lam: The latent action model, or None.
    lam_frames: The most frames that the latent action model may run on; None
      for any number.
    frame_shape: (H, W, C).
    num_actions: A.
  """

  params: dict[str, Any]
  sampling: samplers.FrameSampler
  models: player.Models = flax.struct.field(pytree_node=False)
  lam: Any = flax.struct.field(pytree_node=False)
  lam_frames: int | None = flax.struct.field(pytree_node=False)
  frame_shape: tuple[int, int, int] = flax.struct.field(pytree_node=False)
  num_actions: int = flax.struct.field(pytree_node=False)

  @staticmethod
  def key(seed: int) -> jax.Array:
    """Returns the key that `world.reset(..., seed=seed)` uses."""
    # The same key as that of the first clip of `rollout.rollout`.
    return jax.random.fold_in(jax.random.key(seed), 0)

  def reset(
    self,
    params: dict[str, Any],
    picture: jax.Array,
    key: jax.Array,
    latent_actions: jax.Array | None = None,
  ) -> player.State:
    """Returns the state after a prompt.

    Args:
      params: As in `self.params`.
      picture: uint8 [H, W, C] or [P, H, W, C] at the world's size; only the
        last frames that fit the window are used.
      key: A typed JAX key, [], for all noise of the following steps.
      latent_actions: int [P - 1] between the prompt's frames, in [0, A) (not
        checked); by default inferred by the latent action model.

    Returns:
      The state for `step`.

    Raises:
      UserError: While tracing: frames, key or actions have the wrong shape or
        dtype, or there are several frames, but neither actions nor a latent
        action model that can run on as many.
    """
    frames = self._frames(picture)
    _check_key(key)
    if latent_actions is not None:
      latent_actions = _whole_numbers("latent_actions", latent_actions)
      if latent_actions.shape != (len(frames) - 1,):
        raise errors.UserError(
          f"{latent_actions.size} actions were given with a prompt of "
          f"{len(frames)} frames; give one fewer than frames."
        )
    window = self.models.window
    frames = frames[-window:]
    if latent_actions is None:
      latent_actions = self._inferred(params, frames)
    return player.reset(
      self.models,
      _play(params),
      _encode(self.models.tokenizer, params["tokenizer"], frames),
      latent_actions[-(window - 1) :],
      key,
    )

  def step(
    self, params: dict[str, Any], state: player.State, action: jax.Array
  ) -> tuple[player.State, jax.Array]:
    """Draws the frame that an action leads to.

    Args:
      params: As in `self.params`.
      state: From `reset` or `step`.
      action: int scalar in [0, A) (not checked).

    Returns:
      The next state, and the frame, uint8 [H, W, C].

    Raises:
      UserError: While tracing: the action is not one integer.
    """
    action = _whole_numbers("action", action)
    if action.shape:
      raise errors.UserError(
        f"The action has shape {action.shape}; give one number, and use "
        "jax.vmap to step several states."
      )
    return player.step(self.models, _play(params), state, action, self.sampling)

  def _frames(self, picture: jax.Array) -> jax.Array:
    """Returns a prompt as frames [P, H, W, C]."""
    picture = jnp.asarray(picture)
    frames = picture[None] if picture.ndim == 3 else picture
    if (
      frames.dtype != jnp.uint8
      or frames.ndim != 4
      or not len(frames)
      or frames.shape[1:] != self.frame_shape
    ):
      raise errors.UserError(
        f"The prompt is {picture.dtype} of shape {picture.shape}; these "
        f"functions take uint8 frames of shape {self.frame_shape}, one or "
        "several. `world.reset` resizes images of any size."
      )
    return frames

  def _inferred(self, params: dict[str, Any], frames: jax.Array) -> jax.Array:
    """Returns the latent actions, int32 [P - 1], between frames."""
    if len(frames) == 1:
      return jnp.zeros((0,), jnp.int32)
    if self.lam is None:
      raise errors.UserError(
        "This world has no latent action model, which a prompt of several "
        "frames needs; give one frame, give latent_actions, or export the "
        "world with its LAM."
      )
    if self.lam_frames is not None:
      clip_length.check("lam", len(frames), self.lam_frames)
    return _encode(self.lam, params["lam"], frames)


def _encode(module: Any, params: Any, frames: jax.Array) -> jax.Array:
  """Encodes one clip, uint8 [T, H, W, C]; see `encode`."""
  return encode(module, params, frames[None])[0]


def encode(module: Any, params: Any, frames: jax.Array) -> jax.Array:
  """Runs the encoder of a tokenizer or of a latent action model.

  Args:
    module: The model.
    params: Its parameters; leaves may be `int8.Int8`.
    frames: uint8 [B, T, H, W, C].

  Returns:
    int32: tokens [B, T, h, w], or latent actions [B, T - 1].
  """
  encoded: Any = prepare.rolled(module).apply(
    {"params": int8.dequantize(params)},
    frames.astype(jnp.float32) / 255,
    method="encode",
  )
  return encoded


def _play(params: dict[str, Any]) -> dict[str, Any]:
  return {name: params[name] for name in ("tokenizer", "dynamics")}


def _check_key(key: jax.Array) -> None:
  dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
  if (
    dtype is None
    or not jnp.issubdtype(dtype, jax.dtypes.prng_key)
    or shape != ()
  ):
    raise errors.UserError(
      f"The key is {dtype or type(key).__name__} of shape {shape}; give one "
      "typed JAX key, for example jax.random.key(0)."
    )


def _whole_numbers(name: str, values: Any) -> jax.Array:
  values = jnp.asarray(values)
  if values.size and not jnp.issubdtype(values.dtype, jnp.integer):
    raise errors.UserError(
      f"{name} is {values.dtype}; give integers from 0 to num_actions - 1."
    )
  return values.astype(jnp.int32)
