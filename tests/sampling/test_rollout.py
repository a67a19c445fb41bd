"""Tests of rollouts over a sliding window."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.models import build
from genie_jax.sampling import maskgit, rollout

WINDOW = 4
GRID = (2, 3)
ACTIONS = 5
STACK = dict(
  num_layers=2, width=16, num_heads=2, head_dim=8, mlp_dim=16, dtype="float32"
)
SAMPLING = maskgit.MaskGIT(refinements=3)


def make_world(actions_enter):
  """Returns a tiny dynamics model with random weights."""
  model = build.dynamics(
    {
      "world": dict(
        num_frames=WINDOW,
        height=8,
        width=12,
        channels=3,
        token_patch=4,
        num_codes=13,
        num_latent_actions=ACTIONS,
        fps=10,
      ),
      "model": dict(transformer=STACK, actions_enter=actions_enter),
    }
  )
  tokens = jnp.zeros((1, 2, *GRID), jnp.int32)
  params = jax.jit(model.init)(
    jax.random.key(0), tokens, tokens[:, 1:, 0, 0], tokens == 0
  )["params"]
  return model, nn.unbox(params)


@pytest.fixture(scope="module")
def world():
  return make_world("add")


def some_clips(batch, prompt, total, seed=0):
  random = np.random.default_rng(seed)
  tokens = random.integers(0, 13, (batch, prompt, *GRID))
  actions = random.integers(0, ACTIONS, (batch, total - 1))
  return jnp.asarray(tokens, jnp.int32), jnp.asarray(actions, jnp.int32)


def plain_rollout(model, params, prompt, actions, rng, num_frames, sampling):
  """Draws by definition: a pass over the whole window in each refinement."""
  keys = rollout.clip_keys(rng, jnp.arange(len(prompt)))
  tokens = prompt
  apply = jax.jit(model.apply)
  for number in range(prompt.shape[1], prompt.shape[1] + num_frames):
    start = max(0, number - WINDOW + 1)
    logits_of = functools.partial(
      whole_window, apply, params, tokens[:, start:], actions[:, start:number]
    )
    frame_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    frame = sampling.draw(logits_of, GRID, frame_keys)
    tokens = jnp.concatenate([tokens, frame[:, None]], 1)
  return tokens


def whole_window(apply, params, past, actions, frame, hidden):
  seen = jnp.concatenate([past, frame[:, None]], 1)
  unknown = jnp.zeros_like(seen, bool).at[:, -1].set(hidden)
  return apply({"params": params}, seen, actions, unknown)[:, -1]


@pytest.mark.parametrize(
  "prompt, num_frames, order, actions_enter",
  (
    (1, 2, "confidence", "add"),
    pytest.param(2, 5, "random", "add", marks=pytest.mark.slow),
    pytest.param(6, 1, "random", "add", marks=pytest.mark.slow),
    pytest.param(3, 3, "random", "prepend", marks=pytest.mark.slow),
  ),
)
def test_a_cached_rollout_equals_passes_over_whole_windows(
  prompt, num_frames, order, actions_enter
):
  world = make_world(actions_enter)
  tokens, actions = some_clips(2, prompt, prompt + num_frames)
  sampling = maskgit.MaskGIT(refinements=3, order=order)
  rng = jax.random.key(7)
  got = rollout.rollout(
    *world,
    tokens,
    actions,
    rng,
    num_frames=num_frames,
    window=WINDOW,
    sampling=sampling,
  )
  wanted = plain_rollout(*world, tokens, actions, rng, num_frames, sampling)
  np.testing.assert_array_equal(got, wanted)
  np.testing.assert_array_equal(got[:, :prompt], tokens)


def test_after_a_slide_the_dropped_frame_and_its_action_have_no_effect(world):
  tokens, actions = some_clips(1, WINDOW, WINDOW + 1)
  draw = functools.partial(
    rollout.rollout,
    *world,
    rng=jax.random.key(0),
    num_frames=1,
    window=WINDOW,
    sampling=maskgit.MaskGIT(3, temperature=0.0),
  )
  base = draw(prompt_tokens=tokens, latent_actions=actions)
  # Frame 0 leaves the window, and with it the action into frame 1.
  other_tokens = tokens.at[:, 0].set((tokens[:, 0] + 1) % 13)
  for action in range(ACTIONS):
    again = draw(
      prompt_tokens=other_tokens, latent_actions=actions.at[:, 0].set(action)
    )
    np.testing.assert_array_equal(again[:, -1], base[:, -1])


def test_the_window_still_sees_its_oldest_frame_and_newest_action(world):
  tokens, actions = some_clips(8, WINDOW, WINDOW + 1)
  draw = functools.partial(
    rollout.rollout,
    *world,
    rng=jax.random.key(0),
    num_frames=1,
    window=WINDOW,
    sampling=SAMPLING,
  )
  base = draw(prompt_tokens=tokens, latent_actions=actions)
  oldest = draw(
    prompt_tokens=tokens.at[:, 1].set((tokens[:, 1] + 5) % 13),
    latent_actions=actions,
  )
  newest = draw(
    prompt_tokens=tokens,
    latent_actions=actions.at[:, -1].set((actions[:, -1] + 1) % ACTIONS),
  )
  assert (oldest[:, -1] != base[:, -1]).any()
  assert (newest[:, -1] != base[:, -1]).any()


def test_an_action_changes_no_frame_before_the_one_it_leads_to(world):
  tokens, actions = some_clips(8, 1, 7)
  draw = functools.partial(
    rollout.rollout,
    *world,
    tokens,
    rng=jax.random.key(0),
    num_frames=6,
    window=WINDOW,
    sampling=SAMPLING,
  )
  base = draw(latent_actions=actions)
  changed = draw(
    latent_actions=actions.at[:, 3].set((actions[:, 3] + 1) % ACTIONS)
  )
  np.testing.assert_array_equal(base[:, :4], changed[:, :4])
  assert (base[:, 4:] != changed[:, 4:]).any()


def test_paired_draws_with_equal_actions_are_equal_and_keys_matter(world):
  tokens, actions = some_clips(2, 1, 6)
  draw = functools.partial(
    rollout.rollout,
    *world,
    tokens,
    actions,
    num_frames=5,
    window=WINDOW,
    sampling=SAMPLING,
  )
  np.testing.assert_array_equal(
    draw(rng=jax.random.key(3)), draw(rng=jax.random.key(3))
  )
  assert (draw(rng=jax.random.key(3)) != draw(rng=jax.random.key(4))).any()


def test_a_clips_rollout_is_the_same_in_any_batch(world):
  tokens, actions = some_clips(4, 2, 7)
  draw = functools.partial(
    rollout.rollout,
    *world,
    rng=jax.random.key(0),
    num_frames=5,
    window=WINDOW,
    sampling=SAMPLING,
  )
  together = draw(prompt_tokens=tokens, latent_actions=actions)
  some = jnp.array([3, 1])
  apart = draw(
    prompt_tokens=tokens[some], latent_actions=actions[some], clip_ids=some
  )
  np.testing.assert_array_equal(together[some], apart)


def test_the_number_of_traces_does_not_depend_on_the_number_of_frames(
  world, monkeypatch
):
  model, params = world
  traces = []
  apply = type(model).apply

  def counted(self, *args, **kwargs):
    traces.append(1)
    return apply(self, *args, **kwargs)

  monkeypatch.setattr(type(model), "apply", counted)

  def number_of_traces(num_frames):
    tokens, actions = some_clips(1, 1, 1 + num_frames)
    traces.clear()
    rollout.rollout(
      model,
      params,
      tokens,
      actions,
      jax.random.key(0),
      num_frames=num_frames,
      window=WINDOW,
      sampling=maskgit.MaskGIT(refinements=5),
    )
    return len(traces)

  assert number_of_traces(7) == number_of_traces(19) > 0
  assert number_of_traces(19) == 0  # Compiled already.


@pytest.mark.slow
def test_next_frames_equal_a_rollout_from_the_true_frames(world):
  tokens, actions = some_clips(3, WINDOW, WINDOW)
  rng = jax.random.key(5)
  drawn = rollout.next_frames(*world, tokens, actions, rng, sampling=SAMPLING)
  assert drawn.shape == (3, WINDOW - 1, *GRID)
  for target in range(1, WINDOW):
    alone = rollout.rollout(
      *world,
      tokens[:, :target],
      actions[:, :target],
      rng,
      num_frames=1,
      window=WINDOW,
      sampling=SAMPLING,
    )
    np.testing.assert_array_equal(drawn[:, target - 1], alone[:, -1])
  chosen = rollout.next_frames(
    *world, tokens, actions, rng, sampling=SAMPLING, targets=(2,)
  )
  np.testing.assert_array_equal(chosen[:, 0], drawn[:, 1])


def test_a_target_outside_the_clip_is_refused(world):
  tokens, actions = some_clips(1, 3, 3)
  with pytest.raises(ValueError, match="targets 1 to 2"):
    rollout.next_frames(
      *world,
      tokens,
      actions,
      jax.random.key(0),
      sampling=SAMPLING,
      targets=(3,),
    )
