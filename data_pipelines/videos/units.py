"""Cuts one unit of work: the sources of one shard.

A source's clips are kept in a temporary file until its child has ended well, so
that a film whose decoder crashes leaves nothing in the shard.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, BinaryIO

from data_pipelines.videos import contained, tables
from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources as sources_lib
from genie_jax.core import config
from genie_jax.data import resumable, shards

CUT = "data_pipelines.videos.cut:job"
NOW = "now"  # Folder in `.progress` that says how far each unit is.
_PROGRESS_SECONDS = 1.0


def job(
  folder: pathlib.Path,
  shard: resumable.Shard,
  rows: Sequence[sources_lib.Source],
  options: options_lib.Options,
  limits: options_lib.Limits,
  action_names: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns a unit as JSON values.

  Args:
    folder: Of the shards.
    shard: The one to write.
    rows: Its sources.
    options: How films are cut.
    limits: Of the children.
    action_names: Labels of the actions by number, if they are stored.
  """
  return {
    "function": CUT,
    "folder": str(folder),
    "split": shard.split,
    "name": shard.name,
    "sources": [dataclasses.asdict(row) for row in rows],
    "options": options.to_dict(),
    "limits": dataclasses.asdict(limits),
    "action_names": list(action_names),
  }


def run(unit: dict[str, Any], nursery: contained.Nursery) -> None:
  """Writes a unit's shard, table and receipt; runs in any process.

  Running it twice, also at the same time, gives the same files.

  Raises:
    OSError: The disk is full.
  """
  folder = pathlib.Path(unit["folder"])
  options = options_lib.Options(**unit["options"])
  limits = options_lib.Limits(**unit["limits"])
  shard = resumable.Shard(unit["split"], unit["name"], range(0))
  progress = _Progress(folder, shard)
  record_options = (
    shards.FRAMES_OPTIONS if options.codec == "zstd" else shards.TOKENS_OPTIONS
  )
  rows, outcomes = [], []
  with resumable.ShardWriter(folder, shard, record_options) as writer:
    count = 0
    for fields in unit["sources"]:
      source = sources_lib.Source(**fields)
      with tempfile.TemporaryFile(dir=folder / shard.split) as spool:
        try:
          clips, end = _cut(
            source,
            options,
            limits,
            unit["function"],
            unit["action_names"],
            nursery,
            spool,
            progress,
          )
        except contained.Failure as error:
          why = sources_lib.printable(str(error))
          outcomes.append(_outcome(source, sources_lib.BAD, why))
          progress.done(source)
          continue
        spool.seek(0)
        for clip in clips:
          row = _row(clip, source, options, shard.split)
          row["thumbs"], row["picture"], *packed = [
            spool.read(size) for size in clip["sizes"]
          ]
          if packed:
            row["record"], row["kept"] = count, True
            row["bytes"] = sum(map(len, packed))
            for content in packed:
              writer.write(content)
            writer.episodes.append([source.source, count, 0, row["frames"]])
            count += len(packed)
          rows.append(row)
      outcomes.append(_outcome(source, sources_lib.GOOD, end["ended"], end))
      progress.done(source)
    table = tables.make_clips(rows, outcomes)
    # Before the receipt, which states what it is.
    tables.write(tables.clips_path(folder, shard.split, shard.name), table)
    writer.fields["table"] = table_digest(table)
  progress.remove()


def table_digest(table: Any) -> str:
  """Returns a digest of a table of clips that does not see duplicates."""
  return hashlib.sha256(tables.to_bytes(tables.as_cut(table))).hexdigest()


def _cut(
  source: sources_lib.Source,
  options: options_lib.Options,
  limits: options_lib.Limits,
  function: str,
  action_names: Sequence[str],
  nursery: contained.Nursery,
  spool: BinaryIO,
  progress: "_Progress",
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Returns a source's clips, whose bytes are in `spool`, and its end."""
  clips, end = [], {}
  request = {
    "path": source.path,
    "source": source.source,
    "options": options.to_dict(),
    "begin": source.begin,
    "end": source.end or None,
    "duration": source.duration,
    "actions": source.actions if action_names else "",
    "action_names": action_names,
    "film_frames": source.film_frames,
  }
  for header, blob in nursery.run(
    function,
    request,
    memory_mb=limits.memory_mb,
    seconds=limits.wall_seconds(source.duration),
    stalled_seconds=limits.stalled_seconds,
  ):
    if "clip" in header:
      clips.append(header["clip"])
      spool.write(blob)
      progress.at(header["clip"]["start"] / options.fps - source.begin)
    elif "at" in header:
      progress.at(header["at"] - source.begin)
    else:
      end |= header.get("end", {})
  if not end:
    raise contained.Failure("the decoder ended too early")
  return clips, end


def _row(
  clip: dict[str, Any],
  source: sources_lib.Source,
  options: options_lib.Options,
  split: str,
) -> dict[str, Any]:
  identity = [source.sha256, clip["start"], cut_options(options)]
  return {
    **{k: v for k, v in clip.items() if k in tables.CLIPS.names},
    "clip_id": hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24],
    "source": source.source,
    "path": sources_lib.printable(source.name),
    "time": round(clip["start"] / options.fps, 6),
    "digest": source.sha256,
    "split": split,
    "record": -1,
    "bytes": 0,
    "kept": False,
    "duplicate_of": "",
  }


def cut_options(options: options_lib.Options) -> str:
  """Returns a digest of the options that change a clip's frames."""
  ignored = ("validation_share", "test_share", "unit_hours", "keep_duplicates")
  fields = {k: v for k, v in options.to_dict().items() if k not in ignored}
  return config.fingerprint(fields)[:16]


def _outcome(
  source: sources_lib.Source,
  status: str,
  reason: str,
  end: dict[str, Any] | None = None,
) -> dict[str, Any]:
  end = end or {}
  return {
    "source": source.source,
    "status": status,
    "reason": reason,
    "frames": end.get("frames", 0),
    "bad_packets": end.get("bad_packets", 0),
    "actions": end.get("actions", ""),
  }


class _Progress:
  """Says in a small file how many seconds of film a unit has done."""

  def __init__(self, folder: pathlib.Path, shard: resumable.Shard):
    self._path = progress_path(folder, shard.split, shard.name)
    self._done = 0.0
    self._written = 0.0
    with contextlib.suppress(OSError):
      self._path.parent.mkdir(parents=True, exist_ok=True)

  def at(self, seconds: float) -> None:
    """States how far the present source is."""
    if time.monotonic() - self._written > _PROGRESS_SECONDS:
      self._written = time.monotonic()
      # A full disk is reported by what matters.
      with contextlib.suppress(OSError):
        self._path.write_text(f"{self._done + max(0.0, seconds):.1f}\n")

  def done(self, source: sources_lib.Source) -> None:
    """States that a source is done."""
    self._done += source.seconds
    self.at(0)

  def remove(self) -> None:
    """Ends the unit."""
    with contextlib.suppress(OSError):
      self._path.unlink()


def progress_path(folder: pathlib.Path, split: str, name: str) -> pathlib.Path:
  """Returns the file that says how far a unit is."""
  return folder / resumable.PROGRESS / NOW / f"{split}-{name}"


def seconds_done(path: pathlib.Path) -> float:
  """Returns what such a file says, 0 where there is none."""
  try:
    return float(path.read_text() or 0)
  except (OSError, ValueError):
    return 0.0
