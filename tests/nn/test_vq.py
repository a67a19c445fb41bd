"""Tests of the codebook: nearest codes, gradients, statistics, dead codes."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest

from genie_jax.nn import codes as codes_lib
from genie_jax.nn import vq

CODES, WIDTH = 7, 4


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def make(unit_norm):
  """Returns a compiled codebook, `(x, table) -> Quantized`, and its table."""
  book = vq.Codebook(CODES, WIDTH, unit_norm)
  run = jax.jit(lambda x, table: book.apply({"params": {"codebook": table}}, x))
  return run, draw(1, CODES, WIDTH)


def normal(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_the_nearest_code_is_chosen(unit_norm):
  run, table = make(unit_norm)
  x = draw(2, 5, 6, WIDTH)
  found = run(x, table)
  inputs = normal(x) if unit_norm else x
  table = normal(table) if unit_norm else table
  distance = np.square(inputs[..., None, :] - table).sum(-1)
  np.testing.assert_array_equal(found.codes, distance.argmin(-1))
  assert found.codes.dtype == np.int32
  np.testing.assert_allclose(
    found.vectors, table[distance.argmin(-1)], rtol=1e-5, atol=1e-6
  )
  for loss in (found.losses["codebook"], found.losses["commitment"]):
    np.testing.assert_allclose(loss, distance.min(-1), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(found.inputs, inputs, rtol=1e-5)


@pytest.mark.parametrize("unit_norm", [True, False])
def test_lookup_returns_the_vectors_that_quantising_returned(unit_norm):
  run, table = make(unit_norm)
  found = run(draw(2, 9, WIDTH), table)
  looked_up = vq.Codebook(CODES, WIDTH, unit_norm).apply(
    {"params": {"codebook": table}}, found.codes, method="lookup"
  )
  np.testing.assert_allclose(looked_up, found.vectors, rtol=1e-5, atol=1e-6)


def gradients(unit_norm, value):
  """Returns inputs, codebook, and the gradient of `value` for each."""
  run, table = make(unit_norm)
  x = draw(2, 3, WIDTH)
  f = lambda x, table: value(run(x, table))
  inputs, codes = jax.jit(jax.grad(f, argnums=(0, 1)))(x, table)
  return x, table, np.asarray(inputs), np.asarray(codes)


def test_the_gradient_passes_straight_through_to_the_inputs():
  weights = draw(3, 3, WIDTH)
  _, _, inputs, codes = gradients(False, lambda q: (q.vectors * weights).sum())
  np.testing.assert_allclose(inputs, weights, rtol=1e-6)
  assert (codes == 0).all()


def test_on_the_sphere_the_gradient_loses_only_its_radial_part():
  weights = draw(3, 3, WIDTH)
  x, _, inputs, codes = gradients(True, lambda q: (q.vectors * weights).sum())
  unit = normal(x)
  radial = (weights * unit).sum(-1, keepdims=True) * unit
  wanted = (weights - radial) / np.linalg.norm(x, axis=-1, keepdims=True)
  np.testing.assert_allclose(inputs, wanted, rtol=1e-4, atol=1e-5)
  assert (codes == 0).all()


def test_the_codebook_loss_moves_only_the_chosen_codes():
  x, table, inputs, codes = gradients(
    False, lambda q: q.losses["codebook"].sum()
  )
  assert (inputs == 0).all()
  chosen = np.square(x[:, None] - table).sum(-1).argmin(-1)
  wanted = np.zeros_like(table)
  for vector, code in zip(x, chosen, strict=True):
    wanted[code] += 2 * (table[code] - vector)
  np.testing.assert_allclose(codes, wanted, rtol=1e-4, atol=1e-5)


def test_the_commitment_loss_moves_only_the_inputs():
  x, table, inputs, codes = gradients(
    False, lambda q: q.losses["commitment"].sum()
  )
  assert (codes == 0).all()
  chosen = np.square(x[:, None] - table).sum(-1).argmin(-1)
  np.testing.assert_allclose(
    inputs, 2 * (x - table[chosen]), rtol=1e-4, atol=1e-5
  )


def test_bfloat16_inputs_are_quantised_in_float32():
  run, table = make(True)
  found = run(np.ones((2, WIDTH), ml_dtypes.bfloat16), table)
  assert found.vectors.dtype == np.float32


def test_a_zero_vector_gives_finite_values_and_gradients():
  run, table = make(True)
  f = lambda x: run(x, table).losses["commitment"].sum()
  value, gradient = jax.jit(jax.value_and_grad(f))(
    np.zeros((2, WIDTH), np.float32)
  )
  assert np.isfinite(value) and np.isfinite(gradient).all()


def use(codes, inputs=None):
  """Returns the quantisation of a batch in which these codes were chosen."""
  codes = np.asarray(codes, np.int32)
  if inputs is None:
    inputs = np.zeros((*codes.shape, WIDTH), np.float32)
  zeros = np.zeros(codes.shape, np.float32)
  return codes_lib.Quantized(
    inputs, codes, inputs, {"codebook": zeros, "commitment": zeros}
  )


def old(num_codes):
  """Returns statistics without use, with the decay at its final value."""
  fresh = vq.CodeStatistics.fresh(num_codes, WIDTH)
  return fresh.replace(age=np.float32(1000))


update = jax.jit(lambda statistics, batch: statistics.update(batch, 0.9, 0.5))
perplexity = jax.jit(lambda statistics: codes_lib.perplexity(statistics.share))


def test_shares_are_a_moving_average_of_use():
  after = update(old(4), use([[0, 0], [0, 3]]))
  np.testing.assert_allclose(after.share, [0.075, 0, 0, 0.025], rtol=1e-6)
  for _ in range(200):
    after = update(after, use([[1, 1], [1, 1]]))
  np.testing.assert_allclose(after.share, [0, 1, 0, 0], atol=1e-6)
  np.testing.assert_allclose(perplexity(after), 1, rtol=1e-4)
  even = after.replace(share=np.full(4, 0.01, np.float32))
  np.testing.assert_allclose(perplexity(even), 4, rtol=1e-4)
  assert np.isfinite(perplexity(old(4)))


def test_the_first_averages_are_over_few_batches():
  young = vq.CodeStatistics.fresh(4, WIDTH)
  after = update(young, use([[0, 0], [0, 3]]))
  # The first batch has a weight of nine tenths, later ones less and less.
  np.testing.assert_allclose(after.share, [0.675, 0, 0, 0.225], rtol=1e-6)
  assert float(after.age) == 1
  for _ in range(3):
    before, after = after, update(after, use([[1, 1], [1, 1]]))
  assert after.share[1] > 0.9 and after.share[0] > 0.1 * before.share[0]


def test_a_centre_is_the_mean_of_the_inputs_of_a_code():
  inputs = draw(0, 2, 3, WIDTH)
  codes = np.array([[0, 2, 2], [0, 2, 0]])
  statistics = update(old(4), use(codes, inputs))
  table = draw(1, 4, WIDTH)
  centres = np.asarray(jax.jit(lambda s, t: s.centres(t))(statistics, table))
  for code in (0, 2):
    np.testing.assert_allclose(
      centres[code], inputs[codes == code].mean(0), rtol=1e-4, atol=1e-6
    )
  # Codes that no input chose do not move.
  np.testing.assert_array_equal(centres[[1, 3]], table[[1, 3]])
  # After a second batch: the mean of both, with weights 1 and 2.
  again = update(statistics, use(codes, inputs + 3))
  moved = np.asarray(jax.jit(lambda s, t: s.centres(t))(again, table))
  np.testing.assert_allclose(
    moved[0], centres[0] + 3 * 2 / 3, rtol=1e-4, atol=1e-5
  )


def test_reviving_moves_only_dead_codes_and_leaves_live_ones_bit_identical():
  table, replacements = draw(0, 5, 3), draw(1, 8, 3)
  statistics = vq.CodeStatistics(
    share=np.array([0.5, 0.01, 0.2, 0.0, 0.29], np.float32),
    mass=np.array([9, 0.2, 4, 0, 5], np.float32),
    total=draw(2, 5, 3),
    age=np.float32(7),
  )
  moved, after = jax.tree.map(
    np.asarray, jax.jit(vq.revive)(table, statistics, replacements, 0.1)
  )
  live, dead = [0, 2, 4], [1, 3]
  np.testing.assert_array_equal(moved[live], table[live])
  np.testing.assert_array_equal(moved[dead], replacements[dead])
  for name in ("share", "mass", "total"):
    np.testing.assert_array_equal(
      getattr(after, name)[live], getattr(statistics, name)[live]
    )
  # A revived code starts with an even share, and its centre is the code.
  np.testing.assert_allclose(after.share[dead], 0.2)
  np.testing.assert_allclose(
    after.total[dead] / after.mass[dead, None], replacements[dead]
  )


def test_a_fresh_codebook_is_seeded_with_inputs_of_the_first_batch():
  run, table = make(False)
  found = run(draw(2, 8, 5, WIDTH), table)
  statistics = update(vq.CodeStatistics.fresh(CODES, WIDTH), found)
  drawn = vq.candidates(found, jax.random.key(0), CODES)
  moved, _ = vq.revive(table, statistics, drawn, 1.0)
  inputs = np.asarray(found.inputs).reshape(-1, WIDTH)
  dead = np.asarray(statistics.share) < 1 / CODES
  assert dead.any()
  for code in np.asarray(moved)[dead]:
    assert (inputs == code).all(-1).any()


@pytest.mark.parametrize("count", [10, 40])
def test_candidates_are_inputs_far_from_their_codes(count):
  run, table = make(False)
  # Ten inputs are close to a code, five are far from all codes.
  inputs = table[np.arange(15) % CODES].reshape(3, 5, WIDTH)
  inputs = inputs + 1e-3 * draw(4, 3, 5, WIDTH)
  inputs[1] += draw(5, 5, WIDTH) * 5
  found = run(inputs, table)
  drawn = np.asarray(
    jax.jit(vq.candidates, static_argnums=2)(found, jax.random.key(0), count)
  )
  flat = inputs.reshape(-1, WIDTH)
  rows = [np.flatnonzero((flat == row).all(-1))[0] for row in drawn]
  far = [row for row in rows if 5 <= row < 10]
  if count <= len(flat):  # Without replacement: the five far ones first.
    assert len(set(rows)) == count and set(range(5, 10)) <= set(rows)
  else:
    assert len(far) == count
  gradient = jax.jit(
    jax.grad(
      lambda x: vq.candidates(run(x, table), jax.random.key(0), count).sum()
    )
  )(inputs)
  assert (np.asarray(gradient) == 0).all()
