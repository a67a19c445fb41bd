"""Tests of the TPU kernels, interpreted on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.nn import attention, splash, time_kernel

# float32 sums of a few hundred terms in another order.
TOLERANCE = dict(rtol=2e-4, atol=2e-5)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def compare(found, wanted, inputs, **tolerance):
  """Compares values and the gradients of a random weighing of them."""
  weights = draw(99, *np.shape(wanted(*inputs)))

  def both(f):
    def weighed(*arrays):
      out = f(*arrays)
      return jnp.vdot(out.astype(jnp.float32), weights), out
    return jax.jit(jax.grad(weighed, (0, 1, 2), has_aux=True))(*inputs)

  (got, value), (want, reference) = both(found), both(wanted)
  np.testing.assert_allclose(value, reference, **tolerance)
  for name, a, b in zip(("query", "key", "value"), got, want, strict=True):
    np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


@pytest.mark.parametrize("num_places", [16, 20])  # 20: a block half empty.
@pytest.mark.parametrize("window", [0, 3])
def test_time_kernel_equals_plain_attention(num_places, window):
  b, t, h, k = 2, 6, 2, 128
  inputs = [draw(i, b, t, num_places, h, k) for i in range(3)]
  positions = np.arange(t)

  def kernel(*arrays):
    flat = [x.reshape(b, t, num_places, h * k) for x in arrays]
    return time_kernel.attend(*flat, h, window, True).reshape(
        arrays[0].shape)

  def plain(*arrays):
    return attention.time_attention(
        *arrays, attention.causal_mask(positions, positions, window))

  compare(kernel, plain, inputs, **TOLERANCE)


def test_time_kernel_of_bfloat16_differs_by_its_rounding():
  b, t, n, h, k = 1, 16, 16, 1, 128
  inputs = [draw(i, b, t, n, h * k).astype(jnp.bfloat16) for i in range(3)]
  found = time_kernel.attend(*inputs, h, 0, True).astype(jnp.float32)
  wide = [x.astype(np.float32) for x in inputs]
  wanted = time_kernel.attend(*wide, h, 0, True)
  assert found.dtype == jnp.float32
  # Weights and results carry 8 bits: two roundings of 2**-9 of values near 1.
  assert float(jnp.abs(found - wanted).max()) < 0.03


@pytest.mark.parametrize("num_valid", [None, 290])
def test_splash_equals_plain_attention(num_valid):
  inputs = [draw(i, 1, 2, 300, 2, 64) for i in range(3)]
  if num_valid:
    # Weights on what is cut off would compare queries that nobody reads.
    cut = lambda f: lambda *x: f(*x)[:, :, :num_valid]
  else:
    cut = lambda f: f
  compare(
      cut(functools.partial(
          splash.attend, num_valid=num_valid, interpret=True)),
      cut(functools.partial(
          attention.plain_space_attention, num_valid=num_valid)),
      inputs, **TOLERANCE)


def test_blocks_waste_little_and_stay_small():
  assert splash._blocks(920) == (1024, 1024)
  assert splash._blocks(256) == (256, 256)
  assert splash._blocks(1200) == (640, 1280)
  for n in range(256, 3000, 61):
    block, padded = splash._blocks(n)
    assert block <= 1024 and padded % block == 0 and block % 128 == 0
    assert n <= padded < n + 128 * (padded // block)
