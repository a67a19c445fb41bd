"""Tests of finite scalar quantisation: rounding, codes, gradients, levels."""

import jax
import ml_dtypes
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.nn import fsq
from genie_jax.nn import levels as levels_lib

LEVELS = [(6,), (3, 2), (2, 2, 2), (8, 5, 5, 5), (16, 8, 8), (1021,)]


def draw(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def run(levels, x):
  return jax.jit(lambda x: fsq.FSQ(levels).apply({}, x))(x)


def lookup(levels, codes):
  return fsq.FSQ(levels).apply({}, codes, method="lookup")


def by_hand(levels, x):
  """Returns bounded entries, vectors and codes, in float64."""
  bounded, place, codes, vectors = np.zeros(x.shape), 1, 0, np.zeros(x.shape)
  for i, count in enumerate(levels):
    half = (count - 1) / 2
    offset = 0.0 if count % 2 else 0.5
    shift = np.arctanh(offset / half) if count > 2 else 0.0
    bounded[..., i] = half * np.tanh(x[..., i] + shift) - offset
    whole = np.round(bounded[..., i])
    vectors[..., i] = whole / (count // 2)
    codes, place = codes + place * (whole + count // 2), place * count
  return bounded, vectors, codes


@pytest.mark.parametrize("levels", LEVELS)
def test_vectors_and_codes_equal_those_of_a_numpy_version(levels):
  x = 2 * draw(50, 4, len(levels))
  found = run(levels, x)
  bounded, vectors, codes = by_hand(levels, x)
  clear = np.abs(bounded - np.floor(bounded) - 0.5) > 1e-3  # No near ties.
  assert clear.mean() > 0.98
  np.testing.assert_allclose(
    found.vectors[clear], vectors[clear], rtol=1e-6, atol=1e-6
  )
  rows = clear.all(-1)
  np.testing.assert_array_equal(found.codes[rows], codes[rows])
  assert found.codes.dtype == np.int32 and found.vectors.dtype == np.float32
  assert found.losses == {}


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_can_be_chosen_and_has_its_own_vector(levels):
  quantizer = fsq.FSQ(levels)
  codes = np.arange(quantizer.num_codes)
  vectors = np.asarray(lookup(levels, codes), np.float64)
  assert len(np.unique(vectors, axis=0)) == len(codes)
  assert vectors.min() == -1 and vectors.max() <= 1
  # Inputs in the middle of each level; for the outermost that is infinity.
  count = np.array(levels)
  half, even = (count - 1) / 2, count % 2 == 0
  shift = np.arctanh(np.where(count > 2, np.where(even, 0.5, 0) / half, 0))
  inside = (vectors * (count // 2) + np.where(even, 0.5, 0)) / half
  x = np.arctanh(inside.clip(-1 + 1e-7, 1 - 1e-7)) - shift
  found = run(levels, x.astype(np.float32))
  np.testing.assert_array_equal(found.codes, codes)
  np.testing.assert_allclose(found.vectors, vectors, atol=1e-6)
  np.testing.assert_array_equal(
    quantizer.apply({}, method="vectors"), vectors.astype(np.float32)
  )


@pytest.mark.parametrize("levels", LEVELS)
def test_the_gradient_ignores_the_rounding(levels):
  x, weights = draw(7, len(levels)), draw(7, len(levels))[::-1].copy()
  got = jax.jit(jax.grad(lambda x: (run(levels, x).vectors * weights).sum()))(x)
  x, step = x.astype(np.float64), 1e-5
  slope = (by_hand(levels, x + step)[0] - by_hand(levels, x - step)[0]) / (
    2 * step
  )
  wanted = weights * slope / (np.array(levels) // 2)
  np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
  assert (np.abs(got) > 0).all()


def test_zero_is_the_middle_of_a_level_or_the_border_if_there_are_two():
  x = np.zeros((1, 1), np.float32)
  for count in range(3, 12):
    assert float(run((count,), x).codes[0]) == count // 2
    for near in (-0.02, 0.02):
      assert float(run((count,), x + near).codes[0]) == count // 2
  assert [int(run((2,), x + near).codes[0]) for near in (-0.02, 0.02)] == [0, 1]


def test_bfloat16_inputs_are_rounded_in_float32():
  x = draw(9, 3).astype(ml_dtypes.bfloat16)
  found, wanted = run((16, 8, 8), x), run((16, 8, 8), x.astype(np.float32))
  assert found.vectors.dtype == np.float32
  np.testing.assert_array_equal(found.vectors, wanted.vectors)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_read_scale_gives_evenly_used_codes_a_mean_square_of_one(levels):
  quantizer = fsq.FSQ(levels)
  vectors = lookup(levels, np.arange(quantizer.num_codes))
  assert np.mean((np.asarray(vectors) * quantizer.read_scale) ** 2) == (
    pytest.approx(1, rel=1e-5)
  )


@pytest.mark.parametrize(
  "num_codes, levels",
  [
    (1024, (16, 8, 8)),
    (1000, (8, 5, 5, 5)),
    (64, (8, 8)),
    (6, (6,)),
    (8, (8,)),
    (13, (13,)),
    (2, (2,)),
    (1 << 16, (16, 8, 8, 8, 8)),
  ],
)
def test_default_levels_are_many_at_least_five_and_even(num_codes, levels):
  assert levels_lib.choose(num_codes) == levels
  chosen = fsq.FSQ.complete(num_codes, {}, "config.quantizer")
  assert chosen == {"levels": levels}


@pytest.mark.parametrize(
  "levels, num_codes, message",
  [
    ((8, 5, 5, 5), 1024, r"multiplies to 1000.*has 1024 codes; use .*16, 8, 8"),
    ([2] * 99, 64, r"but the model has 64 codes; use .*levels=\(8, 8\)"),
    ((8, 1), 8, "must be whole numbers from 2"),
    ((8.0, 8), 64, "must be whole numbers from 2"),
    ((True, 8), 8, "must be whole numbers from 2"),
    ("88", 64, "must be whole numbers from 2"),
    (8, 8, "must be whole numbers from 2"),
    ((10**30, 2), 64, "must be whole numbers from 2"),
    ((), 64, "must be whole numbers from 2"),
    ((2,), 1, "needs at least 2 codes"),
  ],
)
def test_invalid_levels_raise_a_one_line_error(levels, num_codes, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    levels_lib.check(levels, num_codes, "config.quantizer.levels")
  assert str(raised.value).startswith("config.quantizer.levels")
  assert "\n" not in str(raised.value)
