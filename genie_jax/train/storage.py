"""Run folders on a disk or in a bucket: gs:// and s3:// through etils.epath.

Objects of a bucket cannot be appended to.
"""

import os
from typing import Any

from etils import epath

from genie_jax.core import buckets, files

PathLike = files.PathLike


def folder(path: PathLike) -> epath.Path:
  """Returns a run's folder; absolute where it is on a disk.

  Raises:
    UserError: The scheme is not known.
  """
  if is_remote(path):
    return buckets.path(path)
  return epath.Path(os.path.abspath(os.fspath(path)))


def is_remote(path: PathLike) -> bool:
  """Returns True for a path in a bucket."""
  return buckets.is_remote(path)


def check_driver(path: PathLike) -> None:
  """Raises unless the library that reads this path is installed."""
  buckets.reached(path)


def write(path: PathLike, content: bytes | str) -> None:
  """Writes a whole file: a reader sees the old one or the new one."""
  files.write_atomic(path, content)


def write_json(path: PathLike, value: Any) -> None:
  """Writes `value` as indented JSON."""
  files.write_json(path, value)


def read_json(path: PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: The file is missing, or is not JSON.
  """
  return files.read_json(path)
