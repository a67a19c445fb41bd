"""Writes ArrayRecord files atomically, and reads them with verification."""

import collections
import errno
import os
import pathlib
import re
import threading
import types
import weakref
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # Binary.
)

from genie_jax.core import errors, files
from genie_jax.data import records

# One record per group, so that a random read decompresses only that record
# (with 16 records per group it is 13 times slower). zstd:3 compresses real game
# frames to a twelfth.
FRAMES_OPTIONS = "group_size:1,zstd:3"
# Tokens hardly compress, and are read three times faster uncompressed.
TOKENS_OPTIONS = "group_size:1,uncompressed"
# Frames that a codec has compressed cannot be compressed again.
CODED_OPTIONS = TOKENS_OPTIONS

# Without read-ahead, because windows are read in random order.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 1 << 15
# Shards that a process keeps open; most systems allow 1,024 files.
_MOST_OPEN = 256
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

SHARD_NAME = re.compile(r"\d{5}-of-\d{5}\.array_record")


def shard_name(index: int, count: int) -> str:
  """Returns the file name of shard `index` of `count`."""
  return f"{index:05d}-of-{count:05d}.array_record"


def disk_error(error: RuntimeError, path: files.PathLike) -> OSError:
  """Converts ArrayRecord's error about `path` to an OSError."""
  for code in _DISK_ERRORS:
    if os.strerror(code) in str(error):
      return OSError(
        code,
        f"{os.strerror(code)} while writing; incomplete files were removed; "
        "free some space and run the same command again",
        str(path),
      )
  return OSError(errno.EIO, f"writing failed ({error})", str(path))


class ShardWriter:
  """Writes one ArrayRecord file; used as a context manager.

  The file gets its final name only when it is complete and on disk: a writer
  that was killed or failed leaves at most a hidden `*.tmp` file.

  Attributes:
    entry: After a clean exit, the shard's entry for the manifest: "file",
      "sha256", "bytes" and "records".
  """

  def __init__(self, path: files.PathLike, options: str = FRAMES_OPTIONS):
    self._path = pathlib.Path(path)
    self._options = options
    self._records = 0
    self.entry: dict[str, Any] = {}

  def __enter__(self) -> Self:
    self._temporary = files.temporary_sibling(self._path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._writer = array_record_module.ArrayRecordWriter(
      str(self._temporary), self._options
    )
    return self

  def write(self, record: bytes) -> None:
    """Appends one record.

    Raises:
      OSError: The disk is full.
    """
    try:
      self._writer.write(record)
    except RuntimeError as error:
      raise disk_error(error, self._path) from error
    self._records += 1

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    try:
      try:
        self._writer.close()
      except RuntimeError as failure:
        if kind is None:
          raise disk_error(failure, self._path) from failure
        return  # The user must see the first error, not this one.
      if kind is None:
        self._finish()
    finally:
      self._temporary.unlink(missing_ok=True)

  def _finish(self) -> None:
    descriptor = os.open(self._temporary, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)
    self.entry = {
      "file": self._path.name,
      "sha256": files.sha256(self._temporary),
      "bytes": self._temporary.stat().st_size,
      "records": self._records,
    }
    os.replace(self._temporary, self._path)


class _OpenReaders:
  """Closes the shards that were not read for longest."""

  def __init__(self):
    self._lock = threading.Lock()
    self._readers: collections.OrderedDict[
      int, weakref.ReferenceType[ShardReader]
    ] = collections.OrderedDict()

  def used(self, reader: "ShardReader") -> None:
    """Notes that a shard is read now; call it when the shard is opened too."""
    with self._lock:
      self._readers[id(reader)] = weakref.ref(reader)
      self._readers.move_to_end(id(reader))
      while len(self._readers) > _MOST_OPEN:
        _, oldest = self._readers.popitem(last=False)
        if (found := oldest()) is not None:
          # A thread that reads now has its own reference.
          found.forget()


_open_readers = _OpenReaders()


class ShardReader:
  """Random access to the records of one shard.

  The file is opened at the first read, so that a reader can be sent to a
  worker process. It is closed when many others were read since, and opened
  again at the next read.

  Args:
    path: The shard.
    entry: The shard's entry in the manifest: "bytes" and "records" are checked
      when the file is opened ("sha256" only by `genie data inspect`).
  """

  def __init__(self, path: files.PathLike, entry: dict[str, Any]):
    self.path = pathlib.Path(path)
    self._bytes = entry["bytes"]
    self._records = entry["records"]
    self._reader = None

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_reader": None}

  def __len__(self) -> int:
    return self._records

  def check_size(self) -> None:
    """Compares the file's size with the manifest, which is very fast.

    Raises:
      UserError: The shard is missing or has another size.
    """
    try:
      size = self.path.stat().st_size
    except FileNotFoundError as error:
      raise errors.UserError(
        f"{self.path} is missing though the manifest lists it; copy the "
        "folder again or write it again."
      ) from error
    if size != self._bytes:
      raise errors.UserError(
        f"{self.path} has {size} bytes but its manifest says "
        f"{self._bytes}: it was cut short or replaced; copy or write the "
        "folder again."
      )

  def open(self) -> array_record_module.ArrayRecordReader:
    """Opens the file and checks it against the manifest.

    Raises:
      UserError: The shard is missing, was cut short, or is another file.
    """
    reader = self._reader
    if reader is not None:
      _open_readers.used(self)
      return reader
    self.check_size()
    reader = array_record_module.ArrayRecordReader(
      str(self.path),
      _READER_OPTIONS,
      file_reader_buffer_size=_READER_BUFFER_BYTES,
    )
    # A damaged file opens without an exception and then has no records.
    if not reader.ok():
      self._check_limit()
    if not reader.ok() or reader.num_records() != self._records:
      raise errors.UserError(
        f"{self.path} is damaged: {reader.num_records()} records can be "
        f"read where its manifest says {self._records}; copy or write the "
        "folder again."
      )
    self._reader = reader
    _open_readers.used(self)
    return reader

  def _check_limit(self) -> None:
    """Raises UserError if no more files can be opened."""
    try:
      with open(self.path, "rb"):
        pass
    except OSError as error:
      if error.errno in (errno.EMFILE, errno.ENFILE):
        raise errors.UserError(
          f"{self.path} cannot be opened, because too many files are open; "
          "raise the limit with `ulimit -n` and run the command again."
        ) from error

  def forget(self) -> None:
    """Lets the file be closed; the next read opens it again."""
    self._reader = None

  def read(
    self,
    positions: Sequence[int],
  ) -> list[tuple[dict[str, np.ndarray], dict[str, Any]]]:
    """Returns the (arrays, meta) of the records at `positions`.

    Raises:
      UserError: A record is damaged.
    """
    reader = self.open()
    try:
      found = reader.read(positions)
    except RuntimeError as error:
      raise errors.UserError(
        f"{self.path} is damaged in record {positions[0]} or just after it "
        f"({str(error).splitlines()[0][:120]}); copy or write the folder "
        "again."
      ) from error
    return [
      records.unpack(record, f"{self.path} record {position}")
      for position, record in zip(positions, found, strict=True)
    ]
