"""Tests of casting and quantising parameters a piece at a time."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from genie_jax.models import store
from genie_jax.weights import (
  int8,
  lazy_array,
  param_tree,
  placement,
  tensor_files,
)
from tests.fixtures import tiny_models

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  monkeypatch.setattr(lazy_array, "PIECE_BYTES", 256)
  monkeypatch.setattr(placement, "_VALUES", 16)


def parted(array, unit, read):
  def part(box):
    read.append(array[box].size)
    return array[box]

  return lazy_array.Parted(array.shape, array.dtype, unit, part)


@pytest.mark.parametrize("axes", [(1,), (1, 2)])
@pytest.mark.parametrize("unit", [(1, 1, 1, 1), (4, 3, 2, 5), (4, 2, 6, 1)])
def test_integers_equal_those_of_the_whole_matrix_and_are_read_twice(
  axes, unit
):
  matrix = RNG.normal(size=(4, 6, 6, 5)).astype(np.float32)
  matrix[1, :, :, 2] = 0
  wanted = int8.quantize_leaf(matrix, axes)
  read = []
  found = placement.integers(parted(matrix, unit, read), axes)
  assert not read
  np.testing.assert_array_equal(np.asarray(found.scales), wanted.scales)
  assert sum(read) == matrix.size
  np.testing.assert_array_equal(np.asarray(found.values), wanted.values)
  assert sum(read) == 2 * matrix.size
  assert max(read) <= max(64, np.prod(unit))


@pytest.mark.parametrize(
  "convert",
  [
    np.asarray,
    jnp.asarray,
    lambda x: int8.quantize_leaf(x, (1,)),
    lambda x: lazy_array.Deferred(x.shape, x.dtype, lambda: x),
  ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_later_equals_host_for_every_kind_of_array(convert, dtype):
  leaf = convert(RNG.normal(size=(4, 6, 5)).astype(np.float32))
  found = placement.later(leaf, dtype)
  assert found.dtype == dtype
  np.testing.assert_array_equal(np.asarray(found), placement.host(leaf, dtype))
  np.testing.assert_array_equal(
    np.concatenate([x.reshape(-1) for x in lazy_array.in_order(found)]),
    placement.host(leaf, dtype).reshape(-1),
  )


@pytest.mark.parametrize("dtype", placement.DTYPES)
def test_files_of_lazy_tensors_equal_those_of_whole_tensors(
  tmp_path, monkeypatch, dtype
):
  part = tiny_models.part("dynamics")
  read = []
  lazy = store.Part(
    part.module,
    part.config,
    param_tree.unflatten(
      {
        path: parted(
          np.asarray(leaf), leaf.shape[:1] + (3,) * (leaf.ndim - 1), read
        )
        for path, leaf in param_tree.flatten(part.params).items()
      }
    ),
  )
  digits = store.save(tmp_path / "lazy", {"dynamics": lazy}, dtype=dtype)

  whole = {}
  for path, leaf in param_tree.flatten(part.params).items():
    axes = int8.layer_kernels(path, leaf.shape)
    if dtype == "int8" and axes:
      small = int8.quantize_leaf(np.asarray(leaf), axes)
      whole[f"dynamics/{path}.values"] = small.values
      whole[f"dynamics/{path}.scales"] = small.scales
    else:
      kind = np.float32 if dtype == "float32" else ml_dtypes.bfloat16
      whole[f"dynamics/{path}"] = np.asarray(leaf).astype(kind)
  stored = tensor_files.read(tmp_path / "lazy")
  assert list(stored) == sorted(whole, key=tensor_files.order)
  for name, tensor in stored.items():
    assert tensor.dtype == whole[name].dtype
    np.testing.assert_array_equal(np.asarray(tensor), whole[name])
  monkeypatch.setattr(lazy_array, "PIECE_BYTES", 1 << 25)
  assert store.save(tmp_path / "whole", {"dynamics": part}, dtype=dtype) == (
    digits
  )
  for name in (tensor_files.WHOLE, "config.json"):
    assert (tmp_path / "lazy" / name).read_bytes() == (
      tmp_path / "whole" / name
    ).read_bytes()
  assert max(read) < max(leaf.size for leaf in whole.values())
