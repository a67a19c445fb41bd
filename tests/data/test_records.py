"""Tests of records: round trips and detection of damage."""

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import records


def _record() -> bytes:
  return records.pack(
    {
      "frames": np.arange(210, dtype=np.uint8).reshape(5, 7, 2, 3),
      "actions": np.arange(5, dtype=np.int32),
      "first": np.arange(5) == 2,
    },
    {"fps": 15, "source": 9, "start": 32},
  )


@pytest.mark.parametrize(
  "dtype", ["?", "u1", "<u2", "<i4", "<i8", "<f4", ">i4"]
)
def test_arrays_of_each_dtype_keep_shape_and_values(dtype):
  arrays = {
    "a": np.arange(12).reshape(3, 4).astype(dtype),
    "empty": np.zeros((0, 2), dtype),
    "scalar": np.ones((), dtype),
  }
  found, meta = records.unpack(records.pack(arrays, {"fps": 2.5}))
  assert meta == {"fps": 2.5}
  for name, array in arrays.items():
    assert found[name].shape == array.shape
    assert found[name].dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found[name], array)


def test_a_transposed_view_is_stored_correctly():
  array = np.arange(6, dtype=np.int32).reshape(2, 3).T
  found, _ = records.unpack(records.pack({"a": array}, {}))
  np.testing.assert_array_equal(found["a"], array)


def test_equal_content_gives_equal_bytes():
  assert _record() == _record()


def test_reading_makes_no_copy():
  found, _ = records.unpack(_record())
  assert not found["frames"].flags.owndata
  assert not found["frames"].flags.writeable


def test_every_single_flipped_bit_is_found():
  record = _record()
  for position in range(len(record)):
    damaged = bytearray(record)
    damaged[position] ^= 1 << position % 8
    with pytest.raises(errors.UserError):
      records.unpack(bytes(damaged))


def test_a_record_cut_anywhere_is_refused():
  record = _record()
  for length in range(len(record)):
    with pytest.raises(errors.UserError):
      records.unpack(record[:length])


def test_the_message_names_the_record_and_the_checksum():
  damaged = bytearray(_record())
  damaged[-20] ^= 1
  with pytest.raises(errors.UserError, match=r"shard 3 record 8.*CRC-32C"):
    records.unpack(bytes(damaged), "shard 3 record 8")


def test_another_schema_version_is_named():
  other = bytearray(_record())
  other[4] = 2
  with pytest.raises(errors.UserError, match=r"version 2.*version 1"):
    records.unpack(bytes(other))


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["text"])])
def test_objects_and_text_are_not_stored(array):
  with pytest.raises(ValueError, match="'bad' has dtype"):
    records.pack({"bad": array}, {})
