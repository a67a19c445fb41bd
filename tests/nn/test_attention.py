"""Tests of attention in space and in time."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from genie_jax.nn import attention, norms

# For float32 sums of a few dozen terms, added in a different order.
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(scores):
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def test_space_attention_equals_numpy():
  query, key, value = (draw(i, 2, 3, 5, 2, 4) for i in range(3))
  wanted = np.zeros_like(value)
  for b, t, h in np.ndindex(2, 3, 2):
    q, k, v = (x[b, t, :, h] for x in (query, key, value))
    wanted[b, t, :, h] = softmax(q @ k.T / np.sqrt(4)) @ v
  found = jax.jit(attention.space_attention)(query, key, value)
  np.testing.assert_allclose(found, wanted, **TOLERANCE)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_time_attention_equals_numpy(window):
  query, key, value = (draw(i, 2, 5, 3, 2, 4) for i in range(3))
  wanted = np.zeros_like(value)
  for b, n, h in np.ndindex(2, 3, 2):
    q, k, v = (x[b, :, n, h] for x in (query, key, value))
    for t in range(5):
      first = max(0, t - window + 1) if window else 0
      weights = softmax(q[t] @ k[first : t + 1].T / np.sqrt(4))
      wanted[b, t, n, h] = weights @ v[first : t + 1]
  mask = attention.causal_mask(np.arange(5), np.arange(5), window)
  found = jax.jit(attention.time_attention)(query, key, value, mask)
  np.testing.assert_allclose(found, wanted, **TOLERANCE)


def test_masks_allow_the_own_and_past_positions_but_no_empty_slots():
  mask = attention.causal_mask(
    np.array([4, 5]), np.array([-1, 3, 4, 5]), window=2
  )
  assert mask.tolist() == [
    [False, True, True, False],
    [False, False, True, True],
  ]


def test_scores_of_large_bfloat16_inputs_stay_finite():
  query = np.full((1, 2, 3, 1, 4), 3e4, ml_dtypes.bfloat16)
  found = np.asarray(jax.jit(attention.space_attention)(query, query, query))
  assert found.dtype == ml_dtypes.bfloat16
  assert np.isfinite(found.astype(np.float32)).all()


def test_rotation_makes_scores_depend_on_the_distance_alone():
  query, key = draw(0, 1, 1, 1, 1, 8), draw(1, 1, 1, 1, 1, 8)
  turn = jax.jit(attention.rotate)
  at = lambda position: np.array([position], np.int32)
  score = lambda q, k: float(
    np.sum(np.asarray(turn(query, at(q))) * np.asarray(turn(key, at(k))))
  )
  for distance in (0, 1, 7):
    near, far = score(distance, 0), score(distance + 40, 40)
    assert abs(near - far) < 1e-4  # float32 angles of about 40 radians.
  assert abs(score(0, 0) - score(1, 0)) > 1e-2


def test_rotation_keeps_lengths_and_leaves_position_zero_unchanged():
  x = draw(0, 2, 4, 3, 2, 6)
  turned = jax.jit(attention.rotate)(x, np.arange(4))
  np.testing.assert_allclose(turned[:, 0], x[:, 0])
  np.testing.assert_allclose(
    np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
  )


def make(causal, window=0):
  """Returns an attention layer as a function, an input and frame numbers."""
  module = attention.Attention(
    num_heads=2, head_dim=4, causal=causal, window=window, dtype=jnp.float32
  )
  params = {
    "params": {
      "qkv": {"kernel": draw(1, 8, 3, 2, 4)},
      "query_norm": {"scale": np.ones(4, np.float32)},
      "key_norm": {"scale": np.ones(4, np.float32)},
      "out": {"kernel": draw(2, 2, 4, 8)},
    }
  }
  run = jax.jit(lambda x, *rest: module.apply(params, x, *rest))
  return run, draw(0, 2, 5, 3, 8), np.arange(5)


def test_time_attention_never_sees_the_future_nor_other_places():
  run, x, positions = make(causal=True)
  before, _ = run(x, positions)
  changed = x.copy()
  changed[:, 3, 1] += 1
  after, _ = run(changed, positions)
  np.testing.assert_array_equal(before[:, :3], after[:, :3])
  np.testing.assert_array_equal(before[:, :, [0, 2]], after[:, :, [0, 2]])
  assert (np.abs(before - after)[:, 3:, 1].max(-1) > 1e-4).all()


def test_space_attention_never_sees_other_frames():
  run, x, positions = make(causal=False)
  changed = x.copy()
  changed[:, 3, 1] += 1
  before, after = run(x, positions)[0], run(changed, positions)[0]
  others = [0, 1, 2, 4]
  np.testing.assert_array_equal(before[:, others], after[:, others])
  assert (np.abs(before - after)[:, 3].max(-1) > 1e-5).all()


def test_frames_before_the_window_have_no_effect():
  run, x, positions = make(causal=True, window=2)
  changed = x.copy()
  changed[:, 0] += 1
  before, after = run(x, positions)[0], run(changed, positions)[0]
  np.testing.assert_array_equal(before[:, 2:], after[:, 2:])
  assert np.abs(before - after)[:, 1].max() > 1e-4


def test_a_window_of_one_frame_mixes_nothing_in_time():
  run, x, positions = make(causal=True, window=1)
  alone, _ = run(x[:, 2:3], positions[:1])
  np.testing.assert_allclose(run(x, positions)[0][:, 2:3], alone, **TOLERANCE)


def test_frames_after_a_cache_equal_those_of_the_full_pass():
  run, x, positions = make(causal=True)
  whole, (key, value) = run(x, positions)
  # Slots may be in any order, and empty ones contain arbitrary values.
  order = np.array([2, 0, 1])
  junk = np.full((2, 1, 3, 2, 4), 9.0, np.float32)
  key, value = np.asarray(key), np.asarray(value)
  cache = tuple(
    np.concatenate([junk, kept[:, order]], axis=1) for kept in (key, value)
  )
  part, own = run(x[:, 3:], positions[3:], cache, np.concatenate([[-1], order]))
  np.testing.assert_allclose(part, whole[:, 3:], **TOLERANCE)
  np.testing.assert_allclose(own[0], key[:, 3:], **TOLERANCE)


def test_rms_norm_divides_by_the_root_mean_square_then_scales():
  x = draw(0, 3, 6) * 50
  module = norms.RMSNorm(dtype=jnp.float32)
  scale = np.arange(1, 7, dtype=np.float32)
  found = module.apply({"params": {"scale": scale}}, x)
  root = np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True))
  np.testing.assert_allclose(found, x / root * scale, rtol=1e-5)


def test_rms_norm_computes_in_float32_and_keeps_zero():
  module = norms.RMSNorm(dtype=jnp.bfloat16)
  params = {"params": {"scale": np.ones(4, np.float32)}}
  run = jax.jit(lambda x: module.apply(params, x))
  # The square of 3e18 overflows float16, and its sum is inexact in bfloat16.
  large = np.asarray(run(np.full(4, 3e18, ml_dtypes.bfloat16)))
  assert large.dtype == ml_dtypes.bfloat16
  np.testing.assert_allclose(large.astype(np.float32), 1, rtol=1e-2)
  assert (np.asarray(run(np.zeros(4, ml_dtypes.bfloat16))) == 0).all()
