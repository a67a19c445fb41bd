"""Finishes a clips folder, once all its films are cut.

Only the tables of clips are read: records stay where they are, and clips that
are dropped now are left out of the manifest.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.videos import duplicates, looks, summary, tables
from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources as sources_lib
from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import resumable


def finish(
  writer: resumable.FolderWriter,
  shards: dict[resumable.Shard, list[sources_lib.Source]],
  rows: Sequence[sources_lib.Source],
  listing: sources_lib.Listing,
  options: options_lib.Options,
) -> tuple[manifest_lib.Manifest, summary.Summary]:
  """Marks duplicates, and writes the tables, the manifest and the summary.

  Args:
    writer: Of the folder, all of whose shards have receipts.
    shards: All shards and the sources of each.
    rows: All sources.
    listing: What was found.
    options: That the films were cut with.

  Raises:
    UserError: No clip is left for train.
  """
  folder = writer.folder
  cut = {
    shard: tables.as_cut(
      tables.read(tables.clips_path(folder, shard.split, shard.name))
    )
    for shard in shards
  }
  found = {} if options.keep_duplicates else _duplicates(cut.values())
  entries = writer.entries()
  for shard, table in cut.items():
    cut[shard] = marked = _marked(table, found)
    tables.write(tables.clips_path(folder, shard.split, shard.name), marked)
    entries[shard] = {**entries[shard], "episodes": _episodes(marked)}
  results = _results(cut.values())
  final = [
    dataclasses.replace(
      row,
      status=results[row.source]["status"],
      reason=results[row.source]["reason"],
    )
    if row.source in results
    else row
    for row in rows
  ]
  tables.write_sources(folder, final, results)
  counts = summary.count(final, results, cut.values(), listing, options)
  if not counts.clips["train"].kept:
    summary.write(folder, counts, cut, entries, options)
    raise errors.UserError(_nothing_kept(folder, counts))
  manifest = writer.finish(entries)
  summary.write(folder, counts, cut, entries, options)
  return manifest, counts


def _duplicates(cut: Iterable[pa.Table]) -> dict[str, str]:
  clips = []
  for table in cut:
    names = ["clip_id", "digest", "hashes", "thumbs", "source", "start"]
    # A table as it was cut keeps all clips that are stored.
    for row in table.filter(table["kept"]).select(names).to_pylist():
      thumbs = np.frombuffer(row["thumbs"], np.uint8)
      clips.append(
        (
          (row["source"], row["start"]),
          duplicates.Clip(
            row["clip_id"],
            row["digest"],
            duplicates.parse_hashes(row["hashes"]),
            thumbs.reshape(-1, looks.THUMB[1], looks.THUMB[0]),
          ),
        )
      )
  # In the order of the sources, so that it does not depend on the units.
  return duplicates.find(
    clip for _, clip in sorted(clips, key=lambda pair: pair[0])
  )


def _marked(table: pa.Table, found: dict[str, str]) -> pa.Table:
  """Returns a table as it was cut with its duplicates marked."""
  ids = table["clip_id"].to_pylist()
  kept, reasons = table["kept"].to_pylist(), table["reason"].to_pylist()
  return tables.with_columns(
    table,
    kept=[k and i not in found for k, i in zip(kept, ids, strict=True)],
    reason=[
      tables.DUPLICATE if i in found else r
      for r, i in zip(reasons, ids, strict=True)
    ],
    duplicate_of=[found.get(i, "") for i in ids],
  )


def _episodes(table: pa.Table) -> list[list[int]]:
  kept = table.filter(table["kept"])
  return [
    [row["source"], row["record"], 0, row["frames"]]
    for row in kept.select(["source", "record", "frames"]).to_pylist()
  ]


def _results(cut: Iterable[pa.Table]) -> dict[int, dict[str, Any]]:
  """Returns what came of each source, by its number."""
  results: dict[int, dict[str, Any]] = {}
  for table in cut:
    for outcome in tables.outcomes(table):
      results[outcome["source"]] = {**outcome, "clips": 0, "kept": 0}
    pairs = zip(
      table["source"].to_pylist(), table["kept"].to_pylist(), strict=True
    )
    for source, kept in pairs:
      results[source]["clips"] += 1
      results[source]["kept"] += kept
  return results


def _nothing_kept(folder: pathlib.Path, counts: summary.Summary) -> str:
  reasons = ", ".join(
    f"{count.clips} {reason}" for reason, count in counts.dropped.items()
  )
  bad = "; ".join(
    f"{sources_lib.printable(row.name)} {row.reason}" for row in counts.bad[:3]
  )
  return (
    "No clip is left for train: of all clips "
    f"{reasons or 'none was cut'} "
    f"{'were dropped' if reasons else ''}; "
    f"{len(counts.bad)} bad films{f' ({bad})' if bad else ''}. See "
    f"{folder / summary.FILE_NAME}; give other films, or other options such "
    "as --min-frames, --cut-threshold or --keep-static, and another --out."
  )
