"""The clips of a folder one by one: each has an identifier, to be rated by.

A clip is an episode, or one of its consecutive pieces where an episode is
longer than a clip may be. Folders that were cut from videos name their clips in
tables beside the shards, and these names are used. In other folders, a clip is
named by its place: "SPLIT-SHARD-RECORD-FRAME".

Shapes:
  n  frames that are read     H W C  rows, columns, channels of a frame
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards, stored_frames

# 16 seconds at 10 frames per second, as in Genie, appendix B.1.
CLIP_FRAMES = 160
LEAST_FRAMES = 2
# Key of the description in the files of tables, JSON.
TABLE_METADATA = b"genie"


@dataclasses.dataclass(frozen=True)
class Clip:
  """Consecutive frames of one source.

  Attributes:
    id: Identifies the clip in tables of ratings and scores.
    split: Its split.
    shard: File name of its shard.
    source: Number of its source (video, level).
    record: First record of the run of frames that the clip is in.
    start: First frame, counted from the start of the run.
    length: Number of frames.
  """

  id: str
  split: str
  shard: str
  source: int
  record: int
  start: int
  length: int

  @property
  def row(self) -> list[int]:
    """The clip as an episode of a manifest."""
    return [self.source, self.record, self.start, self.length]


def clips(
  manifest: manifest_lib.Manifest, frames: int = CLIP_FRAMES
) -> list[Clip]:
  """Returns the clips of a folder, in the order of its manifest.

  Args:
    manifest: Of a folder of clips.
    frames: Most frames of a clip. The last piece of an episode may be shorter;
      with less than LEAST_FRAMES it has no motion and is no clip.

  Raises:
    UserError: The folder has no clips, or a table beside its shards cannot be
      read.
  """
  if manifest.kind != "clips":
    raise errors.UserError(
      f"{manifest.address or manifest.folder} has {manifest.kind}, but clips "
      "are needed; use a folder made by `genie data`."
    )
  if frames < LEAST_FRAMES:
    raise errors.UserError(
      f"A clip of {frames} frames has no motion; give at least {LEAST_FRAMES}."
    )
  found = []
  for split, summary in manifest.splits.items():
    for number, entry in enumerate(summary["shards"]):
      names = _names(manifest, split, entry["file"])
      for source, record, first, length in entry["episodes"]:
        for start in range(first, first + length, frames):
          count = min(frames, first + length - start)
          if count < LEAST_FRAMES:
            continue
          whole = start == first and length <= frames
          name = names.get((record, start)) if whole else None
          found.append(
            Clip(
              name or f"{split}-{number}-{record}-{start}",
              split,
              entry["file"],
              source,
              record,
              start,
              count,
            )
          )
  if not found:
    raise errors.UserError(
      f"{manifest.address or manifest.folder} has no clips; give a folder "
      "with at least one."
    )
  return found


def _names(
  manifest: manifest_lib.Manifest, split: str, shard: str
) -> dict[tuple[int, int], str]:
  """Returns (record, 0) -> name, from the table beside a shard, if any."""
  if manifest.address or manifest.folder is None:
    return {}
  path = manifest.folder / split / pathlib.Path(shard).with_suffix(".parquet")
  if not path.is_file():
    return {}
  rows = read_table(path, ("clip_id", "record", "kept"))
  return {
    (int(record), 0): name
    for name, record, kept in zip(
      rows["clip_id"], rows["record"], rows["kept"], strict=True
    )
    if kept
  }


def read_table(
  path: pathlib.Path, columns: Sequence[str] | None = None
) -> dict[str, list]:
  """Returns the columns of a Parquet file, as lists.

  Args:
    path: The file.
    columns: The columns to read; None for all.

  Raises:
    UserError: The file is not Parquet, lacks a column, or pyarrow is missing.
  """
  try:
    import pyarrow
    from pyarrow import parquet
  except ModuleNotFoundError as error:
    raise errors.UserError(
      f"{path} is a Parquet file, which needs pyarrow; install genie_jax with "
      "`pip install 'genie_jax[videos]'`."
    ) from error
  try:
    table = parquet.ParquetFile(path)
    for name in columns or ():
      if name not in table.schema_arrow.names:
        raise errors.UserError(
          f"{path} has no column {name!r}"
          f"{errors.closest(name, table.schema_arrow.names)}; its columns are "
          f"{', '.join(table.schema_arrow.names)}."
        )
    wanted = None if columns is None else list(columns)
    return table.read(wanted).to_pydict()
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path} does not exist; check the path, or run the command that writes "
      "this file."
    ) from error
  except (pyarrow.ArrowException, OSError) as error:
    raise errors.UserError(
      f"{path} is not a Parquet file ({str(error).splitlines()[0][:100]}); "
      "write it again."
    ) from error


def table_metadata(path: pathlib.Path) -> dict[str, Any]:
  """Returns the description in a Parquet file; {} for none.

  Raises:
    UserError: As `read_table`, or the description is damaged.
  """
  read_table(path, ())  # Raises if it is not one.
  from pyarrow import parquet

  found = (parquet.read_schema(path).metadata or {}).get(TABLE_METADATA)
  try:
    described = json.loads(found or b"{}")
  except ValueError:
    described = None
  if not isinstance(described, dict):
    raise errors.UserError(f"{path} has a damaged description; write it again.")
  return described


def run_places(
  length: int, runs: int, shift: int = 0, shifts: int = 1, *, size: int = 2
) -> np.ndarray:
  """Returns runs of adjacent frames that are spread evenly over a clip.

  The clip is divided into as many equal parts as there are runs, and each part
  into `shifts` places; the run is at place `shift` of each part.

  Args:
    length: Frames of the clip, at least 2.
    runs: Number of runs; they overlap in short clips.
    shift: Place in each part, from 0.
    shifts: Number of places.
    size: Frames of a run. In a clip that is shorter than a run, the last frame
      is repeated.

  Returns:
    int64 [size * runs]: t, t + 1, ... of each run in turn.
  """
  parts = (np.arange(runs) + (shift + 0.5) / shifts) * (length / runs)
  first = np.clip(parts.astype(np.int64), 0, max(0, length - size))
  places = first[:, None] + np.arange(size)
  return np.minimum(places, length - 1).reshape(-1)


class Reader:
  """Reads frames of clips; only the records that hold them are decoded.

  May be sent to another process and be used by several threads.
  """

  def __init__(self, manifest: manifest_lib.Manifest):
    """Prepares to read.

    Args:
      manifest: Of a folder of clips, read from the folder.

    Raises:
      UserError: A shard is missing or has another size than stated.
    """
    self._manifest = manifest
    self._readers: dict[tuple[str, str], shards.ShardReader] = {}
    for split, summary in manifest.splits.items():
      if summary["shards"]:
        for path, entry in manifest.shards(split):
          reader = shards.ShardReader(path, entry)
          reader.check_size()
          self._readers[split, entry["file"]] = reader

  def frames(
    self, clip: Clip, places: Sequence[int] | np.ndarray | None = None
  ) -> np.ndarray:
    """Returns frames of a clip.

    Args:
      clip: A clip of this folder.
      places: Numbers of frames within the clip; None for all.

    Returns:
      uint8 [n, H, W, C].

    Raises:
      UserError: A record is damaged, or is not the one that the manifest says.
    """
    size = self._manifest.frames_per_record
    wanted = clip.start + np.asarray(
      np.arange(clip.length) if places is None else places
    )
    numbers = np.unique(wanted // size)
    reader = self._readers[clip.split, clip.shard]
    found = reader.read([clip.record + int(number) for number in numbers])
    out = np.empty((len(wanted), *self._manifest.frame_shape), np.uint8)
    for number, (arrays, meta) in zip(numbers, found, strict=True):
      if (meta["source"], meta["start"]) != (clip.source, number * size):
        raise errors.UserError(
          f"{reader.path} has frame {meta['start']} of source "
          f"{meta['source']} where its manifest says frame {number * size} of "
          f"source {clip.source}; `genie data inspect` the folder, then write "
          "it again."
        )
      rows = np.flatnonzero(wanted // size == number)
      inside = wanted[rows] % size
      begin = int(inside.min())
      frames = stored_frames.load(
        arrays,
        meta,
        self._manifest.frames_codec,
        self._manifest.frame_shape,
        begin,
        int(inside.max()) + 1,
        f"{reader.path} record {clip.record + int(number)}",
      )
      out[rows] = frames[inside - begin]
    return out
