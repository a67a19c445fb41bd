"""Tests of arrays that are read and written in boxes."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genie_jax.weights import lazy_array, tensor_files

AXES = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4)), max_size=4)


@given(axes=AXES, limit=st.integers(1, 60))
def test_boxes_of_whole_units_cover_each_value_once(axes, limit):
  shape, unit = tuple(a for a, _ in axes), tuple(b for _, b in axes)
  seen = np.zeros(shape, int)
  for box in lazy_array.boxes(shape, limit, unit):
    seen[box] += 1
    assert seen[box].size <= max(limit, math.prod(unit))
    assert all(
      part.start % one == 0 for part, one in zip(box, unit, strict=True)
    )
  assert (seen == 1).all()


@given(axes=AXES, limit=st.integers(1, 60))
def test_boxes_without_a_unit_follow_each_other_in_memory(axes, limit):
  shape = tuple(a for a, _ in axes)
  array = np.arange(math.prod(shape)).reshape(shape)
  found = [array[box].reshape(-1) for box in lazy_array.boxes(shape, limit)]
  np.testing.assert_array_equal(
    np.concatenate([*found, np.zeros(0, int)]), array.reshape(-1)
  )


def parted(array, unit, read=None):
  def part(box):
    if read is not None:
      read.append(box)
    return array[box]

  return lazy_array.Parted(array.shape, array.dtype, unit, part)


@pytest.mark.parametrize(
  "unit", [(1, 1, 1), (6, 5, 8), (6, 2, 3), (4, 5, 1)], ids=str
)
@pytest.mark.parametrize("shard_bytes", (500, tensor_files.SHARD_BYTES))
@pytest.mark.parametrize("dtype", (np.float32, ml_dtypes.bfloat16, np.int8))
def test_a_tensor_read_in_boxes_is_written_like_a_whole_one(
  tmp_path, monkeypatch, unit, shard_bytes, dtype
):
  monkeypatch.setattr(lazy_array, "PIECE_BYTES", 100)
  array = np.arange(6 * 5 * 8).reshape(6, 5, 8).astype(np.int8).astype(dtype)
  read = []
  lazy = parted(array, unit, read)
  tensor_files.write(tmp_path / "a", {"x": lazy}, shard_bytes=shard_bytes)
  tensor_files.write(tmp_path / "b", {"x": array}, shard_bytes=shard_bytes)
  names = [path.name for path in sorted((tmp_path / "b").iterdir())]
  assert names == [path.name for path in sorted((tmp_path / "a").iterdir())]
  for name in names:
    assert (tmp_path / "a" / name).read_bytes() == (
      tmp_path / "b" / name
    ).read_bytes()
  # Each value is read once, even if a box is written to several files.
  assert sum(array[box].size for box in read) == array.size
  np.testing.assert_array_equal(np.asarray(lazy), array)
  np.testing.assert_array_equal(lazy[1:3], array[1:3])
  for tensor in (lazy, tensor_files.read(tmp_path / "a")["x"]):
    blocks = list(lazy_array.in_order(tensor))
    assert max(block.nbytes for block in blocks) <= 100
    np.testing.assert_array_equal(
      np.concatenate([block.reshape(-1) for block in blocks]), array.reshape(-1)
    )
