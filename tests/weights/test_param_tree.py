"""Tests of trees of arrays in files."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.weights import param_tree


def tree():
  return {
    "b": {
      "kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
      "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    },
    "a": np.array(7, np.int32),
    "c": {"d": {"e": np.zeros((0, 3), np.uint8)}},
  }


def test_flat_names_join_keys_and_can_be_unflattened():
  flat = param_tree.flatten(tree())
  assert list(flat) == ["a", "b/half", "b/kernel", "c/d/e"]
  assert param_tree.flatten(param_tree.unflatten(flat)).keys() == flat.keys()


def test_every_dtype_and_layout_round_trips(tmp_path):
  param_tree.save(tmp_path / "x.safetensors", tree(), {"note": "ü"})
  found, metadata = param_tree.load(tmp_path / "x.safetensors")
  assert metadata == {"note": "ü"}
  wanted, found = param_tree.flatten(tree()), param_tree.flatten(found)
  assert wanted.keys() == found.keys()
  for name, leaf in wanted.items():
    assert found[name].dtype == leaf.dtype, name
    np.testing.assert_array_equal(found[name], leaf)
  assert param_tree.fingerprint(tree()) == param_tree.fingerprint(
    param_tree.unflatten(found)
  )


def test_device_arrays_are_stored_like_host_arrays(tmp_path):
  device = {"a": jnp.arange(4, dtype=jnp.bfloat16)}
  param_tree.save(tmp_path / "x.safetensors", device)
  found, _ = param_tree.load(tmp_path / "x.safetensors")
  assert found["a"].dtype == ml_dtypes.bfloat16
  assert param_tree.fingerprint(found) == param_tree.fingerprint(device)


def test_a_truncated_or_missing_file_raises_a_one_line_error(tmp_path):
  path = tmp_path / "x.safetensors"
  param_tree.save(path, tree())
  whole = path.read_bytes()
  for content in (whole[:-3], whole[:5], b"", b"no tensors in here"):
    path.write_bytes(content)
    with pytest.raises(
      errors.UserError, match=r"x\.safetensors is not a whole"
    ) as raised:
      param_tree.load(path)
    assert "\n" not in str(raised.value)
  with pytest.raises(errors.UserError, match="does not exist"):
    param_tree.load(tmp_path / "none.safetensors")


def test_fingerprints_differ_by_names_dtypes_shapes_and_values():
  base = np.arange(4, dtype=np.int32)
  prints = [
    param_tree.fingerprint(x)
    for x in (
      {"a": base},
      {"b": base},
      {"a": base.astype(np.uint32)},
      {"a": base.reshape(2, 2)},
      {"a": base + 1},
      {"a": {"a": base}},
    )
  ]
  assert len(set(prints)) == len(prints)
