"""The Parquet tables beside the shards: clips and sources.

`SPLIT/SHARD.parquet` has a row for each clip that was cut, kept or dropped, and
states what came of each source in its metadata. `sources.parquet` has a row for
each source. Equal rows give equal bytes.
"""

import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.videos import sources as sources_lib
from genie_jax.core import errors, files

SOURCES = "sources.parquet"
DUPLICATE = "duplicate"

CLIPS = pa.schema(
  [
    ("clip_id", pa.string()),  # Of the film's bytes, the place, the options.
    ("source", pa.int32()),
    ("path", pa.string()),
    ("time", pa.float64()),  # Seconds from the film's first frame.
    ("start", pa.int64()),  # The same in frames of the clips.
    ("frames", pa.int32()),
    ("digest", pa.string()),  # SHA-256 of the film.
    ("split", pa.string()),
    ("record", pa.int64()),  # First record in the shard, -1 if not stored.
    ("bytes", pa.int64()),  # Of its records.
    ("kept", pa.bool_()),
    ("reason", pa.string()),  # Why it was dropped, "" if it is kept.
    ("duplicate_of", pa.string()),  # clip_id.
    ("shot", pa.int32()),  # Number of the shot in its source.
    ("cut_score", pa.float32()),  # Of the cut that begins the shot.
    ("brightness", pa.float32()),  # Mean, 0 to 255.
    ("black", pa.float32()),  # Share of its frames.
    ("moving", pa.float32()),  # Share of its pairs of frames.
    # dHash of every 8th frame; Parquet names the field like this.
    ("hashes", pa.list_(pa.field("element", pa.string()))),
    ("thumbs", pa.binary()),  # What was hashed, uint8 [K, 8, 9].
    ("picture", pa.binary()),  # JPEG of some clips that are not stored.
  ]
)
_SOURCES = pa.schema(
  [
    ("source", pa.int32()),
    ("path", pa.string()),
    ("path_bytes", pa.binary()),  # The same where it is no UTF-8.
    ("size", pa.int64()),
    ("sha256", pa.string()),
    ("duration", pa.float64()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("fps", pa.float64()),
    ("rotation", pa.int32()),
    ("codec", pa.string()),
    ("split", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
    ("begin", pa.float64()),
    ("end", pa.float64()),
    ("frames", pa.int64()),  # Frames that were cut, at the clips' rate.
    ("clips", pa.int32()),
    ("kept", pa.int32()),
    ("bad_packets", pa.int64()),
    ("actions", pa.string()),  # What came of its recorded actions.
  ]
)
_OUTCOMES = b"genie_sources"


def clips_path(folder: files.PathLike, split: str, shard: str) -> pathlib.Path:
  """Returns the path of the table of a shard."""
  return pathlib.Path(folder) / split / f"{pathlib.Path(shard).stem}.parquet"


def make_clips(
  rows: Sequence[dict[str, Any]], outcomes: Sequence[dict[str, Any]]
) -> pa.Table:
  """Returns a table of clips.

  Args:
    rows: Values by column.
    outcomes: One for each source of the shard: "source", "status", "reason",
      "frames", "bad_packets" and "actions".
  """
  table = pa.Table.from_pylist(list(rows), CLIPS)
  return table.replace_schema_metadata(
    {_OUTCOMES: json.dumps(list(outcomes), sort_keys=True)}
  )


def outcomes(table: pa.Table) -> list[dict[str, Any]]:
  """Returns what came of each source, as given to `make_clips`."""
  return json.loads(table.schema.metadata[_OUTCOMES])


def to_bytes(table: pa.Table) -> bytes:
  """Returns the content of a table's file."""
  buffer = io.BytesIO()
  pq.write_table(table, buffer, compression="zstd")
  return buffer.getvalue()


def write(path: files.PathLike, table: pa.Table) -> None:
  """Writes a table atomically, where its content is new."""
  content, path = to_bytes(table), pathlib.Path(path)
  if not (path.is_file() and path.read_bytes() == content):
    files.write_atomic(path, content)


def read(path: files.PathLike) -> pa.Table:
  """Reads a table.

  Raises:
    UserError: It is missing or damaged.
  """
  try:
    return pq.read_table(path, memory_map=False)
  except (OSError, pa.ArrowException) as error:
    raise errors.UserError(
      f"{path} cannot be read ({str(error).splitlines()[0]}); run `genie data "
      "videos` again with the same options to write it again."
    ) from error


def as_cut(table: pa.Table) -> pa.Table:
  """Returns a table of clips as it was before duplicates were marked."""
  stored = [record >= 0 for record in table["record"].to_pylist()]
  reasons = table["reason"].to_pylist()
  return with_columns(
    table,
    kept=stored,
    reason=["" if s else r for s, r in zip(stored, reasons, strict=True)],
    duplicate_of=[""] * len(stored),
  )


def with_columns(table: pa.Table, **columns: Sequence[Any]) -> pa.Table:
  """Returns a table of clips with other values in some columns."""
  for name, values in columns.items():
    place = CLIPS.get_field_index(name)
    field = CLIPS.field(place)
    table = table.set_column(place, field, pa.array(values, field.type))
  return table


def write_sources(
  folder: files.PathLike,
  rows: Sequence[sources_lib.Source],
  results: dict[int, dict[str, Any]],
) -> None:
  """Writes `sources.parquet`.

  Args:
    folder: Where.
    rows: The sources.
    results: By number of the source, values of other columns.
  """
  values = []
  for row in rows:
    exact = os.fsencode(row.name)
    text = exact.decode("utf-8", "backslashreplace")
    values.append(
      {
        **{name: getattr(row, name, None) for name in _SOURCES.names},
        "frames": 0,
        "clips": 0,
        "kept": 0,
        "bad_packets": 0,
        "actions": "",
        **results.get(row.source, {}),
        "path": text,
        "path_bytes": None if text.encode() == exact else exact,
      }
    )
  write(pathlib.Path(folder) / SOURCES, pa.Table.from_pylist(values, _SOURCES))
