"""Run folders on a disk or in a bucket: gs:// and s3:// through etils.epath.

An object of a bucket appears whole or not at all, so what is renamed into
place on a disk is written directly there. Objects cannot be appended to.
"""

import json
import os
from typing import Any

from etils import epath

from genie_jax.core import errors, files

PathLike = str | os.PathLike[str]

# Scheme -> the fsspec driver that serves it and is no dependency of ours.
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}


def folder(path: PathLike) -> epath.Path:
  """Returns a run's folder; absolute where it is on a disk.

  Raises:
    UserError: The scheme is not known.
  """
  text = os.fspath(path)
  scheme = text.partition("://")[0] if "://" in text else ""
  if scheme and scheme not in _DRIVERS:
    raise errors.UserError(
        f"{text} is of no known kind of storage"
        f"{errors.closest(scheme, _DRIVERS)}; give a folder, gs://BUCKET/... "
        "or s3://BUCKET/...")
  return epath.Path(text) if scheme else epath.Path(os.path.abspath(text))


def is_remote(path: PathLike) -> bool:
  """Returns True for a path in a bucket."""
  return "://" in os.fspath(path)


def check_driver(path: PathLike) -> None:
  """Raises unless the library that reads this path is installed."""
  if not is_remote(path):
    return
  try:
    folder(path).exists()
  except ImportError as error:
    scheme = os.fspath(path).partition("://")[0]
    raise errors.UserError(
        f"{os.fspath(path)} needs a driver that is not installed; "
        f"`pip install {_DRIVERS[scheme]}`.") from error


def write(path: PathLike, content: bytes | str) -> None:
  """Writes a whole file: a reader sees the old one or the new one."""
  if not is_remote(path):
    files.write_atomic(path, content)
    return
  path = folder(path)
  if isinstance(content, str):
    path.write_text(content)
  else:
    path.write_bytes(content)


def write_json(path: PathLike, value: Any) -> None:
  """Writes `value` as indented JSON."""
  write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    UserError: The file is missing, or is not JSON.
  """
  if not is_remote(path):
    return files.read_json(path)
  try:
    return json.loads(folder(path).read_text())
  except FileNotFoundError as error:
    raise errors.UserError(
        f"{path} does not exist; check the path.") from error
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise errors.UserError(
        f"{path} is not valid JSON ({error}); write it again.") from error
