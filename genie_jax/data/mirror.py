"""Local copies of data folders in a bucket.

The ArrayRecord reader can only open files on a disk. Copies are stored in the
user's cache in a folder named by the manifest's fingerprint, so data that has
changed is copied again. A file gets its final name only when it is complete, so
several processes on a machine may copy it at the same time; a process that is
killed leaves a `.tmp` file.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

from absl import logging

from genie_jax.core import buckets, errors, files
from genie_jax.data import shards

# One stream of a bucket is slower than a machine's network.
_STREAMS = 8
# Suffixes of files in a model's folder; a bucket may list other files as well.
_MODEL_FILES = (".json", ".safetensors")


def folder(fingerprint: str) -> pathlib.Path:
  """Returns the local folder for the files of a manifest."""
  return buckets.cache_folder("data") / fingerprint[:32]


def copy_shards(
  address: str,
  target: pathlib.Path,
  split: str,
  entries: Sequence[Mapping[str, Any]],
) -> None:
  """Copies the shards of a split that were not copied yet.

  Args:
    address: The data folder in the bucket.
    target: The local folder, from `folder`.
    split: Name of the split.
    entries: The manifest's entries: "file", "bytes" and "sha256" of each shard.

  Raises:
    UserError: A shard is missing or differs from the manifest, the bucket
      cannot be reached, or the disk is full.
  """
  # Names are checked, because they become paths on this machine.
  for name in (entry["file"] for entry in entries):
    if not split.isidentifier() or not shards.SHARD_NAME.fullmatch(name):
      raise errors.UserError(
        f"{address} has a shard {split}/{name}, which is not a valid name; "
        "write the folder again."
      )
  missing = [
    entry
    for entry in entries
    if not _has_size(target / split / entry["file"], entry["bytes"])
  ]
  if not missing:
    return
  size = sum(entry["bytes"] for entry in missing)
  logging.info(
    "Copying split %r of %s, %d files, %.1f MB, to %s.",
    split,
    address,
    len(missing),
    size / 1e6,
    target,
  )
  with _room(address, target, size):
    (target / split).mkdir(parents=True, exist_ok=True)

    def copy(entry: Mapping[str, Any]) -> None:
      where = f"{split}/{entry['file']}"
      _copy(f"{address}/{where}", target / where, entry)

    with futures.ThreadPoolExecutor(_STREAMS) as pool:
      list(pool.map(copy, missing))  # `list` re-raises errors of `copy`.


def copy_folder(address: str, target: pathlib.Path) -> None:
  """Copies a saved model's folder unless it was copied before.

  Callers compare the model's fingerprint with that in the manifest.

  Raises:
    UserError: The folder does not exist, the bucket cannot be reached, or the
      disk is full.
  """
  if target.is_dir():
    return
  with _room(address, target, 0):
    temporary = files.temporary_sibling(target)
    try:
      found = [
        name for name in buckets.names(address) if name.endswith(_MODEL_FILES)
      ]
      temporary.mkdir(parents=True)
      for name in found:
        with open(temporary / name, "wb") as file:
          for block in buckets.blocks(f"{address}/{name}"):
            file.write(block)
      if not found:
        raise FileNotFoundError(address)
      logging.info("Copied %s to %s.", address, target)
      os.replace(temporary, target)
    except FileNotFoundError as error:
      raise _missing(address) from error
    except OSError as error:
      # Another process has already made an equal copy.
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _copy(address: str, path: pathlib.Path, entry: Mapping[str, Any]) -> None:
  """Copies a shard under a temporary name, checks it, and renames it."""
  temporary, digest, size = files.temporary_sibling(path), hashlib.sha256(), 0
  try:
    with open(temporary, "wb") as file:
      for block in buckets.blocks(address):
        digest.update(block)
        size += len(block)
        if size > entry["bytes"]:
          break
        file.write(block)
    if (size, digest.hexdigest()) != (entry["bytes"], entry["sha256"]):
      raise errors.UserError(
        f"{address} is not the shard that its manifest describes (its size "
        "or SHA-256 differs); copy the folder to the bucket again."
      )
    os.replace(temporary, path)
  except FileNotFoundError as error:
    raise _missing(address) from error
  finally:
    temporary.unlink(missing_ok=True)


def _missing(address: str) -> errors.UserError:
  return errors.UserError(
    f"{address} does not exist; copy the whole folder to the bucket again."
  )


def _has_size(path: pathlib.Path, size: int) -> bool:
  return path.is_file() and path.stat().st_size == size


@contextlib.contextmanager
def _room(address: str, target: pathlib.Path, size: int) -> Iterator[None]:
  """Raises a one-line UserError if the disk is full or not writable."""
  parent = next(path for path in target.absolute().parents if path.is_dir())
  free = shutil.disk_usage(parent).free
  if size > free:
    raise errors.UserError(
      f"{address} needs {size / 1e6:.0f} MB and {parent} has "
      f"{free / 1e6:.0f} MB left; free some space, or set XDG_CACHE_HOME to "
      "a folder on another disk."
    )
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f"{address} cannot be copied to {target} ({error.strerror}); free some "
      "space, or set XDG_CACHE_HOME to a folder on another disk."
    ) from error
