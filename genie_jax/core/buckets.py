"""Files in buckets (gs:// and s3://), through etils.epath and fsspec.

An object in a bucket becomes visible only when it is complete. On a disk a file
is therefore written under a temporary name and renamed; in a bucket it is
written directly.
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

# Scheme -> its fsspec driver, which the user installs when it is needed.
_DRIVERS = {"gs": "gcsfs", "s3": "s3fs"}
# Read in large blocks: each read sends a request that takes tens of
# milliseconds.
_BLOCK_BYTES = 1 << 23


def is_remote(path: PathLike) -> bool:
  """Returns True for an address in a bucket, False for a path on a disk."""
  return "://" in os.fspath(path)


def path(given: PathLike) -> "pathlib.Path | epath.Path":
  """Returns a path object that reads and writes on a disk or in a bucket.

  Raises:
    UserError: The address has an unknown scheme.
  """
  text = os.fspath(given)
  if not is_remote(text):
    return pathlib.Path(text)
  scheme = text.partition("://")[0]
  if scheme not in _DRIVERS:
    raise errors.UserError(
      f"{text} has the unknown scheme {scheme!r}"
      f"{errors.closest(scheme, _DRIVERS)}; give a folder, gs://BUCKET/... "
      "or s3://BUCKET/..."
    )
  # Imported here because it is slow to import and only buckets need it.
  from etils import epath

  return epath.Path(text)


def run_folder(given: PathLike) -> "epath.Path":
  """Returns a run's folder as an epath; absolute if it is on a disk.

  Raises:
    UserError: The address has an unknown scheme.
  """
  from etils import epath

  if is_remote(given):
    return epath.Path(path(given))
  return epath.Path(os.path.abspath(os.fspath(given)))


def reached(given: PathLike) -> "pathlib.Path | epath.Path":
  """Returns `path(given)` after checking that its bucket is accessible.

  The check reports a missing driver or a missing permission in one clear line
  before other code uses the path.

  Raises:
    UserError: The driver is missing, access is denied, or the address has an
      unknown scheme.
  """
  if is_remote(given):
    exists(given)
  return path(given)


def disk(given: PathLike, flag: str) -> pathlib.Path:
  """Returns a path after checking that it is on a disk.

  Args:
    given: The path that the user gave.
    flag: The flag that holds the path, for the message.

  Raises:
    UserError: The path is an address in a bucket. Writing to it as to a disk
      would create a local folder named "gs:".
  """
  text = os.fspath(given)
  first = (*pathlib.PurePath(text).parts, "")[0]
  if "://" in text or (first[:-1] in _DRIVERS and first.endswith(":")):
    raise errors.UserError(
      f"{flag} {text} is an address in a bucket, but this output can be "
      "written to a disk only; give a local folder, and copy it to the bucket "
      "when it is complete."
    )
  return pathlib.Path(text)


def exists(address: PathLike) -> bool:
  """Returns whether a file exists at an address."""
  with _one_line(address):
    return path(address).exists()


def read_bytes(address: PathLike) -> bytes:
  """Returns the content of a file.

  Raises:
    UserError: The driver is missing, or access is denied.
    FileNotFoundError: The file does not exist.
  """
  return b"".join(blocks(address))


def blocks(address: PathLike) -> Iterator[bytes]:
  """Yields a file's bytes in large blocks; raises like `read_bytes`."""
  with _one_line(address), path(address).open("rb") as file:
    while block := file.read(_BLOCK_BYTES):
      yield block


def write_bytes(address: PathLike, content: bytes) -> None:
  """Writes a file.

  Raises:
    UserError: The driver is missing, or access is denied.
  """
  with _one_line(address):
    path(address).write_bytes(content)


def names(address: PathLike) -> list[str]:
  """Returns the sorted names in a folder; raises like `read_bytes`."""
  with _one_line(address):
    return sorted(entry.name for entry in path(address).iterdir())


def cache_folder(
  kind: str, environ: Mapping[str, str] | None = None
) -> pathlib.Path:
  """Returns a folder in the user's cache, for copies of remote files.

  Args:
    kind: Name of the folder, for example "data".
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax" / kind


@contextlib.contextmanager
def _one_line(address: PathLike) -> Iterator[None]:
  """Turns errors of drivers into UserErrors of one line.

  FileNotFoundError passes unchanged.
  """
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
    raise  # Only the caller knows which file was expected.
  except (OSError, ValueError) as error:
    if isinstance(error, errors.UserError):
      raise
    why = " ".join(str(error).split())[:120] or type(error).__name__
    raise errors.UserError(
      f"{text} is not accessible ({why}); check the address, the network "
      "and this machine's access to the bucket."
    ) from error
