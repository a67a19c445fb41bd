"""Tests of clipping outliers of gradients and of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genie_jax.train import clipping, optimizer

ADAMW = dict(name="adamw", peak_lr=1.0, schedule="constant")


def norms_after(threshold, norms):
  """Returns the norms of gradients with these norms after clipping."""
  clip = clipping.clip_outliers(threshold)
  direction = jnp.array([0.6, 0.8])

  def step(state, norm):
    updates, state = clip.update({"kernel": norm * direction}, state)
    return state, optax.tree.norm(updates)

  state = clip.init({"kernel": direction})
  return np.asarray(jax.lax.scan(step, state, jnp.asarray(norms))[1])


def test_a_spike_is_reduced_to_the_threshold_of_recent_norms():
  steady = np.random.default_rng(0).normal(2.0, 0.1, 60).astype(np.float32)
  norms = np.append(steady, [50.0, 2.0])
  found = norms_after(4.0, norms)
  # Four deviations of 0.1 above 2, as far as 33 steps tell them.
  assert 2.2 < found[60] < 2.8
  np.testing.assert_allclose(found[:60], steady, rtol=1e-5)
  np.testing.assert_allclose(found[61], 2.0, rtol=1e-5)


def test_a_spike_does_not_raise_the_limit_of_the_next_one():
  steady = np.random.default_rng(0).normal(2.0, 0.1, 60).astype(np.float32)
  found = norms_after(4.0, np.append(steady, [50.0] * 3))
  assert found[62] < 1.3 * found[60]


def test_a_lasting_change_of_the_norm_is_followed():
  norms = np.array([1.0, 1.1] * 30 + [3.0] * 200, np.float32)
  found = norms_after(2.5, norms)
  assert found[61] < 1.5
  np.testing.assert_allclose(found[-1], 3.0, rtol=0.02)


def test_nothing_is_clipped_in_the_first_steps_and_the_direction_is_kept():
  falling = np.geomspace(100, 1, 20).astype(np.float32)
  np.testing.assert_allclose(norms_after(2.5, falling), falling, rtol=1e-5)
  clip = clipping.clip_outliers(2.5)
  state = clipping.NormHistory(
    jnp.int32(99), jnp.float32(1.0), jnp.float32(0.01)
  )
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}
  found, _ = clip.update(grads, state)
  np.testing.assert_allclose(optax.tree.norm(found), 1.25, rtol=1e-5)
  np.testing.assert_allclose(found["a"] / found["b"][0, 0], [-0.75, 0])


def test_updates_are_limited_by_their_rms_layer_by_layer():
  updates = {
    "layers": {"kernel": jnp.stack([jnp.full((2, 3), 4.0), jnp.ones((2, 3))])},
    "embedding": jnp.array([0.1, -0.1]),
  }
  clip = clipping.clip_update_rms(2.0)
  found, _ = clip.update(updates, clip.init(updates))
  np.testing.assert_allclose(found["layers"]["kernel"][0], 2.0)
  np.testing.assert_allclose(found["layers"]["kernel"][1], 1.0)
  np.testing.assert_allclose(found["embedding"], updates["embedding"])


def updates(grads, **fields):
  """Returns the updates of an optimizer for a sequence of gradients."""
  made = optimizer.make(ADAMW | fields, 100, frozenset({"bias"}))
  params = {
    "kernel": jnp.ones((2,)), "table": jnp.ones((2,)), "bias": jnp.ones((2,))
  }  # fmt: skip
  state = made.transformation.init(params)
  found = []
  for grad in grads:
    tree = jax.tree.map(lambda x, g=grad: jnp.full_like(x, g), params)
    update, state = made.transformation.update(tree, state, params)
    found.append(update)
  return found


def test_all_of_it_is_off_by_default():
  grads = [1.0] * 30 + [100.0]
  plain = updates(grads)
  off = updates(grads, clip_outliers=0.0, clip_update_rms=0.0, no_decay=())
  for one, other in zip(plain, off, strict=True):
    np.testing.assert_array_equal(one["kernel"], other["kernel"])


def test_a_spike_of_the_gradient_moves_the_weights_no_further_than_others():
  grads = [1.0] * 40 + [1000.0]
  # Without momentum, the second moment lags behind the spike by sqrt(1 - b2).
  lagging = dict(b1=0.0, b2=0.9)
  size = lambda **fields: float(
    abs(updates(grads, **lagging, **fields)[-1]["kernel"][0])
  )
  assert size() > 3
  assert size(clip_update_rms=1.0) == pytest.approx(1.0, rel=1e-5)
  assert size(clip_outliers=2.5) < 1.1


def test_more_parameters_can_be_spared_weight_decay():
  found = updates([0.0], weight_decay=0.5, no_decay=("table",))[0]
  np.testing.assert_allclose(found["kernel"], -0.5)
  np.testing.assert_allclose(found["table"], 0.0)
  np.testing.assert_allclose(found["bias"], 0.0)
