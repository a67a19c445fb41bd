"""Tests that a player's cached steps equal recomputing the whole window."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.sampling import maskgit, player, ring_cache, rollout
from genie_jax.sampling import slide as slide_lib
from genie_jax.weights import int8
from tests.fixtures import foreign_parts, tiny_player

SAMPLING = maskgit.MaskGIT(refinements=3)
W = tiny_player.WINDOW
# Float32 sums are added in a different order; logits have a standard deviation
# of about 5.
CLOSE = dict(rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnames=("models", "length"))
def whole_logits(models, params, tokens, actions, last, frame, hidden, length):
  """Computes logits by definition: a pass over the window without a cache.

  Frames after number `last` are padding, which a causal model cannot see, so
  that one program can be used for windows of any length.
  """
  seen = jax.lax.dynamic_update_index_in_dim(tokens, frame, last, 0)
  unknown = jnp.zeros(seen.shape, bool).at[last].set(hidden)
  return models.dynamics.apply(
    {"params": params["dynamics"]}, seen[None], actions[None], unknown[None]
  )[0, last]


@functools.partial(jax.jit, static_argnames=("models", "length"))
def whole_draw(models, params, tokens, actions, last, key, length):
  """Draws a frame by recomputing the window in every refinement."""

  def logits_of(frame, hidden):
    return whole_logits(
      models, params, tokens, actions, last, frame[0], hidden[0], length
    )[None]

  return SAMPLING.draw(logits_of, tiny_player.GRID, key[None])[0]


class History:
  """Tokens and actions of a rollout, and its current window."""

  def __init__(self, tokens, actions, drop, window):
    self.tokens, self.actions = list(tokens), [int(a) for a in actions]
    self.drop, self.window, self.start = drop, window, 0

  def padded(self, action, length):
    """Returns padded tokens and actions, and the next frame's number."""
    if len(self.tokens) - self.start == self.window:
      self.start += self.drop
    past = self.tokens[self.start :]
    actions = [*self.actions, int(action)][self.start :]
    fill = length - len(past)
    return (
      jnp.stack([*past, *[jnp.ones_like(past[0])] * fill]),
      jnp.asarray(actions + [0] * (length - 1 - len(actions)), jnp.int32),
      len(past),
    )


def check_rollout(models, params, prompt, frames, seed, length=W):
  """Compares each frame of a rollout with the definition."""
  tokens, actions = tiny_player.some_prompt(prompt, seed)
  key = jax.random.key(seed)
  state = tiny_player.reset(models, params, tokens, actions, key)
  history = History(
    tokens, actions, models.slide.drop if length == W else 0, length
  )
  random = np.random.default_rng(seed)
  for _ in range(frames):
    action = jnp.int32(random.integers(tiny_player.ACTIONS))
    past, pressed, last = history.padded(action, length)
    seen = models, params, past, pressed, last
    half = jnp.asarray(
      random.integers(0, tiny_player.CODES, tiny_player.GRID), jnp.int32
    )
    hidden = jnp.asarray(random.random(tiny_player.GRID) < 0.5)
    np.testing.assert_allclose(
      tiny_player.next_logits(models, params, state, action, half, hidden),
      whole_logits(*seen, half, hidden, length),
      **CLOSE,
    )
    wanted = whole_draw(
      *seen, jax.random.fold_in(key, int(state.number)), length
    )
    state, frame = tiny_player.step(models, params, state, action, SAMPLING)
    np.testing.assert_array_equal(state.tokens[-1], wanted)
    np.testing.assert_array_equal(state.frame, frame)
    history.tokens.append(wanted)
    history.actions.append(int(action))
  return state, history


@pytest.mark.slow  # Compiles for a long time.
@hypothesis.settings(max_examples=16, deadline=None, derandomize=True)
@hypothesis.given(
  weights=st.integers(0, 2**20),
  prompt=st.integers(1, W),
  frames=st.integers(1, 4),
  seed=st.integers(0, 2**20),
)
def test_cached_and_recomputed_sampling_agree_for_any_weights_and_prompt(
  weights, prompt, frames, seed
):
  models = tiny_player.make_models()
  params = tiny_player.make_params(models, weights)
  check_rollout(models, params, prompt, frames, seed)


@pytest.mark.parametrize(
  "drop, fields",
  (
    (1, dict(actions_enter="prepend")),
    pytest.param(
      3,
      dict(last_frame=True, last_frame_reach=1),
      marks=pytest.mark.slow,
    ),
    pytest.param(
      W - 1,
      dict(actions_enter="prepend", last_frame=True),
      marks=pytest.mark.slow,
    ),
  ),
)
def test_cached_and_recomputed_sampling_agree_while_windows_slide(drop, fields):
  models = tiny_player.make_models(drop=drop, **fields)
  params = tiny_player.make_params(models, 1)
  check_rollout(models, params, prompt=1, frames=2 * W, seed=3)


@pytest.mark.slow  # Compiles for a long time.
def test_a_rolling_window_is_attention_over_the_last_frames_only(monkeypatch):
  # By definition: one pass over all frames since the prompt, in which each
  # layer attends to the last W frames. The cache is rebased several times.
  monkeypatch.setattr(ring_cache, "MAX_POSITION", 2 * W + 3)
  models = tiny_player.make_models("rolling", time_window=W, last_frame=True)
  params = tiny_player.make_params(models, 2)
  state, history = check_rollout(
    models, params, prompt=3, frames=4 * W, seed=5, length=5 * W
  )
  assert int(state.position) < 3 * W
  whole = models.tokenizer.apply(
    {"params": params["tokenizer"]},
    jnp.stack(history.tokens)[None],
    method="decode",
  )
  assert (
    np.abs(np.asarray(whole[0, -1]) * 255 - np.asarray(state.frame)).max() < 0.6
  )


def test_rebasing_changes_no_frame(monkeypatch):
  models = tiny_player.make_models("rolling", actions_enter="prepend")
  params = tiny_player.make_params(models, 2)

  def frames():
    # A new function each time, so that an earlier trace is not reused.
    step = jax.jit(
      lambda state, action: player.step(models, params, state, action, SAMPLING)
    )
    state = tiny_player.reset(
      models, params, *tiny_player.some_prompt(W), jax.random.key(0)
    )
    shown = []
    for action in range(3 * W):
      state, frame = step(state, jnp.int32(action % tiny_player.ACTIONS))
      shown.append(frame)
    return np.stack(shown), int(state.position)

  far, last = frames()
  monkeypatch.setattr(ring_cache, "MAX_POSITION", 2 * W)
  near, rebased = frames()
  assert last == 4 * W - 1 and rebased <= 2 * W
  np.testing.assert_array_equal(far, near)


@pytest.mark.parametrize(
  "decoder_window, drop",
  (
    pytest.param(W, 1, marks=pytest.mark.slow),
    (5, 2),
    pytest.param(1, 3, marks=pytest.mark.slow),
  ),
)
def test_a_frame_equals_the_last_frame_of_its_decoded_window(
  decoder_window, drop
):
  models = tiny_player.make_models(drop=drop, decoder_window=decoder_window)
  params = tiny_player.make_params(models, 4)
  state = tiny_player.reset(
    models, params, *tiny_player.some_prompt(2), jax.random.key(0)
  )
  history = list(state.tokens[-2:])
  count = min(2, decoder_window)
  slide = max(1, min(drop, decoder_window - 1))
  decode = jax.jit(
    functools.partial(
      models.tokenizer.apply, {"params": params["tokenizer"]}, method="decode"
    )
  )
  for action in range(2 * W):
    state, frame = tiny_player.step(
      models, params, state, jnp.int32(action % tiny_player.ACTIONS), SAMPLING
    )
    history.append(state.tokens[-1])
    count = count - slide + 1 if count == decoder_window else count + 1
    wanted = decode(jnp.stack(history[-count:])[None])[0, -1]
    # Half a level of rounding, and sums in a different order.
    assert np.abs(np.asarray(wanted) * 255 - np.asarray(frame)).max() < 0.501


def test_decoding_with_a_cache_equals_decoding_the_whole_window():
  models = tiny_player.make_models()
  params = {"params": tiny_player.make_params(models, 4)["tokenizer"]}
  tokens, _ = tiny_player.some_prompt(W)
  run = functools.partial(models.tokenizer.apply, params)
  _, own = run(tokens[None, :-1], None, 0, method="decode_step")
  cache = models.tokenizer.empty_cache(1, W - 1).write(own, 0)
  frames, _ = run(tokens[None, -1:], cache, W - 1, method="decode_step")
  whole = run(tokens[None], method="decode")
  np.testing.assert_allclose(frames[:, 0], whole[:, -1], atol=1e-6)


@pytest.mark.slow  # Compiles for a long time.
def test_re_encoding_equals_a_reset_with_the_last_frames():
  models = tiny_player.make_models("re-encode", 3)
  params = tiny_player.make_params(models, 5)
  state = tiny_player.reset(
    models, params, *tiny_player.some_prompt(W - 2, 1), jax.random.key(1)
  )
  shown = []
  for action in (0, 1):
    state, frame = tiny_player.step(
      models, params, state, jnp.int32(action), SAMPLING
    )
    shown.append(frame)
  kept = W - 3
  np.testing.assert_array_equal(state.frames[-2:], shown)
  tokens = models.tokenizer.apply(
    {"params": params["tokenizer"]},
    state.frames[None, -kept:].astype(jnp.float32) / 255,
    method="encode",
  )[0]
  fresh = tiny_player.reset(
    models, params, tokens, state.incoming[-kept + 1 :], state.key
  )
  fresh = fresh.replace(number=state.number)
  assert (tokens != state.tokens[-kept:]).any()
  again, wanted = tiny_player.step(
    models, params, fresh, jnp.int32(3), SAMPLING
  )
  after, frame = tiny_player.step(models, params, state, jnp.int32(3), SAMPLING)
  np.testing.assert_array_equal(frame, wanted)
  np.testing.assert_array_equal(after.tokens[-kept:], again.tokens[-kept:])


@pytest.mark.parametrize(
  "sampling, slide",
  (
    (SAMPLING, slide_lib.Slide()),
    pytest.param(SAMPLING, slide_lib.Slide("exact", 2), marks=pytest.mark.slow),
    (SAMPLING, slide_lib.Slide("rolling")),
    (foreign_parts.Raster(0.8), slide_lib.Slide()),
  ),
)
def test_a_player_draws_what_a_rollout_draws(sampling, slide):
  models = tiny_player.make_models(slide.mode, slide.drop, last_frame=True)
  params = tiny_player.make_params(models, 6)
  tokens, actions = tiny_player.some_prompt(2 * W + 1)
  rng = jax.random.key(9)
  wanted = rollout.rollout(
    models.dynamics,
    params["dynamics"],
    tokens[None, :2],
    actions[None],
    rng,
    num_frames=2 * W - 1,
    window=W,
    sampling=sampling,
    slide=slide,
  )[0]
  state = tiny_player.reset(
    models, params, tokens[:2], actions[:1], jax.random.fold_in(rng, 0)
  )
  for number in range(2, 2 * W + 1):
    state, _ = tiny_player.step(
      models, params, state, actions[number - 1], sampling
    )
    np.testing.assert_array_equal(state.tokens[-1], wanted[number])


@pytest.mark.parametrize(
  "mode, drop",
  (
    pytest.param("exact", 2, marks=pytest.mark.slow),
    pytest.param("rolling", 1, marks=pytest.mark.slow),
    pytest.param("re-encode", 3, marks=pytest.mark.slow),
  ),
)
def test_players_in_a_batch_get_the_same_frames_as_alone(mode, drop):
  models = tiny_player.make_models(mode, drop)
  params = tiny_player.make_params(models, 7)
  players = [
    tiny_player.reset(
      models,
      params,
      *tiny_player.some_prompt(prompt, prompt),
      jax.random.key(prompt),
    )
    for prompt in (1, W - 1, W)
  ]
  alone = list(players)
  for number in range(W + 2):
    actions = jnp.asarray([number % 5, 1, (number + 2) % 5], jnp.int32)
    players, frames = tiny_player.step_many(
      models, params, players, actions, SAMPLING
    )
    for i, action in enumerate(actions):
      alone[i], frame = tiny_player.step(
        models, params, alone[i], action, SAMPLING
      )
      np.testing.assert_array_equal(frames[i], frame)
      np.testing.assert_array_equal(players[i].tokens, alone[i].tokens)


@pytest.mark.slow
def test_steps_run_under_scan_and_vmap():
  models = tiny_player.make_models(drop=2)
  params = tiny_player.make_params(models, 8)
  state = tiny_player.reset(
    models, params, *tiny_player.some_prompt(1), jax.random.key(0)
  )
  actions = jnp.asarray(np.arange(W + 3) % tiny_player.ACTIONS, jnp.int32)

  @jax.jit
  def play(state, actions):
    return jax.lax.scan(
      lambda state, action: player.step(
        models, params, state, action, SAMPLING
      ),
      state,
      actions,
    )

  scanned = jax.vmap(play, (None, 0))(state, actions[None])[1][0]
  for action, wanted in zip(actions, scanned, strict=True):
    state, frame = tiny_player.step(models, params, state, action, SAMPLING)
    np.testing.assert_array_equal(frame, wanted)


def test_int8_weights_are_dequantized_inside_the_step():
  models = tiny_player.make_models()
  small = int8.quantize(tiny_player.make_params(models, 9))
  held = {leaf.dtype for leaf in jax.tree.leaves(small)}
  assert np.dtype(np.int8) in held
  wide = int8.dequantize(small)
  prompt = tiny_player.some_prompt(2)
  frames = []
  for params in (small, wide):
    state = tiny_player.reset(models, params, *prompt, jax.random.key(0))
    state, frame = tiny_player.step(
      models, params, state, jnp.int32(1), SAMPLING
    )
    frames.append((frame, state.tokens))
  jax.tree.map(np.testing.assert_array_equal, *frames)


def test_a_prompt_longer_than_the_window_is_refused():
  models = tiny_player.make_models()
  with pytest.raises(ValueError, match="does not fit a window of 8"):
    player.reset(
      models,
      tiny_player.make_params(models, 0),
      *tiny_player.some_prompt(W + 1),
      jax.random.key(0),
    )
