"""Folders of shards whose writing can be interrupted and resumed.

    writer = resumable.FolderWriter(out, manifest, {"train": range(200)}, 50)
    with writer:
      for shard in writer.missing:
        with resumable.ShardWriter(writer.folder, shard) as shard_writer:
          ...  # Make and write the records of `shard.items`.
      manifest = writer.finish()

Until it is finished, a folder has no manifest and holds `.progress/`:

  request.json          the manifest to be, without its splits
  SPLIT/SHARD.json      a receipt: the manifest's entry of a shard that is whole
  lock                  locked by the process that writes, and names it

A call with the same request keeps each shard whose bytes are those of its
receipt and writes the others. The manifest, written last, replaces `.progress`.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shutil
import socket
import types
from collections.abc import Iterator, Mapping
from typing import Any, Self, TextIO

from genie_jax.core import buckets, config, errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards as shards_lib

PROGRESS = ".progress"

Entry = dict[str, Any]  # A shard's part of the manifest.

# Fields of a request whose group a user need not read.
_OPTIONS = "made_by.options."
_MOST_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file to be written.

  Attributes:
    split: Its split.
    name: Its file name.
    items: What it is made from, for example levels or windows.
  """

  split: str
  name: str
  items: range


def divide(split: str, items: range, per_shard: int) -> list[Shard]:
  """Returns the shards of a split: fixed ranges of its items, in order."""
  count = -(-len(items) // per_shard)
  return [
    Shard(
      split,
      shards_lib.shard_name(index, count),
      items[index * per_shard : (index + 1) * per_shard],
    )
    for index in range(count)
  ]


class ShardWriter(shards_lib.ShardWriter):
  """Writes one shard of a folder and, once it is whole, its receipt.

  Different shards may be written by different processes.

  Attributes:
    episodes: The caller adds the shard's rows, see `manifest.Manifest`.
    fields: The caller adds further fields of the shard's entry, JSON values.
  """

  def __init__(
    self,
    folder: files.PathLike,
    shard: Shard,
    options: str = shards_lib.FRAMES_OPTIONS,
  ):
    """Prepares to write.

    Args:
      folder: `FolderWriter.folder`.
      shard: One of `FolderWriter.missing`.
      options: Of the ArrayRecord file.
    """
    folder = pathlib.Path(folder)
    super().__init__(folder / shard.split / shard.name, options)
    self._receipt = receipt_path(folder, shard)
    self.episodes: list[list[int]] = []
    self.fields: Entry = {}

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    super().__exit__(kind, error, trace)
    if kind is None:
      self.entry |= {"episodes": self.episodes, **self.fields}
      files.write_json(self._receipt, self.entry)


class FolderWriter:
  """Writes a folder of shards, or finishes one; used as a context manager.

  It holds the folder's lock. Whatever ends it before `finish`, also a kill,
  leaves the finished shards to the next call.

  Attributes:
    folder: Where.
    missing: Shards that this call must write.
    kept: Shards that earlier calls wrote, and their entries.
  """

  def __init__(
    self,
    out: files.PathLike,
    manifest: manifest_lib.Manifest,
    splits: Mapping[str, range],
    per_shard: int,
  ):
    """Compares a folder with what is asked for, and changes nothing.

    Args:
      out: The folder; made when missing.
      manifest: The manifest to be, without splits. Equal ones must lead to
        equal bytes.
      splits: The items of each split, in the order of the manifest.
      per_shard: Most items of one shard.

    Raises:
      UserError: The folder was begun with another manifest, holds other
        things, or is in a bucket.
    """
    self.folder = buckets.disk(out, "--out")
    self.missing: list[Shard] = []
    self.kept: dict[Shard, Entry] = {}
    self._manifest = manifest
    self._splits = {
      split: divide(split, items, per_shard) for split, items in splits.items()
    }
    self._lock: TextIO | None = None
    self._check_request()

  def __enter__(self) -> Self:
    self._lock = _take_lock(self.folder)
    try:
      self._begin()
    except BaseException:
      self._lock.close()
      raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    assert self._lock is not None  # Taken when the block was entered.
    self._lock.close()

  def entries(self) -> dict[Shard, Entry]:
    """Returns the entries of all shards, once all have receipts."""
    return {
      shard: files.read_json(
        receipt_path(self.folder, shard), manifest_lib.ENTRY
      )
      for shards in self._splits.values()
      for shard in shards
    }

  def finish(
    self, entries: Mapping[Shard, Entry] | None = None
  ) -> manifest_lib.Manifest:
    """Writes and returns the manifest, once all shards have receipts.

    Args:
      entries: The entries if the caller changes some, for example leaves out
        episodes; those of `entries` by default.
    """
    found = self.entries() if entries is None else entries
    summaries = {}
    for split, shards in self._splits.items():
      stated = [found[shard] for shard in shards]
      frames = sum(row[3] for entry in stated for row in entry["episodes"])
      summaries[split] = manifest_lib.split_summary(stated, frames)
    manifest = dataclasses.replace(
      self._manifest, splits=summaries, folder=self.folder
    )
    manifest.write(self.folder)
    # A process that asks for the lock just now may keep the folder from being
    # removed; it will find the manifest, and remove it.
    shutil.rmtree(self.folder / PROGRESS, ignore_errors=True)
    return manifest

  def _begin(self) -> None:
    """Sorts out what earlier calls left; the lock is held."""
    # Again: another process may have begun or finished the folder meanwhile.
    self._check_request()
    entries = self._earlier_entries()
    files.write_json(self.folder / PROGRESS / "request.json", self._request())
    for pattern in (".*.tmp", "*/.*.tmp"):  # Of a killed writer.
      for left in self.folder.glob(pattern):
        left.unlink()
    self.missing, self.kept = [], {}
    for shard in (s for shards in self._splits.values() for s in shards):
      entry = entries.get((shard.split, shard.name))
      path = self.folder / shard.split / shard.name
      if entry and path.is_file() and files.sha256(path) == entry["sha256"]:
        files.write_json(receipt_path(self.folder, shard), entry)
        self.kept[shard] = entry
      else:
        receipt_path(self.folder, shard).unlink(missing_ok=True)
        self.missing.append(shard)
    if self.missing:
      # Until all shards are whole again the folder must not look finished.
      (self.folder / manifest_lib.FILE_NAME).unlink(missing_ok=True)

  def _request(self) -> dict[str, Any]:
    return self._manifest.to_dict()

  def _check_request(self) -> None:
    """Raises UserError where the folder is not one that this call may write."""
    found, wanted = self._earlier_request(), self._request()
    if found is None:
      return
    old, new = config.dotted(found), config.dotted(wanted)
    different = {}
    for name in sorted(old.keys() | new.keys()):
      if old.get(name) != new.get(name):
        # By its short name, a value that stands in two places is shown once.
        different[name.removeprefix(_OPTIONS)] = (
          f"{_brief(old.get(name))} there, {_brief(new.get(name))} now"
        )
    if different:
      shown = list(different.items())[:_MOST_SHOWN]
      raise errors.UserError(
        f"--out {self.folder} was begun with other settings "
        f"({'; '.join(f'{name} {values}' for name, values in shown)}); give "
        "the same ones to resume it, or another folder."
      )

  def _earlier_request(self) -> dict[str, Any] | None:
    """Returns what earlier calls were asked for, None where there were none.

    Raises:
      UserError: The folder holds other things.
    """
    begun = self.folder / PROGRESS / "request.json"
    if manifest_lib.exists(self.folder):
      manifest = manifest_lib.Manifest.read(self.folder)
      return dataclasses.replace(manifest, splits={}).to_dict()
    if begun.exists():
      found = files.read_json(begun)
      # Collectors once stated only the part of the manifest that they made.
      if "schema_version" not in found:
        return {**self._request(), "made_by": found}
      return found
    files.check_writable(self.folder, "--out")
    if self.folder.is_dir() and any(
      path.name != PROGRESS for path in self.folder.iterdir()
    ):
      raise errors.UserError(
        f"--out {self.folder} is not empty and holds no "
        f"{self._manifest.kind}; give a new or empty folder."
      )
    return None

  def _earlier_entries(self) -> dict[tuple[str, str], Entry]:
    """Returns what earlier calls stated of shards, by split and name."""
    entries = {}
    if manifest_lib.exists(self.folder):
      manifest = manifest_lib.Manifest.read(self.folder)
      entries = {
        (split, entry["file"]): entry
        for split, summary in manifest.splits.items()
        for entry in summary["shards"]
      }
    for shard in (s for shards in self._splits.values() for s in shards):
      for path in _receipts(self.folder, shard):
        if path.exists():
          entries[shard.split, shard.name] = files.read_json(
            path, manifest_lib.ENTRY
          )
    return entries


def receipt_path(folder: pathlib.Path, shard: Shard) -> pathlib.Path:
  """Returns where the receipt of a shard is while its folder is written."""
  return folder / PROGRESS / shard.split / f"{shard.name}.json"


def _receipts(folder: pathlib.Path, shard: Shard) -> Iterator[pathlib.Path]:
  """Yields where a shard's receipt may be, the present place last."""
  # Where collectors once kept them.
  yield folder / PROGRESS / f"{shard.split}-{shard.name}.json"
  yield receipt_path(folder, shard)


def _take_lock(folder: pathlib.Path) -> TextIO:
  """Returns the open and locked lock file; closing it lets the lock go.

  Raises:
    UserError: Another process holds the lock.
  """
  path = folder / PROGRESS / "lock"
  while True:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      try:
        file = stack.enter_context(open(path, "a+", encoding="utf-8"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A writer that has just finished removed the file; it locks nothing.
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
          continue
      except FileNotFoundError:
        continue
      except BlockingIOError as error:
        file.seek(0)
        owner = file.readline().strip() or "Another process"
        raise errors.UserError(
          f"{owner} is writing into {folder}; wait for it or give another "
          "folder."
        ) from error
      file.truncate(0)
      file.write(f"Process {os.getpid()} on {socket.gethostname()}\n")
      file.flush()
      stack.pop_all()
      return file


def _brief(value: Any) -> str:
  text = str(value)
  return f"{text[:12]}..." if len(text) > 32 else text
