"""One record: named arrays and a small description, checked when read.

Layout, all numbers little-endian:

  4 bytes   magic, b"GNIE"
  2 bytes   schema version        2 bytes   zero
  4 bytes   length of the header
  header    JSON {"arrays": [[name, dtype, shape], ...], "meta": {...}},
            padded with spaces so that the arrays start on 8 bytes
  arrays    raw bytes of each array in turn, each padded to 8 bytes
  4 bytes   CRC-32C of all that stands before it

The checksum comes last so that a reader needs no copy of the record: the
CRC-32C of any message followed by its own CRC-32C is one constant. There is
no pickle, so reading a record never runs what is in it.
"""

import json
import struct
from typing import Any

import google_crc32c
import numpy as np

from genie_jax.core import errors

SCHEMA_VERSION = 1

_MAGIC = b"GNIE"
_PREFIX = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
# CRC-32C of a message followed by its own little-endian CRC-32C.
_CRC_RESIDUE = 0x48674BC7
# The kinds of number a record may hold: bool, signed, unsigned, float.
_DTYPE_KINDS = "biuf"


def _padding(length: int) -> int:
  return -length % 8


def pack(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> bytes:
  """Returns one record as bytes; equal input gives equal bytes.

  Args:
    arrays: Named arrays of bools, integers or floats, of any shape. Clips
      hold "frames" [t, H, W, C] uint8, "actions" [t] int32 (the action taken
      at each frame) and "first" [t] bool (an episode begins at this frame).
    meta: What JSON can hold; clips and tokens say fps, source and start.

  Raises:
    ValueError: An array holds objects or text.
  """
  table, pieces = [], []
  for name, array in arrays.items():
    array = np.asarray(array, order="C")
    if array.dtype.kind not in _DTYPE_KINDS:
      raise ValueError(
        f"Array {name!r} has dtype {array.dtype}; records hold bools, "
        "integers and floats."
      )
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    table.append([name, array.dtype.str, list(array.shape)])
    pieces += [array.tobytes(), bytes(_padding(array.nbytes))]
  header = json.dumps(
    {"arrays": table, "meta": meta},
    separators=(",", ":"),
    sort_keys=True,
    allow_nan=False,
  ).encode()
  header += b" " * _padding(_PREFIX.size + len(header))
  prefix = _PREFIX.pack(_MAGIC, SCHEMA_VERSION, 0, len(header))
  body = b"".join([prefix, header, *pieces])
  return body + _CRC.pack(google_crc32c.value(body))


def unpack(
  record: bytes,
  where: str = "record",
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the arrays and the description of one record.

  Args:
    record: Bytes that `pack` made.
    where: Names the record in error messages.

  Returns:
    Read-only arrays that look into `record` without a copy, and the meta
    dictionary.

  Raises:
    UserError: These bytes are not a record, are of another schema version, or
      are damaged.
  """
  if len(record) < _PREFIX.size + _CRC.size or record[:4] != _MAGIC:
    raise errors.UserError(
      f"{where} is not a genie record ({len(record)} bytes that do not "
      "begin with its magic number); check that the folder was written by "
      "`genie data` or `genie tokenize`."
    )
  _, version, _, header_length = _PREFIX.unpack_from(record)
  if version != SCHEMA_VERSION:
    raise errors.UserError(
      f"{where} has schema version {version}, but this program reads "
      f"version {SCHEMA_VERSION}; write the folder again."
    )
  if google_crc32c.value(record) != _CRC_RESIDUE:
    raise errors.UserError(
      f"{where} is damaged (its CRC-32C does not fit its "
      f"{len(record)} bytes); write its folder again."
    )
  offset = _PREFIX.size + header_length
  header = json.loads(record[_PREFIX.size : offset])
  arrays = {}
  for name, dtype, shape in header["arrays"]:
    array = np.ndarray(shape, dtype, buffer=record, offset=offset)
    arrays[name] = array
    offset += array.nbytes + _padding(array.nbytes)
  return arrays, header["meta"]
