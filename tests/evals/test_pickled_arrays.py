"""Tests that arrays are read from a pickle and that nothing else is."""

import pathlib
import pickle

import numpy as np
import pytest

from genie_jax.evals import pickled_arrays

TREE = {
  "params": {
    "Block": {
      "kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
      "bias": np.array([1.5, -2.0], np.float32),
    }
  },
  "statistics": {"mean": np.asfortranarray(np.eye(3, 2, dtype=np.float32))},
}


def test_nested_dicts_of_arrays_are_read_as_they_were_written():
  found = pickled_arrays.read(pickle.dumps(TREE, protocol=4))
  assert sorted(found) == [
    "params/Block/bias",
    "params/Block/kernel",
    "statistics/mean",
  ]
  block = TREE["params"]["Block"]
  np.testing.assert_array_equal(found["params/Block/kernel"], block["kernel"])
  np.testing.assert_array_equal(found["params/Block/bias"], block["bias"])
  np.testing.assert_array_equal(found["statistics/mean"], np.eye(3, 2))
  assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


class Touch:
  """Writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_a_call_is_refused_and_not_made(tmp_path):
  content = pickle.dumps({"a": Touch(tmp_path / "made")}, protocol=4)
  with pytest.raises(ValueError, match="refers to"):
    pickled_arrays.read(content)
  assert not (tmp_path / "made").exists()
  pickle.loads(content)  # noqa: S301  The pickle would have made it.
  assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
  "value",
  [
    np.float64(1.0),
    np.zeros(2),
    np.zeros(2, ">f4"),
    np.array([None]),
    [np.zeros(2, np.float32)],
    1,
    "text",
    {1, 2},
  ],
)
def test_other_values_are_refused(value):
  with pytest.raises(ValueError, match="pickle"):
    pickled_arrays.read(pickle.dumps({"a": value}, protocol=4))


def test_a_dict_that_contains_itself_is_refused():
  loop = {}
  loop["a"] = loop
  with pytest.raises(ValueError, match="no array at a/a/a"):
    pickled_arrays.read(pickle.dumps(loop, protocol=4))


def test_a_damaged_pickle_ends_in_a_value_error_or_in_arrays():
  content = pickle.dumps(TREE, protocol=4)
  for end in range(len(content)):
    with pytest.raises(ValueError):
      pickled_arrays.read(content[:end])
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(2000):
    damaged = bytearray(content)
    damaged[rng.integers(len(content))] = rng.integers(256)
    try:
      found = pickled_arrays.read(bytes(damaged))
    except ValueError:
      refused += 1
    else:
      assert all(isinstance(value, np.ndarray) for value in found.values())
  assert refused > 500
