"""Tests of matrices stored as 8-bit integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.weights import int8

LAYERS = "stack/layers/"


@pytest.mark.parametrize(
  "path, shape, axes",
  [
    (LAYERS + "space/qkv/kernel", (4, 8, 3, 2, 4), (1,)),
    (LAYERS + "time/out/kernel", (4, 2, 4, 8), (1, 2)),
    (LAYERS + "mlp_out/kernel", (4, 16, 8), (1,)),
    (LAYERS + "mlp_norm/scale", (4, 8), None),
    ("to_logits/kernel", (8, 32), None),
    ("to_logits/bias", (32,), None),
    ("codes/codebook", (32, 4), None),
    ("token_embedding", (32, 8), None),
  ],
)
def test_only_matrices_of_layers_are_quantized(path, shape, axes):
  assert int8.layer_kernels(path, shape) == axes


@pytest.mark.parametrize("xp", (np, jnp))
def test_no_weight_changes_by_more_than_half_a_scale(xp):
  matrix = xp.asarray(
    np.random.default_rng(0).normal(size=(2, 16, 3, 4)).astype(np.float32)
  )
  found = int8.quantize_leaf(matrix, (1,))
  assert found.values.dtype == np.int8 and found.shape == matrix.shape
  assert found.scales.shape == (2, 1, 3, 4)
  assert isinstance(found.values, type(matrix))
  error = np.abs(np.asarray(found.dequantize()) - np.asarray(matrix))
  # The product is rounded as well.
  assert (error <= 0.5001 * np.asarray(found.scales)).all()
  # The largest weight of each channel is exact up to rounding.
  largest = np.abs(np.asarray(found.values)).max(axis=1)
  assert (largest == 127).all()


def test_a_channel_of_zeros_stays_zero():
  found = int8.quantize_leaf(np.zeros((1, 4, 2), np.float32), (1,))
  assert not np.asarray(found.dequantize()).any()


def test_a_tree_is_quantised_and_dequantised_inside_a_compiled_function():
  rng = np.random.default_rng(0)
  tree = {
    "layers": {
      "mlp_in": {"kernel": rng.normal(size=(2, 8, 4)).astype(np.float32)}
    },
    "bias": rng.normal(size=4).astype(np.float32),
  }
  small = int8.quantize(tree)
  assert isinstance(small["layers"]["mlp_in"]["kernel"], int8.Int8)
  np.testing.assert_array_equal(small["bias"], tree["bias"])
  again = int8.quantize(small)
  assert jax.tree.structure(again) == jax.tree.structure(small)
  whole = jax.jit(int8.dequantize)(small)
  assert jax.tree.structure(whole) == jax.tree.structure(tree)
  # 64 weights of one byte, 8 scales and 4 biases of four bytes.
  assert int8.num_bytes(small) == 64 + 4 * (8 + 4)
