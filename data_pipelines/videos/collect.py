r"""Cuts anyone's films into a clips folder.

Run:     genie data videos --videos films --out clips

  find    what is a film, and its digest         .progress/scan/*.json
  plan    splits, and units of work: one shard each
  cut     unit -> shard, table of clips          .progress/SPLIT/*.json, last
  finish  duplicates, sources.parquet, manifest.json, summary.html

`find` and `cut` are done by Beam (`engine`), each film in a child process
(`contained`). Every step can be killed and begun again.
"""

import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data_pipelines.videos import actions as actions_lib
from data_pipelines.videos import (
  engine,
  finish,
  scan,
  summary,
  tables,
  units,
)
from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources as sources_lib
from genie_jax.core import buckets, errors, files, progress, schema
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import resumable, video_codec

_COLLECTOR_VERSION = 1
_LOG = "beam.log"
_LISTED = 10
# So much is read before several processes would have started.
_FEW_FILES, _FEW_BYTES = 256, 1 << 30


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a call of `collect`.

  Attributes:
    manifest: Of the finished folder.
    summary: Its counts.
    seconds: Wall time of this call.
    kept_units: Units that earlier calls did.
    units: All units.
  """

  manifest: manifest_lib.Manifest
  summary: summary.Summary
  seconds: float
  kept_units: int
  units: int


def collect(
  videos: str,
  out: files.PathLike,
  options: options_lib.Options,
  limits: options_lib.Limits | None = None,
  workers: int = 1,
  beam_options: Sequence[str] = (),
  name: str = "videos",
) -> Report:
  """Cuts films into clips, or goes on with what an earlier call began.

  Args:
    videos: A folder, pattern, film or table, see `sources.find`.
    out: The folder to write.
    options: What determines the clips.
    limits: What one film may take.
    workers: Processes on this machine; the bytes do not depend on it.
    beam_options: Options of Beam, to run elsewhere.
    name: Of the data set.

  Raises:
    UserError: The input or an option is wrong, the folder belongs to something
      else, or no clip is left.
    OSError: The disk is full; finished shards are kept.
    RunFailed: Beam failed; finished shards are kept.
  """
  began = time.monotonic()
  options.check()
  # Equal options must give equal manifests.
  options = dataclasses.replace(options, fps=float(options.fps))
  limits = limits or options_lib.Limits()
  limits.check()
  if workers < 1:
    raise errors.UserError(f"--workers must be at least 1, not {workers}.")
  if beam_options and not engine.names_a_runner(beam_options):
    # Beam leaves out unknown options without a word.
    raise errors.UserError(
      f"--beam-options {' '.join(beam_options)!r} has no --runner=NAME; name "
      "one, or leave the option out to use this machine."
    )
  folder = buckets.disk(out, "--out")
  _check_folder(folder, name, options)
  listing = sources_lib.find(videos, os.path.realpath(folder))
  if options.actions != "ignore":
    listing = _with_actions(listing)
  rows, cached = _find(listing, folder, options, limits, workers, beam_options)
  known = _action_names(rows)
  planned = sources_lib.plan_units(rows, options)
  writer = resumable.FolderWriter(
    folder,
    _manifest(name, options, sources_lib.digest(rows), known),
    {split: range(len(some)) for split, some in planned.items()},
    1,
  )
  with writer:
    cached.write()
    _distrust_tables(writer)
    shards = {
      shard: planned[shard.split][shard.items[0]]
      for shard in sorted(
        (*writer.kept, *writer.missing),
        key=lambda shard: (sources_lib.SPLITS.index(shard.split), shard.name),
      )
    }
    _cut(writer, shards, options, limits, known, workers, beam_options)
    manifest, counts = finish.finish(writer, shards, rows, listing, options)
  return Report(
    manifest,
    counts,
    time.monotonic() - began,
    len(writer.kept),
    len(shards),
  )


def describe(report: Report, out: files.PathLike) -> str:
  """Returns a report as lines of text."""
  found, manifest = report.summary, report.manifest
  hours = lambda frames: f"{frames / manifest.fps / 3600:.2f} hours"
  dropped = sum(count.clips for count in found.dropped.values())
  splits = ", ".join(
    f"{split} {count.kept}" for split, count in found.clips.items()
  )
  lines = [
    f"{out}: {found.kept} clips, {hours(found.kept_frames)} ({splits}), of "
    f"{found.films} films, {found.film_seconds / 3600:.2f} hours; "
    f"{report.kept_units} of {report.units} units are of an earlier run; "
    f"{report.seconds:.1f} s; fingerprint {manifest.fingerprint[:12]}",
    f"dropped {dropped} clips"
    + "".join(
      f"; {reason}: {count.clips} ({hours(count.frames)})"
      for reason, count in found.dropped.items()
    ),
  ]
  empty = [
    split
    for split, count in found.clips.items()
    if found.sources[split] and not count.kept
  ]
  if empty:
    lines.append(
      f"no clip is left for {' and '.join(empty)}; a table with a column "
      "`split` can name other films for it"
    )
  if found.in_parts:
    lines.append(
      "too few films for splits: each was divided in time, so validation and "
      "test come from the films of train"
    )
  if found.with_actions:
    good = sum(found.sources.values())
    lines.append(
      f"{found.with_actions} of {good} sources have recorded actions, "
      + (
        f"which are stored: {manifest.num_actions} actions"
        if manifest.num_actions
        else "so that none are stored; --actions require leaves the others out"
      )
    )
  for rows, what in (
    ([(row, row.reason) for row in found.bad], "bad films"),
    (found.damaged, "films are damaged but used"),
    ([(row, row.reason) for row in found.copies], "films are copies"),
    (found.actions, "films whose recorded actions do not fit"),
    ([(None, name) for name in found.unreadable], "folders cannot be read"),
  ):
    if rows:
      lines.append(f"{len(rows)} {what}:")
      lines += [
        f"  {sources_lib.printable(row.name)}: {text}" if row else f"  {text}"
        for row, text in rows[:_LISTED]
      ]
    if len(rows) > _LISTED:
      lines.append(f"  and {len(rows) - _LISTED} more, see sources.parquet")
  lines.append(f"wrote {pathlib.Path(out) / summary.FILE_NAME}")
  return "\n".join(lines)


def _manifest(
  name: str,
  options: options_lib.Options,
  sources_digest: str,
  action_names: Sequence[str],
) -> manifest_lib.Manifest:
  codec = None if options.codec == "zstd" else options.codec
  return manifest_lib.Manifest(
    kind="clips",
    name=name,
    fps=options.fps,
    frame_shape=(options.height, options.width, 3),
    frames_per_record=options_lib.FRAMES_PER_RECORD,
    splits={},
    num_actions=len(action_names) or None,
    action_aliases={},
    frames_codec=codec,
    made_by={
      "collector": "data_pipelines.videos.collect",
      "collector_version": _COLLECTOR_VERSION,
      "options": options.to_dict(),
      "codec": video_codec.made_by(video_codec.H264Options())
      if codec
      else {"codec": "zstd"},
      "sources_sha256": sources_digest,
      **({"action_names": list(action_names)} if action_names else {}),
      "licences": "those of the films; see sources.parquet for which they are",
    },
  )


def _check_folder(
  folder: pathlib.Path, name: str, options: options_lib.Options
) -> None:
  """Raises UserError for a folder of something else, before hours of work."""
  made_by = _earlier_made_by(folder)
  manifest = _manifest(
    name,
    options,
    made_by.get("sources_sha256", ""),
    made_by.get("action_names", ()),
  )
  resumable.FolderWriter(folder, manifest, {}, 1)


def _with_actions(listing: sources_lib.Listing) -> sources_lib.Listing:
  """Adds the files of actions that are beside films."""
  found = []
  for file in listing.files:
    beside = None if file.actions else actions_lib.beside(file.path)
    if beside is not None:
      file = dataclasses.replace(file, actions=os.fspath(beside))
    found.append(file)
  return dataclasses.replace(listing, files=found)


def _action_names(rows: Sequence[sources_lib.Source]) -> tuple[str, ...]:
  """Returns the labels of actions by number, none if they are not stored."""
  good = [row for row in rows if row.status == sources_lib.GOOD]
  if not all(row.labels for row in good):
    return ()
  return actions_lib.names(row.labels for row in good)


def _find(
  listing: sources_lib.Listing,
  folder: pathlib.Path,
  options: options_lib.Options,
  limits: options_lib.Limits,
  workers: int,
  beam_options: Sequence[str],
) -> tuple[list[sources_lib.Source], scan.Cache]:
  """Returns the sources, with digest and split, and what to remember."""
  cached = scan.Cache(folder)
  jobs = scan.jobs(
    [file for file in listing.files if not cached.get(file)],
    folder / resumable.PROGRESS / "scan",
    limits,
  )
  missing = [job for job in jobs if not os.path.exists(job["result"])]
  with progress.track(
    total=len(listing.files),
    initial=len(listing.files) - sum(len(job["files"]) for job in jobs),
    unit="files",
    description="finding films",
    disable=not missing,
  ) as bar:
    before = bar.n

    def tick() -> None:
      done = sum(
        len(job["files"]) for job in jobs if os.path.exists(job["result"])
      )
      bar.update(before + done - bar.n)

    function = "data_pipelines.videos.scan:run"
    few = len(listing.files) <= _FEW_FILES and (
      scan.size_of(missing) <= _FEW_BYTES
    )
    if few and not engine.names_a_runner(beam_options):
      engine.run_here(function, missing, tick)
    else:
      engine.run(
        function,
        missing,
        [scan.size_of([job]) for job in missing],
        workers,
        beam_options,
        folder / resumable.PROGRESS / _LOG,
        tick,
      )
    tick()
  scanned = iter(scan.results(jobs))
  found = []
  for file in listing.files:
    row = cached.get(file) or next(scanned)
    cached.put(file, row)
    lacks = row.status == sources_lib.GOOD and not row.labels
    if options.actions == "require" and lacks:
      row = dataclasses.replace(
        row,
        status=sources_lib.BAD,
        reason=row.actions_problem or "has no recorded actions",
      )
    found.append(row)
  stated = [file.split for file in listing.files]
  rows = sources_lib.assign(found, stated, options)
  _check_sources(folder, rows, cached)
  return rows, cached


def _check_sources(
  folder: pathlib.Path,
  rows: Sequence[sources_lib.Source],
  cached: scan.Cache,
) -> None:
  """Raises UserError if a folder was begun with other films."""
  earlier = _earlier_made_by(folder).get("sources_sha256")
  if not earlier or earlier == sources_lib.digest(rows):
    return
  now = {row.name: row.sha256 for row in rows}
  before = cached.digests()
  changes = []
  for what, names in (
    ("added", now.keys() - before.keys()),
    ("removed", before.keys() - now.keys()),
    ("changed", {n for n in now.keys() & before.keys() if now[n] != before[n]}),
  ):
    if names:
      first = sources_lib.printable(min(names, key=os.fsencode))
      changes.append(f"{len(names)} {what}, such as {first}")
  if manifest_lib.exists(folder):  # It stays as it was.
    shutil.rmtree(folder / resumable.PROGRESS, ignore_errors=True)
  raise errors.UserError(
    f"--out {folder} was begun with other films "
    f"({'; '.join(changes) or 'their order or splits differ'}); give another "
    "folder, or the same films."
  )


def _earlier_made_by(folder: pathlib.Path) -> dict[str, Any]:
  """Returns `made_by` of an earlier call, empty if there was none."""
  request = folder / resumable.PROGRESS / "request.json"
  if manifest_lib.exists(folder):
    return dict(manifest_lib.Manifest.read(folder).made_by)
  if request.exists():
    return files.read_json(request, {"made_by": schema.Maybe(dict)}).get(
      "made_by", {}
    )
  return {}


def _distrust_tables(writer: resumable.FolderWriter) -> None:
  """Marks units whose table of clips is not what their receipt states."""
  for shard, entry in list(writer.kept.items()):
    path = tables.clips_path(writer.folder, shard.split, shard.name)
    try:
      found = units.table_digest(tables.read(path))
    except (errors.UserError, KeyError, pa.ArrowException):
      found = ""
    if found != entry.get("table"):
      del writer.kept[shard]
      writer.missing.append(shard)
      resumable.receipt_path(writer.folder, shard).unlink(missing_ok=True)
      # Until it is whole again the folder must not look finished.
      (writer.folder / manifest_lib.FILE_NAME).unlink(missing_ok=True)


def _cut(
  writer: resumable.FolderWriter,
  shards: dict[resumable.Shard, list[sources_lib.Source]],
  options: options_lib.Options,
  limits: options_lib.Limits,
  action_names: Sequence[str],
  workers: int,
  beam_options: Sequence[str],
) -> None:
  """Does the units that are missing."""
  folder = writer.folder
  seconds = {
    shard: sum(row.seconds for row in rows) for shard, rows in shards.items()
  }
  for shard in writer.missing:
    (folder / shard.split).mkdir(parents=True, exist_ok=True)
  missing = list(writer.missing)
  jobs = [
    units.job(folder, shard, shards[shard], options, limits, action_names)
    for shard in missing
  ]
  kept = sum(seconds[shard] for shard in writer.kept)
  with progress.track(
    total=round(sum(seconds.values())),
    initial=round(kept),
    unit="s of film",
    description="cutting",
    disable=not missing,
  ) as bar:

    def tick() -> None:
      done = kept
      for shard in missing:
        if resumable.receipt_path(folder, shard).exists():
          done += seconds[shard]
        else:
          path = units.progress_path(folder, shard.split, shard.name)
          done += min(units.seconds_done(path), seconds[shard])
      # What a unit did before it was begun again does not count twice.
      bar.update(max(0, round(done) - bar.n))

    engine.run(
      "data_pipelines.videos.units:run",
      jobs,
      [seconds[shard] for shard in missing],
      workers,
      beam_options,
      folder / resumable.PROGRESS / _LOG,
      tick,
    )
  undone = [
    shard
    for shard in missing
    if not resumable.receipt_path(folder, shard).exists()
  ]
  if undone:
    raise errors.RunFailed(
      f"Beam ended without {len(undone)} of {len(missing)} units, such as "
      f"{undone[0].split}/{undone[0].name}: its workers must see {folder} "
      "under the same path. Run the same command again."
    )
