"""Addresses in a bucket, gs:// and s3://, through etils.epath and fsspec.

An object of a bucket appears whole or not at all, so what is renamed into
place on a disk is written directly there.
"""

import contextlib
import os
import pathlib
import typing
from collections.abc import Iterator, Mapping

from genie_jax.core import errors

if typing.TYPE_CHECKING:
  from etils import epath

PathLike = str | os.PathLike[str]

# Scheme -> the fsspec driver that serves it and is no dependency of ours.
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}
# Each read of a driver is a request, which takes tens of milliseconds.
_BLOCK_BYTES = 1 << 23


def is_remote(path: PathLike) -> bool:
  """Returns True for an address, False for a path on a disk."""
  return "://" in os.fspath(path)


def path(given: PathLike) -> "pathlib.Path | epath.Path":
  """Returns a path that can be read and written, wherever it is.

  Raises:
    UserError: It is an address of an unknown scheme.
  """
  text = os.fspath(given)
  if not is_remote(text):
    return pathlib.Path(text)
  scheme = text.partition("://")[0]
  if scheme not in _DRIVERS:
    raise errors.UserError(
      f"{text} is of no known kind of storage"
      f"{errors.closest(scheme, _DRIVERS)}; give a folder, gs://BUCKET/... "
      "or s3://BUCKET/..."
    )
  # Late: slow to import, and only for buckets.
  from etils import epath

  return epath.Path(text)


def run_folder(given: PathLike) -> "epath.Path":
  """Returns a run's folder as an epath; absolute where it is on a disk.

  Raises:
    UserError: It is an address of an unknown scheme.
  """
  from etils import epath

  if is_remote(given):
    return epath.Path(path(given))
  return epath.Path(os.path.abspath(os.fspath(given)))


def reached(given: PathLike) -> "pathlib.Path | epath.Path":
  """Returns `path(given)`; a bucket is asked once, so that errors are clear.

  Raises:
    UserError: There is no driver, or no access; or as `path`.
  """
  if is_remote(given):
    exists(given)
  return path(given)


def disk(given: PathLike, flag: str) -> pathlib.Path:
  """Returns a path that must be on a disk.

  Args:
    given: What the user gave.
    flag: By which flag, for the message.

  Raises:
    UserError: It is an address, of which a local folder "gs:" would be made.
  """
  text = os.fspath(given)
  first = (*pathlib.PurePath(text).parts, "")[0]
  if "://" in text or (first[:-1] in _DRIVERS and first.endswith(":")):
    raise errors.UserError(
      f"{flag} {text} is an address, and this can be written to a disk "
      "only; give a folder on one, and copy it to the bucket when it is "
      "whole."
    )
  return pathlib.Path(text)


def exists(address: PathLike) -> bool:
  """Returns whether there is a file at an address."""
  with _one_line(address):
    return path(address).exists()


def read_bytes(address: PathLike) -> bytes:
  """Returns a whole file.

  Raises:
    UserError: There is no driver, or no access.
    FileNotFoundError: There is no such file.
  """
  return b"".join(blocks(address))


def blocks(address: PathLike) -> Iterator[bytes]:
  """Yields a file's bytes in large pieces; raises as `read_bytes` does."""
  with _one_line(address), path(address).open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      yield block


def write_bytes(address: PathLike, content: bytes) -> None:
  """Writes a whole file.

  Raises:
    UserError: There is no driver, or no access.
  """
  with _one_line(address):
    path(address).write_bytes(content)


def names(address: PathLike) -> list[str]:
  """Returns the names in a folder, in order; raises as `read_bytes` does."""
  with _one_line(address):
    return sorted(entry.name for entry in path(address).iterdir())


def cache_folder(
  kind: str, environ: Mapping[str, str] | None = None
) -> pathlib.Path:
  """Returns where copies of one kind are kept.

  Args:
    kind: Name of the folder in the user's cache.
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax" / kind


@contextlib.contextmanager
def _one_line(address: PathLike) -> Iterator[None]:
  """Turns what drivers raise, but for a missing file, into one line."""
  text = os.fspath(address)
  try:
    yield
  except ImportError as error:
    scheme = text.partition("://")[0]
    raise errors.UserError(
      f"{text} needs a driver that is not installed; "
      f"`pip install {_DRIVERS[scheme]}`."
    ) from error
  except FileNotFoundError:
    raise  # The caller knows what should have been there.
  except (OSError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise
    why = " ".join(str(error).split())[:120] or type(error).__name__
    raise errors.UserError(
      f"{text} cannot be reached ({why}); check the address, the network "
      "and this machine's access to the bucket."
    ) from error
