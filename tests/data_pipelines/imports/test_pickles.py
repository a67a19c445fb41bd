"""Tests that pickles are read without being run, and nothing else is."""

import os
import pickle
import random

import numpy as np
import pytest

from data_pipelines.imports import pickles

VALUES = [
  None,
  True,
  -7,
  2**70,
  1.5,
  "film é",
  b"\x00\xff",
  bytearray(b"ab"),
  [],
  [1, "a", [2.0, None]],
  (1, (2, 3, 4, 5), ()),
  {"raw_video": bytes(300), "sequence_length": 4, "actions": [0, 1, 2, 3]},
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_are_read_as_pickle_reads_them(value, protocol):
  found = pickles.read(pickle.dumps(value, protocol))
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
  "dtype", ["int64", "int32", "uint8", "float32", "bool", ">i4", "float16"]
)
def test_arrays_of_numbers_are_read(dtype, protocol):
  for array in (
    np.arange(6).reshape(2, 3).astype(dtype),
    np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
    np.array([], dtype),
    np.array(1, dtype),
  ):
    found = pickles.read(pickle.dumps({"a": array, "b": [array]}, protocol))
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"][0], array)
    assert found["a"].dtype == array.dtype


def test_numpy_scalars_and_object_arrays_are_read():
  content = pickle.dumps({"n": np.int64(5), "x": np.float32(0.5)})
  assert pickles.read(content) == {"n": 5, "x": 0.5}
  rows = np.array([{"path": "a.npy", "length": 3}], dtype=object)
  assert pickles.read(pickle.dumps(rows)) == [{"path": "a.npy", "length": 3}]


def test_names_of_the_other_numpy_are_read():
  content = pickle.dumps(np.arange(3), 4)
  here = b"numpy._core.multiarray"
  other = b"numpy.core.multiarray"
  assert here in content
  length = bytes([len(here)]) + here
  content = content.replace(length, bytes([len(other)]) + other)
  # The frame is one byte shorter.
  place = content.index(b"\x95") + 1
  size = int.from_bytes(content[place : place + 8], "little") - 1
  content = content[:place] + size.to_bytes(8, "little") + content[place + 8 :]
  assert pickles.read(content).tolist() == [0, 1, 2]


class Evil:
  """Runs a command where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_and_not_run(
  tmp_path, protocol
):
  path = tmp_path / "ran"
  content = pickle.dumps({"raw_video": b"", "x": Evil(path)}, protocol)
  with pytest.raises(ValueError, match="could run code") as caught:
    pickles.read(content)
  assert "\n" not in str(caught.value)
  assert not path.exists()


@pytest.mark.parametrize(
  "content",
  [
    b"c__builtin__\neval\n(S'1'\ntR.",
    b"cos\nsystem\n(S'true'\ntR.",
    b"(S'true'\nios\nsystem\n.",
    b"(cos\nsystem\nS'true'\no.",
    b"\x80\x02cbuiltins\nobject\n)\x81.",
    b"Pid\n.",
    b"cnumpy\ndtype\n(S'V8'\ntR.",
    b"cnumpy\ndtype\n.",
    b"]q\x00h\x00a.",
    b"(((.",
    b"",
    b"\x80\x04",
    b"N",
    b"0.",
    b"h\x05.",
    b"I1\nI2\ns.",
    b"(lI1\nI2\n\x86R.",
  ],
)
def test_strange_pickles_are_one_line(content):
  try:
    found = pickles.read(content)
    assert isinstance(found, list), found  # The list that has itself.
  except ValueError as error:
    assert "\n" not in str(error)


def test_random_damage_never_gives_another_error():
  rng = random.Random(0)
  content = pickle.dumps(
    {
      "raw_video": bytes(range(200)),
      "sequence_length": np.int64(4),
      "actions": np.arange(4),
      "names": [("a", 1.5)],
    }
  )
  for _ in range(3000):
    data = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
      data[rng.randrange(len(data))] = rng.randrange(256)
    try:
      pickles.read(bytes(data[: rng.randrange(len(data)) or None]))
      pickles.read(bytes(data))
    except ValueError:
      pass
