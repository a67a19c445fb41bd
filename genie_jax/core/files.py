"""Atomic writes, JSON files and checksums.

Functions that read or write a complete file also accept an address in a bucket,
see `buckets`.
"""

import hashlib
import json
import os
import pathlib
import uuid
from typing import Any

from genie_jax.core import buckets, errors

PathLike = str | os.PathLike[str]

_BLOCK_BYTES = 1 << 20


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


def read_json(path: PathLike) -> Any:
  """Reads a JSON file, on a disk or in a bucket.

  Raises:
    UserError: The file is missing, not accessible, or not JSON.
  """
  path = os.fspath(path)
  try:
    if buckets.is_remote(path):
      return json.loads(buckets.read_bytes(path).decode())
    return json.loads(pathlib.Path(path).read_text())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise errors.UserError(
      f"{path} does not exist; check the path, or run the command that writes "
      "this file."
    ) from error
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"{path} is not valid JSON ({error}); the file is damaged or was edited, "
      "so write it again."
    ) from error


def sha256(path: PathLike) -> str:
  """Returns the SHA-256 of a file, as 64 hexadecimal digits."""
  digest = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(_BLOCK_BYTES):
      digest.update(block)
  return digest.hexdigest()
