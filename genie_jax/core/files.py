"""Atomic writes, JSON files and checksums.

Functions that read or write a complete file also accept an address in a bucket,
see `buckets`.
"""

import hashlib
import json
import math
import os
import pathlib
import uuid
from typing import Any

from genie_jax.core import buckets, errors, schema

PathLike = str | os.PathLike[str]

_BLOCK_BYTES = 1 << 20
# The largest JSON file that is read; manifests have a line for each episode.
_MOST_BYTES = 1 << 30
# Levels of nested JSON; this package writes at most ten.
_DEEPEST = 64
_MOST_DIGITS = 20  # 2^64 has 20 digits.


def temporary_sibling(path: PathLike) -> pathlib.Path:
  """Returns an unused path next to `path`, for writing before a rename.

  It is in the same folder because a rename is atomic only within one file
  system.

  Raises:
    UserError: The path is an address in a bucket, where files cannot be
      renamed.
  """
  local = buckets.disk(path, "Output")
  return local.with_name(f".{local.name}.{uuid.uuid4().hex[:8]}.tmp")


def check_writable(folder: PathLike, flag: str) -> None:
  """Checks, before hours of work, that files can be written into a folder.

  Args:
    folder: The folder, on a disk; it need not exist.
    flag: The flag that names it, for the message.

  Raises:
    UserError: It is a file, or below a file, or the user may not write there.
  """
  folder = pathlib.Path(folder)
  # The root and the working folder exist, so there is always one.
  place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
  if not place.is_dir():
    raise errors.UserError(
      f"{flag} {folder}: {place} is not a folder; give another path."
    )
  if not os.access(place, os.W_OK | os.X_OK):
    raise errors.UserError(
      f"{flag} {folder}: you may not write into {place}; give another path."
    )


def write_atomic(path: PathLike, content: bytes | str) -> None:
  """Writes `content` so that readers see the old file or the complete new one.

  Args:
    path: The file, or its address in a bucket; its folder is created if it is
      missing.
    content: Bytes, or text to be stored as UTF-8.

  Raises:
    OSError: The disk is full or the folder is not writable; an existing file
      at `path` is unchanged.
    UserError: The bucket is not accessible.
  """
  data = content.encode() if isinstance(content, str) else content
  if buckets.is_remote(path):
    buckets.write_bytes(path, data)
    return
  path = pathlib.Path(path)
  temporary = temporary_sibling(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with open(temporary, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: PathLike, value: Any) -> None:
  """Writes `value` as indented JSON, atomically."""
  write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike, form: schema.Form = dict) -> Any:
  """Reads and checks a JSON file, on a disk or in a bucket.

  Args:
    path: The file.
    form: The form of its content, see `schema`; an object by default.

  Raises:
    UserError: The file is missing, not accessible, too large, or not JSON of
      this form.
  """
  return parse_json(_read(os.fspath(path)), os.fspath(path), form)


def read_json_lines(
  path: PathLike, form: schema.Form = dict, *, torn: bool = False
) -> list[Any]:
  """Reads and checks a file of one JSON value per line.

  Args:
    path: The file.
    form: The form of each line.
    torn: Whether lines that are not JSON are left out: a kill may have cut
      them short.

  Raises:
    UserError: As `read_json`; the message names the line.
  """
  found = []
  path = os.fspath(path)
  for number, line in enumerate(_read(path).splitlines(), 1):
    try:
      value = _parse(line)
    except _NOT_JSON as error:
      if torn:
        continue
      raise errors.UserError(
        f"{path}, line {number} is not valid JSON ({_brief(error)}); a kill "
        "may have cut it short, so resume what wrote it, or delete the line."
      ) from error
    where = f"{path}, line {number}"
    schema.check(value, form, where, "delete the line, or write the file again")
    found.append(value)
  return found


def parse_json(
  content: bytes,
  where: str,
  form: schema.Form = dict,
  remedy: str = "write it again",
) -> Any:
  """Returns the value of a JSON text.

  Unlike `json.loads`, it accepts only what this package writes: finite numbers
  of at most 64 bits, and at most `_DEEPEST` levels.

  Args:
    content: The text.
    where: Where it is from, for messages.
    form: The form of the value, see `schema`.
    remedy: How to mend it, for messages.

  Raises:
    UserError: It is not JSON of this form.
  """
  try:
    value = _parse(content)
  except _NOT_JSON as error:
    raise errors.UserError(
      f"{where} is not valid JSON ({_brief(error)}); the file is damaged or "
      f"was edited, so {remedy}."
    ) from error
  schema.check(
    value, form, where, f"the file was edited or is another one, so {remedy}"
  )
  return value


# Includes JSONDecodeError and UnicodeDecodeError.
_NOT_JSON = (ValueError, RecursionError)


def _read(path: str) -> bytes:
  """Returns the content of a file; raises UserError."""
  try:
    if buckets.is_remote(path):
      return buckets.read_bytes(path)
    content = bytearray()
    with open(path, "rb") as file:
      # In blocks, as reading with a limit takes the limit's memory.
      while len(content) <= _MOST_BYTES and (block := file.read(_BLOCK_BYTES)):
        content += block
  except (FileNotFoundError, NotADirectoryError) as error:
    raise errors.UserError(
      f"{path} does not exist; check the path, or run the command that writes "
      "this file."
    ) from error
  except errors.UserError:
    raise
  except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
    raise errors.UserError(
      f"{path!r:.200} cannot be read ({getattr(error, 'strerror', error)}); "
      "give a file that you may read."
    ) from error
  if len(content) > _MOST_BYTES:
    raise errors.UserError(
      f"{path} has more than {_MOST_BYTES >> 20} MB, so it is not a file of "
      "this program; check the path."
    )
  return bytes(content)


def _parse(content: bytes) -> Any:
  """Returns the value of a JSON text; raises one of _NOT_JSON."""
  value = json.loads(
    content.decode(),
    parse_int=_integer,
    parse_float=_finite,
    parse_constant=_refuse,
  )
  level, depth = [value], 0
  while level:
    depth += 1
    if depth > _DEEPEST:
      raise ValueError(f"more than {_DEEPEST} levels")
    level = [
      inner
      for outer in level
      if isinstance(outer, (dict, list))
      for inner in (outer.values() if isinstance(outer, dict) else outer)
    ]
  return value


def _integer(text: str) -> int:
  if len(text) <= _MOST_DIGITS and abs(value := int(text)) < 1 << 64:
    return value
  raise ValueError(f"the number {text[:_MOST_DIGITS]} is too large")


def _finite(text: str) -> float:
  value = float(text)
  return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> Any:
  raise ValueError(f"{text[:_MOST_DIGITS]} is not a finite number")


def _brief(error: Exception) -> str:
  return "too many levels" if isinstance(error, RecursionError) else str(error)


def sha256(path: PathLike) -> str:
  """Returns the SHA-256 of a file, as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()
