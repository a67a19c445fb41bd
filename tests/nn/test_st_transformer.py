"""Tests of the space-time transformer as a whole, and of its FLOPs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.nn import flops, initializers, st_transformer

FIELDS = dict(
  num_layers=2, width=16, num_heads=2, head_dim=8, mlp_dim=24, dtype="float32"
)
# For layers whose float32 sums are added in a different order.
TOLERANCE = dict(rtol=2e-4, atol=2e-5)


@functools.cache
def inputs_and_params():
  x = jax.random.normal(jax.random.key(1), (2, 4, 3, 16))
  module = st_transformer.STTransformer(**FIELDS)
  params = nn.unbox(jax.jit(module.init)(jax.random.key(0), x))["params"]
  # Untrained output layers are small; scaling them makes all paths matter.
  return x, jax.tree.map(lambda leaf: leaf * 1.5, params)


def run(x=None, *rest, **changes):
  inputs, params = inputs_and_params()
  module = st_transformer.STTransformer(**{**FIELDS, **changes})
  x = inputs if x is None else x
  return jax.jit(lambda p, *a: module.apply({"params": p}, *a))(
    params, x, *rest
  )


def test_the_stack_is_causal_in_time_and_mixes_space():
  x, _ = inputs_and_params()
  before, _ = run()
  after, _ = run(x.at[:, 2, 1].add(1.0))
  np.testing.assert_array_equal(before[:, :2], after[:, :2])
  assert (np.abs(before - after)[:, 2:].max(-1) > 1e-4).all()


def test_a_window_of_one_makes_frames_independent():
  x, _ = inputs_and_params()
  before, _ = run(window=1)
  after, _ = run(x.at[:, 1].add(1.0), window=1)
  others = np.array([0, 2, 3])
  np.testing.assert_array_equal(before[:, others], after[:, others])


def test_only_distances_between_frames_matter():
  x, _ = inputs_and_params()
  np.testing.assert_allclose(
    run(x, None, 0)[0], run(x, None, 37)[0], **TOLERANCE
  )


def test_unrolled_layers_give_the_scanned_values():
  np.testing.assert_allclose(run(unroll=2)[0], run(unroll=1)[0], **TOLERANCE)


@pytest.mark.parametrize(
  "policy",
  [
    policy if policy == "full" else pytest.param(policy, marks=pytest.mark.slow)
    for policy in st_transformer.REMAT_POLICIES
    if policy != "none"
  ],
)
def test_every_remat_policy_gives_the_same_values_and_gradients(policy):
  x, params = inputs_and_params()

  def look(policy):
    module = st_transformer.STTransformer(**FIELDS, remat=policy)
    return jax.jit(
      jax.value_and_grad(
        lambda p: jnp.square(module.apply({"params": p}, x)[0] - 1).sum()
      )
    )(params)

  wanted = look("none")
  assert all(bool((leaf != 0).any()) for leaf in jax.tree.leaves(wanted[1]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE),
    look(policy),
    wanted,
  )


def test_frame_by_frame_with_a_cache_equals_the_full_pass():
  x, params = inputs_and_params()
  whole, _ = run()
  module = st_transformer.STTransformer(**FIELDS)
  cache = st_transformer.empty_cache(FIELDS, 2, 3, slots=5)
  assert cache.key.shape == (2, 2, 5, 3, 2, 8)
  step = jax.jit(
    lambda x, cache, t: module.apply({"params": params}, x, cache, t)
  )
  for t in range(4):
    out, own = step(x[:, t : t + 1], cache, t)
    np.testing.assert_allclose(out[:, 0], whole[:, t], **TOLERANCE)
    cache = cache.write(own, t)
  assert cache.positions.tolist() == [0, 1, 2, 3, -1]


@pytest.mark.parametrize("first", (0, 4))
@pytest.mark.parametrize("count", (1, 2, 3, 5))
def test_a_cache_is_a_ring_buffer_of_the_last_frames(count, first):
  fields = dict(FIELDS, num_layers=1)
  cache = st_transformer.empty_cache(fields, 1, 1, slots=3)
  shape = (1, 1, first + count, 1, FIELDS["num_heads"], FIELDS["head_dim"])
  numbers = jnp.arange(first + count, dtype=jnp.float32)[:, None, None, None]
  all_ = jnp.broadcast_to(numbers, shape)
  for t in range(first):
    cache = cache.write((all_[:, :, t : t + 1],) * 2, t)
  rest = (all_[:, :, first:],) * 2
  for position in (first, jnp.int32(first)):
    found = cache.write(rest, position)
    for slot, number in enumerate(found.positions.tolist()):
      kept = [t for t in range(first + count) if t % 3 == slot]
      assert number == (kept[-1] if kept else -1)
      assert (found.key[0, 0, slot] == max(number, 0)).all()
      assert (found.value[0, 0, slot] == max(number, 0)).all()
  earlier = found.before(jnp.int32(first + count - 1))
  assert (found.positions == first + count - 1).sum() == 1
  assert sorted(earlier.positions.tolist()) == sorted(
    number if number < first + count - 1 else -1
    for number in found.positions.tolist()
  )


def test_bfloat16_activations_keep_float32_parameters():
  _, params = inputs_and_params()
  out, _ = run(dtype="bfloat16")
  assert out.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype("float32")
  }
  # Two layers with a mantissa of eight bits.
  np.testing.assert_allclose(
    out.astype(jnp.float32), run()[0], rtol=0.1, atol=0.15
  )


def test_the_residual_stream_of_untrained_layers_keeps_its_scale():
  x = jax.random.normal(jax.random.key(1), (1, 2, 4, 32))
  deep = st_transformer.STTransformer(
    **dict(FIELDS, num_layers=32, width=32, mlp_dim=64), final_norm=False
  )
  out, _ = jax.jit(lambda rng, x: deep.init_with_output(rng, x)[0])(
    jax.random.key(0), x
  )
  assert 1.0 < float(out.std()) < 2.0  # Nearly 6 without `output_scale`.


def test_a_stack_without_residuals_starts_as_the_identity():
  x, _ = inputs_and_params()
  stack = st_transformer.STTransformer(
    **FIELDS, final_norm=False, residual_scale=0.0
  )
  out, _ = jax.jit(lambda rng, x: stack.init_with_output(rng, x)[0])(
    jax.random.key(0), x
  )
  np.testing.assert_array_equal(out, x)


def test_grid_positions_are_a_vector_for_row_plus_one_for_column():
  module = st_transformer.GridPosition((2, 3))
  rng = np.random.default_rng(0)
  rows, columns = rng.random((2, 4)), rng.random((3, 4))
  found = np.asarray(
    jax.jit(module.apply)(
      {"params": {"row_position": rows, "column_position": columns}},
      np.ones((1, 2, 6, 4), np.float32),
    )
  )[0]
  for frame, row, column in np.ndindex(2, 2, 3):
    np.testing.assert_allclose(
      found[frame, 3 * row + column], 1 + rows[row] + columns[column], rtol=1e-6
    )


def test_a_projection_is_an_einsum_with_its_kernel():
  module = initializers.Projection(
    (3, 5),
    ("heads", "head_dim"),
    inputs=2,
    input_axes=("embed", None),
    bias=True,
    dtype=jnp.float32,
  )
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 7, 4, 6)).astype(np.float32)
  boxed = jax.eval_shape(module.init, jax.random.key(1), x)["params"]
  assert boxed["kernel"].names == ("embed", None, "heads", "head_dim")
  assert boxed["bias"].names == ("heads", "head_dim")
  kernel, bias = rng.normal(size=(4, 6, 3, 5)), rng.normal(size=(3, 5))
  found = jax.jit(module.apply)(
    {"params": {"kernel": kernel.astype(np.float32), "bias": bias}}, x
  )
  np.testing.assert_allclose(
    found, np.einsum("abij,ijhk->abhk", x, kernel) + bias, rtol=1e-4, atol=1e-5
  )


def test_flops_are_those_counted_by_hand_for_a_tiny_stack():
  # One layer, D = 4, 1 head of 3, MLP of 5; T = 2 frames of N = 2 tokens.
  fields = dict(num_layers=1, width=4, num_heads=1, head_dim=3, mlp_dim=5)
  token = 0
  for _ in ("space", "time"):
    token += 3 * (2 * 4 * 3)  # q, k and v: a multiply and an add each
    token += 2 * 3 * 4  # out
  token += 2 * 4 * 5 + 2 * 5 * 4  # MLP in and out
  # Scores and weighted sums: 2 * 3 each for every attended token.
  space = 2 * (2 * 3 + 2 * 3)
  first, second = 1 * (2 * 3 + 2 * 3), 2 * (2 * 3 + 2 * 3)  # causal in time
  by_hand = 2 * 2 * (token + space) + 2 * (first + second)
  assert flops.st_transformer(fields, 2, 2) == by_hand
  assert flops.linear(3, 5, 7) == 2 * 3 * 5 * 7


def test_flops_agree_with_those_counted_by_the_compiler():
  x, params = inputs_and_params()
  module = st_transformer.STTransformer(**FIELDS, unroll=2)
  lowered = jax.jit(lambda x: module.apply({"params": params}, x)[0]).lower(x)
  compiled = lowered.compile().cost_analysis()["flops"]
  ours = 2 * flops.st_transformer(FIELDS, 4, 3)
  # The compiler also counts norms, the softmax and the masked half.
  assert 1.0 <= compiled / ours < 1.35
