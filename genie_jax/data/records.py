"""The record format: named arrays and metadata, with a checksum.

Layout, all numbers little-endian:

  4 bytes   magic, b"GNIE"
  2 bytes   schema version        2 bytes   zero
  4 bytes   length of the header
  header    JSON {"arrays": [[name, dtype, shape], ...], "meta": {...}},
            padded with spaces so that the arrays start on 8 bytes
  arrays    raw bytes of each array in turn, each padded to 8 bytes
  4 bytes   CRC-32C of all bytes before it

The checksum is last so that a reader can verify it without copying the record:
the CRC-32C of any message followed by its own CRC-32C is a constant. The format
does not use pickle, so reading a record never executes code.
"""

import json
import struct
from typing import Any

import google_crc32c
import numpy as np

from genie_jax.core import errors, files, schema

SCHEMA_VERSION = 1

_MAGIC = b"GNIE"
_PREFIX = struct.Struct("<4sHHI")
_CRC = struct.Struct("<I")
# CRC-32C of a message followed by its own little-endian CRC-32C.
_CRC_RESIDUE = 0x48674BC7
# The kinds of dtypes in a record: bool, signed, unsigned, float.
_DTYPE_KINDS = "biuf"
_HEADER = {
  "arrays": [
    (str, schema.Text(r"[<|][biuf][1248]", "a dtype"), [schema.NATURAL])
  ],
  "meta": dict,
}


def _padding(length: int) -> int:
  return -length % 8


def pack(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> bytes:
  """Returns one record as bytes; equal input gives equal bytes.

  Args:
    arrays: Named arrays of bools, integers or floats, of any shape. Clips
      have "frames" [t, H, W, C] uint8, "actions" [t] int32 (the action taken
      at each frame) and "first" [t] bool (an episode begins at this frame).
    meta: JSON values; clips and tokens have fps, source and start.

  Raises:
    ValueError: An array contains objects or text.
  """
  table, pieces = [], []
  for name, array in arrays.items():
    array = np.asarray(array, order="C")
    if array.dtype.kind not in _DTYPE_KINDS:
      raise ValueError(
        f"Array {name!r} has dtype {array.dtype}; records can only contain "
        "bools, integers and floats."
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
  """Returns the arrays and the metadata of one record.

  Args:
    record: Bytes from `pack`.
    where: Name of the record in error messages.

  Returns:
    Read-only arrays that are views of `record`, and the meta dictionary.

  Raises:
    UserError: The bytes are not a record, have another schema version, or are
      damaged.
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
  header = files.parse_json(record[_PREFIX.size : offset], where, _HEADER)
  arrays = {}
  for name, dtype, shape in header["arrays"]:
    try:
      array = np.ndarray(shape, dtype, buffer=record, offset=offset)
    except (TypeError, ValueError) as error:
      raise errors.UserError(
        f"{where} is too short for its array {name} of shape {shape}; write "
        "its folder again."
      ) from error
    arrays[name] = array
    offset += array.nbytes + _padding(array.nbytes)
  return arrays, header["meta"]
