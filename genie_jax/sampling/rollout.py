"""Autoregressive rollouts of a dynamics model over a sliding window.

Past frames never depend on the frame being drawn or on its action, so their
cache is computed once, and each pass of the frame sampler runs over one frame.
This is exact while no frame has left the window, provided a finished frame is
passed once more with its final tokens. After a slide the cache would still
depend on the dropped frames, so it is recomputed from the kept frames at each
slide, with no action leading to the first of them (`slide.Slide`).

Shapes:
  P  prompt frames      F  frames to draw      W  frames in the window
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from genie_jax.core import errors
from genie_jax.models import protocols
from genie_jax.sampling import prepare, samplers
from genie_jax.sampling import slide as slide_lib

# `protocols.DynamicsModel.step`, with its parameters.
_Step = Callable[..., tuple[jax.Array, Any]]


def clip_keys(rng: jax.Array, clip_ids: jax.Array) -> jax.Array:
  """Returns one key per clip, which depends only on `rng` and the clip's id.

  Args:
    rng: A key.
    clip_ids: int32 [B].

  Returns:
    Keys [B].
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(rng, clip_ids)


def rollout(
  model: protocols.DynamicsModel,
  params: Any,
  prompt_tokens: jax.Array,
  latent_actions: jax.Array,
  rng: jax.Array,
  *,
  num_frames: int,
  window: int,
  sampling: samplers.FrameSampler,
  slide: slide_lib.Slide | None = None,
  clip_ids: jax.Array | None = None,
) -> jax.Array:
  """Continues clips frame by frame, in one compiled program.

  The noise of a frame depends only on `rng`, the clip's id and the frame's
  number. So rollouts with the same key and different actions are paired draws,
  and a clip's result does not depend on other clips in the batch.

  Args:
    model: The dynamics model.
    params: Its parameters.
    prompt_tokens: int32 [B, P, h, w], P at least 1.
    latent_actions: int32 [B, P - 1 + F]; action t leads from frame t to t + 1.
    rng: A key.
    num_frames: F.
    window: W, the clip length that the model was trained on, at least 2.
    sampling: The frame sampler.
    slide: How a full window makes room, "exact" or "rolling"; by default exact,
      a frame at a time.
    clip_ids: int32 [B]; by default 0 to B - 1.

  Returns:
    int32 [B, P + F, h, w], the prompt first.

  Raises:
    UserError: The slide does not fit the window, or needs frames
      ("re-encode").
  """
  chex.assert_rank([prompt_tokens, latent_actions], [4, 2])
  batch, prompt = prompt_tokens.shape[:2]
  chex.assert_shape(latent_actions, (batch, prompt - 1 + num_frames))
  if window < 2:
    raise ValueError(
      f"window={window}; it must be at least 2, because a frame is predicted "
      "from the one before."
    )
  slide = (slide or slide_lib.Slide()).check(window)
  if slide.mode == "re-encode":
    raise errors.UserError(
      "slide.mode is 're-encode', which needs the frames, and a rollout has "
      "only tokens; use exact or rolling."
    )
  keys = clip_keys(rng, jnp.arange(batch) if clip_ids is None else clip_ids)
  return _rollout(
    prepare.hashable(model),
    params,
    prompt_tokens,
    latent_actions,
    keys,
    sampling,
    num_frames,
    window,
    slide,
  )


@functools.partial(
  jax.jit, static_argnames=("model", "num_frames", "window", "slide")
)
def _rollout(
  model,
  params,
  prompt_tokens,
  latent_actions,
  keys,
  sampling,
  num_frames,
  window,
  slide,
):
  prompt, *grid = prompt_tokens.shape[1:]
  total = prompt + num_frames
  kept = window - slide.drop
  rolling = slide.mode == "rolling"
  incoming = _incoming(model, latent_actions)  # [B, P + F]
  # The last frames to be dropped at once may be more than there are to draw.
  incoming = jnp.pad(incoming, ((0, 0), (0, slide.drop)))
  step = functools.partial(model.apply, {"params": params}, method="step")

  def draw(cache, number, position, last):
    action = jax.lax.dynamic_slice_in_dim(incoming, number, 1, 1)
    return sampling.draw(
      _score_of(step, cache, action, position, last),
      tuple(grid),
      _fold(keys, number),
    )

  def remember(cache, frame, number, position, last):
    action = jax.lax.dynamic_slice_in_dim(incoming, number, 1, 1)
    known = jnp.zeros_like(frame[:, None], bool)
    _, own = step(frame[:, None], action, known, cache, position, last)
    return cache.write(own, position)

  def grow(carry, number, shift=0):
    """Draws a frame whose position is `number` - `shift`, and keeps it."""
    cache, last = carry
    frame = draw(cache, number, number - shift, last)
    cache = remember(cache, frame, number, number - shift, last)
    return (cache, frame), frame

  def make_room(history, number):
    """Draws `slide.drop` frames after the kept ones [B, kept, h, w]."""
    kept_incoming = jax.lax.dynamic_slice_in_dim(
      incoming, number - kept, kept, 1
    )
    kept_incoming = kept_incoming.at[:, 0].set(model.no_action)
    cache = _cache_of(model, step, history, kept_incoming, window - 1)
    # After the last frame the window is full and its cache is not used again.
    (cache, last), frames = jax.lax.scan(
      functools.partial(grow, shift=number - kept),
      (cache, history[:, -1]),
      number + jnp.arange(slide.drop - 1),
    )
    frame = draw(cache, number + slide.drop - 1, window - 1, last)
    frames = jnp.concatenate([frames.swapaxes(0, 1), frame[:, None]], 1)
    return jnp.concatenate([history, frames], 1)[:, -kept:], frames

  tokens = prompt_tokens.astype(jnp.int32)
  # Number of frames before the window slides.
  grown = total if rolling else min(total, window)
  if prompt < grown:
    slots = min(total, window - 1) if rolling else grown
    cache = _cache_of(model, step, tokens, incoming[:, :prompt], slots)
    _, frames = jax.lax.scan(
      grow, (cache, tokens[:, -1]), jnp.arange(prompt, grown)
    )
    tokens = jnp.concatenate([tokens, frames.swapaxes(0, 1)], 1)
  if tokens.shape[1] < total:
    _, frames = jax.lax.scan(
      make_room,
      tokens[:, -kept:],
      jnp.arange(tokens.shape[1], total, slide.drop),
    )  # [slides, B, drop, h, w]
    frames = frames.swapaxes(0, 1).reshape(len(tokens), -1, *grid)
    tokens = jnp.concatenate([tokens, frames], 1)[:, :total]
  return tokens


def next_frames(
  model: protocols.DynamicsModel,
  params: Any,
  tokens: jax.Array,
  latent_actions: jax.Array,
  rng: jax.Array,
  *,
  sampling: samplers.FrameSampler,
  targets: tuple[int, ...] | None = None,
  clip_ids: jax.Array | None = None,
) -> jax.Array:
  """Draws frames of clips, each given the true frames before it.

  Draws the same frames as `rollout` with the true frames as its prompt and one
  frame to draw, but the true frames are passed only once. The cost is one pass
  over the clip and, for each target, the sampler's passes over one frame.

  Args:
    model: The dynamics model.
    params: Its parameters.
    tokens: int32 [B, T, h, w], true tokens; T at most the model's window.
    latent_actions: int32 [B, T-1].
    rng: A key.
    sampling: The frame sampler.
    targets: Frame numbers to draw, from 1 to T - 1; by default all.
    clip_ids: int32 [B]; by default 0 to B - 1.

  Returns:
    int32 [B, len(targets), h, w].
  """
  chex.assert_rank([tokens, latent_actions], [4, 2])
  batch, total = tokens.shape[:2]
  chex.assert_shape(latent_actions, (batch, total - 1))
  if targets is None:
    targets = tuple(range(1, total))
  if not all(1 <= target < total for target in targets):
    raise ValueError(
      f"targets={targets}; clips of {total} frames have targets 1 to "
      f"{total - 1}."
    )
  keys = clip_keys(rng, jnp.arange(batch) if clip_ids is None else clip_ids)
  return _next_frames(
    prepare.hashable(model),
    params,
    tokens,
    latent_actions,
    keys,
    sampling,
    jnp.asarray(targets),
  )


@functools.partial(jax.jit, static_argnames=("model",))
def _next_frames(
  model, params, tokens, latent_actions, keys, sampling, targets
):
  grid = tokens.shape[2:]
  incoming = _incoming(model, latent_actions)
  step = functools.partial(model.apply, {"params": params}, method="step")
  cache = _cache_of(model, step, tokens, incoming)

  def draw(target):
    # The cache also contains the target and later frames; mask them.
    past = cache.before(target)
    action = jax.lax.dynamic_slice_in_dim(incoming, target, 1, 1)
    last = jax.lax.dynamic_index_in_dim(tokens, target - 1, 1, False)
    return sampling.draw(
      _score_of(step, past, action, target, last),
      tuple(grid),
      _fold(keys, target),
    )

  return jax.lax.map(draw, targets).swapaxes(0, 1)


def _incoming(
  model: protocols.DynamicsModel, latent_actions: jax.Array
) -> jax.Array:
  """Returns the action that leads to each frame, [B, T]."""
  return jnp.pad(
    latent_actions.astype(jnp.int32),
    ((0, 0), (1, 0)),
    constant_values=model.no_action,
  )


def _score_of(
  step: _Step,
  cache: protocols.Cache,
  action: jax.Array,
  position: jax.Array | int,
  last: jax.Array,
) -> samplers.Score:
  """Returns the score function of one frame, given all frames before it.

  Args:
    step: The model's step.
    cache: Cache of the previous frames.
    action: int32 [B, 1], the action that leads to this frame.
    position: The frame's position in the cache.
    last: int32 [B, h, w], the previous frame.
  """

  def score(frame_tokens, hidden):
    logits, _ = step(
      frame_tokens[:, None], action, hidden[:, None], cache, position, last
    )
    return logits[:, 0].astype(jnp.float32)

  return score


def _cache_of(
  model: protocols.DynamicsModel,
  step: _Step,
  tokens: jax.Array,
  incoming: jax.Array,
  slots: int | None = None,
) -> protocols.Cache:
  """Returns a cache of finished frames [B, T, h, w], numbered from 0.

  Args:
    model: The dynamics model.
    step: The model's step.
    tokens: int32 [B, T, h, w].
    incoming: int32 [B, T].
    slots: Number of slots of the cache; by default T.
  """
  batch, num_frames = tokens.shape[:2]
  _, own = step(tokens, incoming, jnp.zeros_like(tokens, bool), None, 0, None)
  return model.empty_cache(batch, slots or num_frames).write(own, 0)


def _fold(keys: jax.Array, number: jax.Array | int) -> jax.Array:
  """Returns each clip's key for the frame with this number."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)
