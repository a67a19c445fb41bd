"""Tests of tensors on disk: pieces, shards and memory use."""

import json
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from genie_jax.core import errors
from genie_jax.weights import tensor_files

RNG = np.random.default_rng(0)
TENSORS = {
  "a/kernel": RNG.normal(size=(10, 300)).astype(np.float32),
  "a/bias": RNG.normal(size=(7, 30)).astype(ml_dtypes.bfloat16),
  "b/kernel.values": RNG.integers(-127, 128, (3, 5, 7), dtype=np.int8),
  "b/kernel.scales": np.ones((3, 1, 7), np.float32),
  "scalar": np.array(3.0, np.float32),
}


@pytest.mark.parametrize("shard_bytes", (2500, tensor_files.SHARD_BYTES))
def test_tensors_can_be_read_whole_and_in_parts(tmp_path, shard_bytes):
  tensor_files.write(tmp_path, TENSORS, shard_bytes=shard_bytes)
  found = tensor_files.read(tmp_path)
  assert list(found) == sorted(TENSORS, key=tensor_files.order)
  for name, wanted in TENSORS.items():
    got = found[name]
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(got), wanted)
    if wanted.ndim > 1:
      np.testing.assert_array_equal(got[1:3], wanted[1:3])
      np.testing.assert_array_equal(got[:, 0:1], wanted[:, :1])


def test_files_are_within_the_limit_and_readable_by_safetensors(tmp_path):
  tensor_files.write(tmp_path, TENSORS, shard_bytes=2500)
  index = json.loads((tmp_path / tensor_files.INDEX).read_text())
  placed = index["weight_map"]
  assert {"a/kernel[0:2]", "a/kernel[8:10]"} <= set(placed)
  for file in set(placed.values()):
    content = safetensors.numpy.load_file(tmp_path / file)
    assert sum(x.nbytes for x in content.values()) <= 2500
    assert {name for name in placed if placed[name] == file} == set(content)
  assert index["metadata"]["total_size"] == sum(
    x.nbytes for x in TENSORS.values()
  )


def test_a_row_larger_than_a_file_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="too small for one row of a/ker"):
    tensor_files.write(tmp_path, TENSORS, shard_bytes=1000)


def test_writing_and_reading_need_memory_for_one_tensor_only(tmp_path):
  size = 4_000_000
  lazy = {
    str(i): tensor_files.Deferred(
      (1000, 1000), np.float32, lambda: np.zeros((1000, 1000), np.float32)
    )
    for i in range(20)
  }  # 80 MB in all.
  tracemalloc.start()
  try:
    tensor_files.write(tmp_path, lazy, shard_bytes=9_000_000)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    for tensor in tensor_files.read(tmp_path).values():
      for row in range(0, 1000, 100):
        assert not tensor[row : row + 100].any()
    read = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert written < 1.5 * size
  assert read < 0.5 * size


def damaged(tmp_path, change):
  tensor_files.write(tmp_path, TENSORS, shard_bytes=2500)
  path = tmp_path / tensor_files.INDEX
  index = json.loads(path.read_text())
  change(index["weight_map"])
  path.write_text(json.dumps(index))
  return tmp_path


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda w: w.pop("scalar"), "disagree about tensor 'scalar'"),
    (lambda w: w.update(more=w["scalar"]), "disagree about tensor 'more'"),
    (lambda w: w.update(scalar="../model.safetensors"), "does not map names"),
    (lambda w: w.update(scalar=7), "does not map names"),
    (lambda w: w.clear(), "does not map names"),
  ],
)
def test_an_index_that_does_not_fit_raises_a_one_line_error(
  tmp_path, change, message
):
  with pytest.raises(errors.UserError, match=message) as raised:
    tensor_files.read(damaged(tmp_path, change))
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "names, message",
  [
    (("a[0:2]", "a[3:5]"), "do not fit together"),
    (("a[1:3]",), "do not fit together"),
    (("a[0:2]", "a"), "do not fit together"),
    (("a[0:9]",), "do not fit together"),
  ],
)
def test_pieces_with_gaps_are_refused(tmp_path, names, message):
  safetensors.numpy.save_file(
    {name: np.zeros((2, 3), np.float32) for name in names},
    tmp_path / tensor_files.WHOLE,
  )
  with pytest.raises(errors.UserError, match=message):
    tensor_files.read(tmp_path)


def test_other_types_are_refused(tmp_path):
  safetensors.numpy.save_file(
    {"a": np.zeros(2, np.float64)}, tmp_path / tensor_files.WHOLE
  )
  with pytest.raises(errors.UserError, match="'a' is of type F64"):
    tensor_files.read(tmp_path)


ENTRY = st.one_of(
  st.none(),
  st.integers(),
  st.text(max_size=3),
  st.fixed_dictionaries(
    {
      "dtype": st.sampled_from(["F32", "BF16", "I8", "F64", "X"]),
      "shape": st.lists(st.integers(-1, 2**63), max_size=3),
      "data_offsets": st.lists(st.integers(-1, 2**40), max_size=3),
    }
  ),
)


@given(
  header=st.dictionaries(st.text(max_size=8), ENTRY, max_size=3),
  length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
  rest=st.binary(max_size=40),
)
@settings(max_examples=300, deadline=None)
def test_any_header_is_read_or_refused_in_one_line(
  tmp_path_factory, header, length, rest
):
  folder = tmp_path_factory.mktemp("fuzz")
  text = json.dumps(header).encode()
  length = len(text) if length is None else length
  (folder / tensor_files.WHOLE).write_bytes(
    length.to_bytes(8, "little") + text + rest
  )
  try:
    for tensor in tensor_files.read(folder).values():
      np.asarray(tensor)
  except errors.UserError as error:
    assert "\n" not in str(error)


def test_the_fingerprint_of_stored_tensors_is_that_of_their_values(tmp_path):
  random = np.random.default_rng(0)
  tensors = {
    "a/kernel": random.normal(size=(40, 3)).astype(np.float32),
    "a/values": random.integers(-9, 9, (7, 5)).astype(np.int8),
    "b": np.array(2.5, np.float32),
    "a/scales": random.normal(size=(6, 2)).astype(ml_dtypes.bfloat16),
  }
  for shard_bytes in (1 << 30, 200):  # One file; pieces in several files.
    folder = tmp_path / str(shard_bytes)
    folder.mkdir()
    tensor_files.write(folder, tensors, shard_bytes=shard_bytes)
    stored = tensor_files.read(folder)
    assert tensor_files.stored_fingerprint(stored) == tensor_files.fingerprint(
      tensors
    )
