"""FLOPs counted from the trace of a function."""

import jax
import jax.numpy as jnp
import pytest

from genie_jax.nn import flops

X = jax.ShapeDtypeStruct((2, 5, 3), jnp.float32)
W = jax.ShapeDtypeStruct((3, 7), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((3, 3), jnp.float32)


def test_a_matrix_product_is_counted_as_by_hand():
  assert flops.traced(jnp.matmul, X, W) == flops.linear(3, 7, 10)
  # Under jit and vmap as well; other operations are not counted.
  mapped = jax.jit(jax.vmap(lambda x, w: jnp.tanh(x @ w) + 1, (0, None)))
  assert flops.traced(mapped, X, W) == flops.linear(3, 7, 10)


def test_the_body_of_a_scan_is_counted_once_per_iteration():
  def repeat(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=4)[0]

  assert flops.traced(repeat, X, SQUARE) == 4 * flops.linear(3, 3, 10)


def test_of_several_branches_the_most_expensive_is_counted():
  def choose(x, w):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

  assert flops.traced(choose, X, SQUARE) == 2 * flops.linear(3, 3, 10)


@pytest.mark.parametrize("groups", (1, 2))
def test_a_convolution_counts_as_a_product_at_every_position(groups):
  image = jax.ShapeDtypeStruct((2, 4, 8, 8), jnp.float32)
  kernel = jax.ShapeDtypeStruct((6, 4 // groups, 3, 3), jnp.float32)
  convolve = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", feature_group_count=groups
  )
  assert flops.traced(convolve, image, kernel) == flops.linear(
    9 * 4 // groups, 6, 2 * 8 * 8
  )
