"""Plays a world for one player: a static-shape program from action to frame.

Earlier frames depend neither on the frame being drawn nor on its action, so
their keys and values of attention in time are cached, and each refinement runs
over one frame. A finished frame is passed through the model once more with its
final tokens, and its cache entry then never changes. The decoder is causal in
time as well and has its own cache. Both caches are ring buffers of W - 1
slots: rotary positions are relative, so a slot can be overwritten at any
position. The model defines the content of its cache (`models.protocols`), and
the frame sampler defines how a frame is drawn (`sampling.samplers`).

All functions are pure and do no work on the host: `reset` and `step` run under
`jit`, `vmap` and `scan`. A caller that compiles `step` may donate the state.

Shapes:
  W  frames in the window       P  prompt frames, at most W
  M  frames of history          S  players
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
from jax import core

from genie_jax.models import protocols
from genie_jax.sampling import prepare, ring_cache, samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.weights import int8


@dataclasses.dataclass(frozen=True)
class Models:
  """The models of a player; hashable, so it can be a static jit argument.

  Attributes:
    tokenizer: The tokenizer.
    dynamics: The dynamics model.
    window: W, clip length that the dynamics model was trained on, at least 2.
    decoder_window: Clip length that the tokenizer was trained on.
    slide: How a full window makes room.
  """

  tokenizer: protocols.TokenizerModel
  dynamics: protocols.DynamicsModel
  window: int
  decoder_window: int
  slide: slide_lib.Slide = dataclasses.field(default_factory=slide_lib.Slide)

  def __post_init__(self):
    for name in ("tokenizer", "dynamics"):
      protocols.check(name, getattr(self, name))
      object.__setattr__(self, name, prepare.hashable(getattr(self, name)))
    if self.window < 2:
      raise ValueError(
        f"window={self.window}; it must be at least 2, because a frame is "
        "predicted from the one before."
      )
    self.slide.check(self.window)

  @property
  def history(self) -> int:
    """M, the number of last frames whose tokens a state contains."""
    return max(self.window, self.decoder_window)

  def score(
    self,
    params: Any,
    tokens: jax.Array,
    incoming: jax.Array,
    hidden: jax.Array,
    cache: protocols.Cache | None,
    position: jax.Array | int,
    last: jax.Array | None,
  ) -> tuple[jax.Array, Any]:
    """Runs `step` of the dynamics model.

    Args:
      params: {"tokenizer": ..., "dynamics": ...}.
      tokens: int32 [T, h, w].
      incoming: int32 [T].
      hidden: bool [T, h, w].
      cache: Cache of the previous frames.
      position: Position of the first frame.
      last: int32 [h, w], the frame before the first one, or None.

    Returns:
      Logits float32 [T, h, w, V], and the T frames' state for a cache.
    """
    logits, own = _for_frames(self.dynamics, len(tokens)).apply(
      {"params": params["dynamics"]},
      tokens[None],
      incoming[None],
      hidden[None],
      cache,
      position,
      None if last is None else last[None],
      method="step",
    )
    return logits[0].astype(jnp.float32), own

  def show(
    self,
    params: Any,
    tokens: jax.Array,
    cache: protocols.Cache | None,
    position: jax.Array | int,
  ) -> tuple[jax.Array, Any]:
    """Decodes uint8 frames [T, H, W, C]; also returns state for a cache."""
    frames, own = _for_frames(self.tokenizer, len(tokens)).apply(
      {"params": params["tokenizer"]},
      tokens[None],
      cache,
      position,
      method="decode_step",
    )
    return jnp.round(frames[0] * 255).astype(jnp.uint8), own

  def encode(self, params: Any, frames: jax.Array) -> jax.Array:
    """Returns tokens int32 [T, h, w] of frames uint8 [T, H, W, C]."""
    return _for_frames(self.tokenizer, len(frames)).apply(
      {"params": params["tokenizer"]},
      frames[None].astype(jnp.float32) / 255,
      method="encode",
    )[0]


def _for_frames(module: Any, num_frames: int) -> Any:
  return module if num_frames == 1 else prepare.rolled(module)


@flax.struct.dataclass
class State:
  """The state of one player between two frames.

  Attributes:
    key: Random key; the noise of frame t is `fold_in(key, t)`.
    number: int32 scalar, number of frames since and including the prompt.
    position: int32 scalar, position of the newest frame in the cache.
    tokens: int32 [M, h, w], the last frames, newest last; zeros before the
      prompt.
    incoming: int32 [M], the action that led to each of these frames.
    cache: The dynamics model's cache of the previous frames, for one clip.
    decoder_position: int32 scalar, position of the newest frame in the
      decoder's cache.
    decoder_cache: The decoder's cache; None for a tokenizer that was trained
      on single frames.
    frame: uint8 [H, W, C], the newest frame.
    frames: uint8 [W - 1, H, W, C], the last frames; only for "re-encode".
  """

  key: jax.Array
  number: jax.Array
  position: jax.Array
  tokens: jax.Array
  incoming: jax.Array
  cache: protocols.Cache
  decoder_position: jax.Array
  decoder_cache: protocols.Cache | None
  frame: jax.Array
  frames: jax.Array | None

  def __repr__(self) -> str:
    # Never raises: trees of other things than arrays are states as well.
    shape = getattr(self.frame, "shape", ())
    number = self.number
    if isinstance(number, core.Tracer):
      which = "being traced"
    elif not isinstance(number, jax.Array) or number.shape:
      which = "of several players or of other leaves"
    # Any of them: a step may leave an array whose value was read.
    elif any(
      isinstance(leaf, jax.Array) and leaf.is_deleted()
      for leaf in jax.tree.leaves(self)
    ):
      which = "used up by a step"
    else:
      which = f"at frame {int(number) - 1}"
    return f"State({which}, frame {'x'.join(map(str, shape))})"


def reset(
  models: Models,
  params: Any,
  tokens: jax.Array,
  latent_actions: jax.Array,
  key: jax.Array,
) -> State:
  """Returns the state after a prompt.

  Args:
    models: The models.
    params: {"tokenizer": ..., "dynamics": ...}; leaves may be
      `int8.Int8`.
    tokens: int32 [P, h, w].
    latent_actions: int32 [P - 1]; action t leads from frame t to t + 1.
    key: Key for the noise of all later frames.
  """
  chex.assert_rank([tokens, latent_actions], [3, 1])
  prompt = tokens.shape[0]
  chex.assert_shape(latent_actions, (prompt - 1,))
  if prompt > models.window:
    raise ValueError(
      f"A prompt of {prompt} frames does not fit a window of "
      f"{models.window}; use its last {models.window} frames."
    )
  params = int8.dequantize(params)
  tokens = tokens.astype(jnp.int32)
  incoming = jnp.pad(
    latent_actions.astype(jnp.int32),
    (1, 0),
    constant_values=models.dynamics.no_action,
  )
  missing = models.history - prompt
  frames, decoder_cache, decoder_position = _decode_new_window(
    models, params, tokens
  )
  return State(
    key=key,
    number=jnp.int32(prompt),
    position=jnp.int32(prompt - 1),
    tokens=jnp.pad(tokens, ((missing, 0), (0, 0), (0, 0))),
    incoming=jnp.pad(
      incoming, (missing, 0), constant_values=models.dynamics.no_action
    ),
    cache=_cache_of(models, params, tokens, incoming),
    decoder_position=decoder_position,
    decoder_cache=decoder_cache,
    frame=frames[-1],
    frames=_last(frames, models.window - 1)
    if models.slide.mode == "re-encode"
    else None,
  )


def step(
  models: Models,
  params: Any,
  state: State,
  action: jax.Array,
  sampling: samplers.FrameSampler,
) -> tuple[State, jax.Array]:
  """Draws the frame that an action leads to.

  Args:
    models: The models.
    params: As in `reset`.
    state: The player's state.
    action: int32 scalar in [0, A).
    sampling: The frame sampler.

  Returns:
    The state after the frame, and the frame, uint8 [H, W, C].
  """
  params = int8.dequantize(params)
  state = _make_room(models, params, state)
  return _draw(models, params, state, action, sampling)


def step_many(
  models: Models,
  params: Any,
  states: Sequence[State],
  actions: jax.Array,
  sampling: samplers.FrameSampler,
) -> tuple[list[State], jax.Array]:
  """Draws a frame for each of several players at once.

  The players may be at different positions in their windows. If any window is
  full, the players make room one after the other; if none is, this costs
  nothing.

  Args:
    models: The models.
    params: As in `reset`.
    states: The states of S players.
    actions: int32 [S].
    sampling: The frame sampler.

  Returns:
    The states after the frame, and the frames, uint8 [S, H, W, C].
  """
  drawn, frames = step_stacked(models, params, stack(states), actions, sampling)
  return unstack(drawn, len(states)), frames


def step_stacked(
  models: Models,
  params: Any,
  stacked: State,
  actions: jax.Array,
  sampling: samplers.FrameSampler,
) -> tuple[State, jax.Array]:
  """Like `step_many`, for any number of players in one state, see `stack`."""
  params = int8.dequantize(params)
  make_room = functools.partial(_make_room, models, params)
  if models.slide.mode == "rolling":
    stacked = jax.vmap(make_room)(stacked)
  else:
    stacked = jax.lax.cond(
      (stacked.position == models.window - 1).any(),
      lambda players: jax.lax.map(make_room, players),
      lambda players: players,
      stacked,
    )
  return jax.vmap(
    lambda state, action: _draw(models, params, state, action, sampling)
  )(stacked, actions)


def next_logits(
  models: Models,
  params: Any,
  state: State,
  action: jax.Array,
  tokens: jax.Array,
  hidden: jax.Array,
) -> jax.Array:
  """Returns the next frame's logits, as computed by one pass inside `step`.

  Args:
    models: The models.
    params: As in `reset`.
    state: The player's state.
    action: int32 scalar that leads to the frame.
    tokens: int32 [h, w], the known tokens of the frame.
    hidden: bool [h, w], True where the token is not known.

  Returns:
    float32 [h, w, V].
  """
  params = int8.dequantize(params)
  state = _make_room(models, params, state)
  return models.score(
    params,
    tokens[None],
    jnp.asarray(action, jnp.int32)[None],
    hidden[None],
    state.cache,
    state.position + 1,
    state.tokens[-1],
  )[0][0]


def stack(states: Sequence[State]) -> State:
  """Stacks states into one whose leaves have a new first axis [S, ...]."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def unstack(stacked: State, count: int) -> list[State]:
  """Returns the first `count` players of a stacked state."""
  return [
    jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(count)
  ]


def _draw(models, params, state, action, sampling):
  """Draws, caches and decodes one frame; the window must have room for it."""
  position = state.position + 1
  run = functools.partial(models.score, params)
  incoming = jnp.asarray(action, jnp.int32)[None]
  last = state.tokens[-1]

  def score(tokens, hidden):
    # [1, h, w] is both one clip [B, h, w] and one frame [T, h, w].
    return run(tokens, incoming, hidden, state.cache, position, last)[0]

  tokens = sampling.draw(
    score,
    tuple(state.tokens.shape[1:]),
    jax.random.fold_in(state.key, state.number)[None],
  )

  def remember(cache):
    _, own = run(
      tokens, incoming, jnp.zeros(tokens.shape, bool), cache, position, last
    )
    return cache.write(own, position)

  if models.slide.mode == "rolling":
    cache = remember(state.cache)
  else:
    # If the window is now full, its cache is recomputed before the next frame.
    cache = jax.lax.cond(
      position < models.window - 1, remember, lambda cache: cache, state.cache
    )
  state = state.replace(
    number=state.number + 1,
    position=position,
    tokens=_append(state.tokens, tokens),
    incoming=_append(state.incoming, incoming),
    cache=cache,
  )
  return _show(models, params, state)


def _make_room(models, params, state):
  """Drops frames from the window if it is full."""
  if models.slide.mode == "rolling":
    position, cache = ring_cache.rebase(
      state.position, state.cache, models.window - 1
    )
    return state.replace(position=position, cache=cache)
  full = state.position == models.window - 1
  kept = models.window - models.slide.drop

  def exact(state):
    return state.replace(
      position=jnp.int32(kept - 1),
      cache=_cache_of(
        models,
        params,
        state.tokens[-kept:],
        state.incoming[-kept:].at[0].set(models.dynamics.no_action),
      ),
    )

  def encode_again(state):
    frames = state.frames[-kept:]
    tokens = models.encode(params, frames)
    state = exact(
      state.replace(tokens=jnp.concatenate([state.tokens[:-kept], tokens]))
    )
    # Frames that were shown do not change; the next frame sees these tokens.
    _, cache, position = _decode_new_window(models, params, tokens)
    return state.replace(decoder_cache=cache, decoder_position=position)

  slid = exact if models.slide.mode == "exact" else encode_again
  return jax.lax.cond(full, slid, lambda state: state, state)


def _show(models, params, state):
  """Decodes the newest frame; returns the state with it and the frame."""
  window = models.decoder_window
  run = functools.partial(models.show, params)

  def grow(cache, position):
    shown, own = run(state.tokens[-1:], cache, position + 1)
    return shown[0], cache.write(own, position + 1), position + 1

  def slide_over(cache, position):
    del position
    drop = min(models.slide.drop, window - 1)
    shown, fresh, position = _decode_new_window(
      models, params, state.tokens[-(window - drop + 1) :]
    )
    # If one frame is dropped at a time, the window stays full and its cache is
    # not used again.
    return shown[-1], cache if drop == 1 else fresh, position

  cache, position = state.decoder_cache, state.decoder_position
  if cache is None:
    shown = run(state.tokens[-1:], None, 0)[0][0]
  elif models.slide.mode == "rolling":
    position, cache = ring_cache.rebase(position, cache, window - 1)
    shown, cache, position = grow(cache, position)
  else:
    shown, cache, position = jax.lax.cond(
      position == window - 1, slide_over, grow, cache, position
    )
  frames = state.frames
  if frames is not None:
    frames = _append(frames, shown[None])
  return state.replace(
    decoder_cache=cache, decoder_position=position, frame=shown, frames=frames
  ), shown


def _decode_new_window(models, params, tokens):
  """Decodes frames as the first frames of a new window.

  Returns:
    uint8 frames [T, H, W, C], the decoder's cache, and the position of the
    last frame.
  """
  tokens = tokens[-models.decoder_window :]
  shown, own = models.show(params, tokens, None, 0)
  cache = None
  if models.decoder_window > 1:
    empty = models.tokenizer.empty_cache(1, models.decoder_window - 1)
    cache = empty.write(own, 0)
  return shown, cache, jnp.int32(len(tokens) - 1)


def _cache_of(models, params, tokens, incoming):
  """Returns the dynamics model's cache of frames [T, h, w] from position 0."""
  _, own = models.score(
    params, tokens, incoming, jnp.zeros(tokens.shape, bool), None, 0, None
  )
  return models.dynamics.empty_cache(1, models.window - 1).write(own, 0)


def _append(history: jax.Array, newest: jax.Array) -> jax.Array:
  return jnp.concatenate([history[1:], newest])


def _last(frames: jax.Array, count: int) -> jax.Array:
  """Returns the last `count` frames, padded with zeros at the start."""
  frames = frames[-count:]
  missing = count - len(frames)
  return jnp.pad(frames, ((missing, 0), *((0, 0),) * (frames.ndim - 1)))
