"""Keeps the clips that a classifier finds good (Genie, appendix B.1).

The paper keeps clips by a decision rule on prediction and confidence that it
does not state. Ours: a clip is kept if it is predicted good (a calibrated
probability of at least one half) with at least the given confidence (that
probability).

The result is an ordinary folder of clips. Its shards are hard links to those of
the clips; its manifest lists the kept clips only. It is made beside its place
under another name and renamed when it is complete.
"""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

from data_pipelines.platformers import card
from genie_jax.core import buckets, errors, files, progress
from genie_jax.data import clip_list
from genie_jax.data import manifest as manifest_lib

RULE = (
  "kept if predicted good (calibrated probability at least 0.5) with at least "
  "the stated confidence (that probability)"
)
_SOURCES = "sources.parquet"
_COLUMNS = (
  "clip_id",
  "split",
  "shard",
  "source",
  "record",
  "start",
  "length",
  "probability",
  "rating",
)
# What must be stated with the scores.
_DESCRIBED = ("clips", "clip_frames", "classifier", "calibration")


@dataclasses.dataclass(frozen=True)
class Selection:
  """What `select` did.

  Attributes:
    manifest: Of the new folder.
    kept: Number of kept clips.
    total: Number of clips.
    kept_frames: Frames of the kept clips.
    total_frames: Frames of all clips.
    copied: Shards that had to be copied because they are on another disk.
  """

  manifest: manifest_lib.Manifest
  kept: int
  total: int
  kept_frames: int
  total_frames: int
  copied: int

  def summary(self) -> str:
    """Returns a line for the command."""
    hours = lambda frames: frames / self.manifest.fps / 3600
    text = (
      f"{self.manifest.folder}: kept {self.kept} of {self.total} clips, "
      f"{hours(self.kept_frames):.2f} of {hours(self.total_frames):.2f} hours; "
      f"fingerprint {self.manifest.fingerprint[:12]}; see card.html"
    )
    if self.copied:
      text += f"; {self.copied} shards were copied, as they are on another disk"
    return text


def read_scores(
  path: files.PathLike, manifest: manifest_lib.Manifest
) -> tuple[list[card.Scored], dict[str, Any]]:
  """Reads a table of `genie data score`.

  Args:
    path: The table.
    manifest: Of the clips.

  Returns:
    The scored clips in the order of the table, and the table's description.

  Raises:
    UserError: It is no such table, or was written for another folder.
  """
  path = pathlib.Path(path)
  described = clip_list.table_metadata(path)
  rows = clip_list.read_table(path, _COLUMNS)
  missing = [name for name in _DESCRIBED if name not in described]
  if not missing and not isinstance(described["clip_frames"], int):
    missing = ["clip_frames"]
  if missing:
    raise errors.UserError(
      f"--scores {path} does not state {missing[0]!r}; give a table that "
      "`genie data score` wrote."
    )
  stated = described.get("clips")
  if stated != manifest.fingerprint:
    raise errors.UserError(
      f"--scores {path} is of the clips with fingerprint "
      f"{str(stated)[:12]}, but {manifest.folder} has "
      f"{manifest.fingerprint[:12]}; score this folder with `genie data score`."
    )
  scored = [
    card.Scored(clip_list.Clip(*values), probability, rating)
    for *values, probability, rating in zip(
      *(rows[name] for name in _COLUMNS), strict=True
    )
  ]
  known = set(clip_list.clips(manifest, described["clip_frames"]))
  clips = {each.clip for each in scored}
  if not clips or len(clips) < len(scored) or not clips <= known:
    raise errors.UserError(
      f"--scores {path} has rows that are not clips of {manifest.folder}, has "
      "some twice, or has none; score the folder again."
    )
  if not all(
    isinstance(each.probability, float) and 0 <= each.probability <= 1
    for each in scored
  ):
    raise errors.UserError(
      f"--scores {path} has probabilities that are not from 0 to 1; score the "
      "folder again."
    )
  return scored, described


def select(
  folder: files.PathLike,
  scores: files.PathLike,
  out: files.PathLike,
  confidence: float,
) -> Selection:
  """Makes a folder of the kept clips; see the module.

  Args:
    folder: The clips.
    scores: Table of `genie data score`.
    out: The folder to make; must not exist, or be empty, or be the result of
      the same call.
    confidence: From 0.5 to 1.

  Raises:
    UserError: An input does not fit, no clip is kept, or `out` has other
      content.
    OSError: The disk is full; `out` is as it was.
  """
  target = buckets.disk(out, "--out")
  files.check_writable(target, "--out")
  manifest = manifest_lib.Manifest.read(folder)
  scored, described = read_scores(scores, manifest)
  kept = [each for each in scored if each.probability >= confidence]
  if not kept:
    best = max(scored, key=lambda each: each.probability)
    raise errors.UserError(
      f"No clip is predicted good with a confidence of {confidence}; the "
      f"highest is {best.probability:.3f}. Give a lower --confidence, or train "
      "the classifier on more ratings."
    )
  made = dataclasses.replace(
    manifest,
    splits=_splits(manifest, [each.clip for each in kept]),
    made_by={
      **manifest.made_by,
      "selected": {
        "rule": RULE,
        "confidence": confidence,
        "classifier": described["classifier"],
        "calibration": described["calibration"],
        "scores_sha256": files.sha256(scores),
        "from_fingerprint": manifest.fingerprint,
        "clips": len(kept),
        "of_clips": len(scored),
      },
    },
    folder=target,
    address=None,
  )
  frames = lambda some: sum(each.clip.length for each in some)
  result = Selection(
    made, len(kept), len(scored), frames(kept), frames(scored), 0
  )
  if target.exists() and any(target.iterdir()):
    if manifest_lib.exists(target) and (
      manifest_lib.Manifest.read(target).fingerprint == made.fingerprint
    ):
      return result
    raise errors.UserError(
      f"--out {target} is not empty; give a new or empty folder."
    )
  for left in target.parent.glob(f".{target.name}.*.tmp"):
    shutil.rmtree(left, ignore_errors=True)  # Of a killed call.
  temporary = files.temporary_sibling(target)
  try:
    copied = _link(manifest, made, temporary)
    card.write(
      temporary,
      card.collect(manifest, scored, described, confidence, RULE),
    )
    made.write(temporary)
    os.replace(temporary, target)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise
  return dataclasses.replace(result, copied=copied)


def _splits(
  manifest: manifest_lib.Manifest, kept: list[clip_list.Clip]
) -> dict[str, Any]:
  """Returns the splits of the new manifest."""
  of: dict[tuple[str, str], list[list[int]]] = {}
  for clip in kept:
    of.setdefault((clip.split, clip.shard), []).append(clip.row)
  splits = {}
  for split, summary in manifest.splits.items():
    entries, frames = [], 0
    for entry in summary["shards"]:
      rows = _joined(entry["episodes"], of.get((split, entry["file"]), []))
      if rows:
        entries.append({**entry, "episodes": rows})
        frames += sum(row[3] for row in rows)
    splits[split] = manifest_lib.split_summary(entries, frames)
  return splits


def _joined(
  episodes: list[list[int]], pieces: list[list[int]]
) -> list[list[int]]:
  """Returns kept pieces as rows; adjacent pieces of an episode are one row."""
  rows = []
  places = sorted(map(tuple, pieces), key=lambda row: (row[1], row[2]))
  for source, record, first, length in episodes:
    inside = [
      (start, count)
      for _, at, start, count in places
      if at == record and first <= start < first + length
    ]
    joined: list[list[int]] = []
    for start, count in inside:
      if joined and joined[-1][2] + joined[-1][3] == start:
        joined[-1][3] += count
      else:
        joined.append([source, record, start, count])
    rows += joined
  return rows


def _link(
  manifest: manifest_lib.Manifest,
  made: manifest_lib.Manifest,
  folder: pathlib.Path,
) -> int:
  """Links the shards of a manifest, and tables; returns the copied shards."""
  copied = 0
  total = sum(len(each["shards"]) for each in made.splits.values())
  with progress.track(total=total, unit="shards", description="linking") as bar:
    for split, summary in made.splits.items():
      wanted = {entry["file"] for entry in summary["shards"]}
      if not wanted:
        continue
      (folder / split).mkdir(parents=True, exist_ok=True)
      for path, entry in manifest.shards(split):
        if entry["file"] not in wanted:
          continue
        copied += _link_or_copy(path, folder / split / path.name)
        table = path.with_suffix(".parquet")
        if table.is_file():
          _link_or_copy(table, folder / split / table.name)
        bar.update(1)
  sources = pathlib.Path(manifest.folder or "") / _SOURCES
  if sources.is_file():
    _link_or_copy(sources, folder / _SOURCES)
  return copied


def _link_or_copy(source: pathlib.Path, target: pathlib.Path) -> bool:
  """Makes a hard link; returns whether a copy had to be made instead."""
  try:
    os.link(source.resolve(), target)
    return False
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{source} is missing though the manifest lists it; copy the folder "
      "again or write it again."
    ) from error
  except OSError:
    # Another disk, or a file system without hard links.
    shutil.copy2(source, target)
    return True
