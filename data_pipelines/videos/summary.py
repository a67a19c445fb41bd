"""What came of a folder's films: counts, and the page `summary.html`.

The page is one file that contains its pictures and loads nothing.
"""

import base64
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa

from data_pipelines.videos import cut as cut_lib
from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources as sources_lib
from data_pipelines.videos import tables
from genie_jax.core import files
from genie_jax.data import resumable, shards, stored_frames

FILE_NAME = "summary.html"
REASONS = ("short", "black", "static", tables.DUPLICATE)
_TEMPLATE = "summary.html.j2"
_KEPT_SHOWN, _DROPPED_SHOWN = 24, 8
_LISTED = 500


@dataclasses.dataclass
class Count:
  """Clips and their frames.

  Attributes:
    clips: Number of clips.
    frames: Number of frames.
    kept: Those that are kept.
    kept_frames: Their frames.
  """

  clips: int = 0
  frames: int = 0
  kept: int = 0
  kept_frames: int = 0

  def add(self, frames: int, kept: bool) -> None:
    """Counts one clip."""
    self.clips += 1
    self.frames += frames
    self.kept += kept
    self.kept_frames += frames * kept


@dataclasses.dataclass(frozen=True)
class Summary:
  """Counts of a folder.

  Attributes:
    clips: By split.
    dropped: By reason, in the order of `REASONS`; none without clips.
    sources: Good sources by split.
    films: Number of files that were taken for films.
    film_seconds: Of the good sources, as far as there are pictures: what a film
      states may be wrong by hours.
    bad: Sources that could not be used; a film whose parts are bad for one
      reason once.
    copies: Sources with the bytes of an earlier one.
    damaged: Good sources that end early or have damaged packets, with what is
      wrong.
    actions: Sources whose recorded actions cannot be used or do not fit, with
      the reason.
    with_actions: Number of good sources with recorded actions.
    in_parts: Whether the splits are parts of the same films.
    others: Files in the folder that are not taken for films.
    unreadable: Folders that could not be read.
  """

  clips: Mapping[str, Count]
  dropped: Mapping[str, Count]
  sources: Mapping[str, int]
  films: int
  film_seconds: float
  bad: Sequence[sources_lib.Source]
  copies: Sequence[sources_lib.Source]
  damaged: Sequence[tuple[sources_lib.Source, str]]
  actions: Sequence[tuple[sources_lib.Source, str]]
  with_actions: int
  in_parts: bool
  others: int
  unreadable: Sequence[str]

  @property
  def kept(self) -> int:
    """Number of clips that are kept."""
    return sum(count.kept for count in self.clips.values())

  @property
  def kept_frames(self) -> int:
    """Their frames."""
    return sum(count.kept_frames for count in self.clips.values())


def count(
  rows: Sequence[sources_lib.Source],
  results: Mapping[int, Mapping[str, Any]],
  cut: Iterable[pa.Table],
  listing: sources_lib.Listing,
  options: options_lib.Options,
) -> Summary:
  """Returns the counts of a folder.

  Args:
    rows: All sources, with their final status.
    results: What came of each, by number.
    cut: The tables of clips, duplicates marked.
    listing: What was found.
    options: For the frames per second.
  """
  clips = {split: Count() for split in sources_lib.SPLITS}
  dropped: dict[str, Count] = {}
  for table in cut:
    columns = table.select(["split", "frames", "kept", "reason"]).to_pylist()
    for row in columns:
      clips[row["split"]].add(row["frames"], row["kept"])
      if not row["kept"]:
        dropped.setdefault(row["reason"], Count()).add(row["frames"], False)
  known = [r for r in REASONS if r in dropped]
  order = known + sorted(set(dropped) - set(known))
  good = [row for row in rows if row.status == sources_lib.GOOD]
  damaged, actions = [], []
  for row in good:
    result = results.get(row.source, {})
    wrong = [row.reason] if row.reason else []
    if result.get("bad_packets"):
      wrong.append(f"{result['bad_packets']} damaged packets")
    if wrong:
      damaged.append((row, "; ".join(wrong)))
    note = row.actions_problem or result.get("actions")
    if note:
      actions.append((row, note))
  return Summary(
    clips=clips,
    dropped={reason: dropped[reason] for reason in order},
    sources={
      split: sum(row.split == split for row in good)
      for split in sources_lib.SPLITS
    },
    films=len(listing.files),
    film_seconds=sum(
      results.get(row.source, {}).get("frames", 0) for row in good
    )
    / options.fps,
    bad=list(
      {
        (row.name, row.reason): row
        for row in reversed(rows)
        if row.status == sources_lib.BAD
      }.values()
    )[::-1],
    copies=[row for row in rows if row.status == sources_lib.COPY],
    damaged=damaged,
    actions=actions,
    with_actions=sum(bool(row.labels) for row in good),
    in_parts=any(row.begin for row in good),
    others=listing.others,
    unreadable=listing.unreadable,
  )


def write(
  folder: pathlib.Path,
  counts: Summary,
  cut: Mapping[resumable.Shard, pa.Table],
  entries: Mapping[resumable.Shard, resumable.Entry],
  options: options_lib.Options,
) -> None:
  """Writes `summary.html`.

  Args:
    folder: The clips folder; its shards are finished.
    counts: Its counts.
    cut: The table of each shard.
    entries: The manifest's entry of each shard.
    options: That the clips were cut with.
  """
  template = importlib.resources.files("data_pipelines.videos").joinpath(
    _TEMPLATE
  )
  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True
  )
  environment.filters["hours"] = lambda frames: (
    f"{frames / options.fps / 3600:.2f}"
  )
  environment.filters["name"] = lambda row: sources_lib.printable(row.name)
  page = environment.from_string(template.read_text("utf-8")).render(
    c=counts,
    options=options,
    fields=options.to_dict(),
    splits=sources_lib.SPLITS,
    kept_strips=_kept_strips(folder, cut, entries, options),
    dropped_strips=_dropped_strips(folder, cut, entries, counts, options),
    listed=_LISTED,
  )
  files.write_atomic(folder / FILE_NAME, page)


def _spread(items: list[Any], most: int) -> list[Any]:
  places = np.linspace(0, len(items) - 1, min(most, len(items)))
  return [items[place] for place in places.astype(int)]


def _kept_strips(
  folder: pathlib.Path,
  cut: Mapping[resumable.Shard, pa.Table],
  entries: Mapping[resumable.Shard, resumable.Entry],
  options: options_lib.Options,
) -> list[dict[str, str]]:
  rows = [
    (shard, row)
    for shard, table in cut.items()
    for row in _light(table.filter(table["kept"]))
  ]
  return [
    _strip(row, _stored_strip(folder, shard, row, entries[shard], options))
    for shard, row in _spread(rows, _KEPT_SHOWN)
  ]


def _dropped_strips(
  folder: pathlib.Path,
  cut: Mapping[resumable.Shard, pa.Table],
  entries: Mapping[resumable.Shard, resumable.Entry],
  counts: Summary,
  options: options_lib.Options,
) -> dict[str, list[dict[str, str]]]:
  found: dict[str, list[Any]] = {reason: [] for reason in counts.dropped}
  for shard, table in cut.items():
    for place, row in enumerate(_light(table)):
      if row["kept"]:
        continue
      if row["record"] >= 0 or table["picture"][place].as_py():
        found[row["reason"]].append((shard, place, row))
  strips = {}
  for reason, some in found.items():
    strips[reason] = []
    for shard, place, row in _spread(some, _DROPPED_SHOWN):
      picture = cut[shard]["picture"][place].as_py() or _stored_strip(
        folder, shard, row, entries[shard], options
      )
      strips[reason].append(_strip(row, picture))
  return strips


def _light(table: pa.Table) -> list[dict[str, Any]]:
  """Returns the rows of a table without their large columns."""
  names = [
    "path",
    "time",
    "frames",
    "record",
    "kept",
    "reason",
    "duplicate_of",
    "source",
  ]
  return table.select(names).to_pylist()


def _strip(row: dict[str, Any], picture: bytes) -> dict[str, str]:
  minutes, seconds = divmod(row["time"], 60)
  return {
    "label": f"{row['path']} {minutes:.0f}:{seconds:04.1f}, "
    f"{row['frames']} frames",
    "uri": f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}",
  }


def _stored_strip(
  folder: pathlib.Path,
  shard: resumable.Shard,
  row: dict[str, Any],
  entry: dict[str, Any],
  options: options_lib.Options,
) -> bytes:
  """Returns a strip of a clip that is in a shard."""
  path = folder / shard.split / shard.name
  reader = shards.ShardReader(path, entry)
  count = -(-row["frames"] // options_lib.FRAMES_PER_RECORD)
  codec = None if options.codec == "zstd" else options.codec
  frames = [
    stored_frames.load(
      arrays, meta, codec, (options.height, options.width, 3), where=str(path)
    )
    for arrays, meta in reader.read(range(row["record"], row["record"] + count))
  ]
  return cut_lib.contact_strip(np.concatenate(frames))
