"""Finds the films that a user names, and numbers them.

A source is a film, or a part of one where there are too few films for splits.
"""

import csv
import dataclasses
import glob
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeGuard

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.videos import options as options_lib
from genie_jax.core import buckets, errors

# In a folder, files with other suffixes are not taken for films.
SUFFIXES = frozenset(
  [
    ".3g2",
    ".3gp",
    ".asf",
    ".avi",
    ".divx",
    ".f4v",
    ".flv",
    ".gif",
    ".h264",
    ".h265",
    ".hevc",
    ".ivf",
    ".m2ts",
    ".m2v",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".mxf",
    ".nut",
    ".ogm",
    ".ogv",
    ".rm",
    ".rmvb",
    ".ts",
    ".vob",
    ".webm",
    ".wmv",
    ".y4m",
  ]
)
SPLITS: tuple[str, ...] = ("train", "validation", "test")
GOOD, BAD, COPY = "good", "bad", "copy"
_TABLES = (".csv", ".tsv", ".parquet")
# Of a film that is divided in time: what is left out between two parts, and
# the shortest part.
_GAP_SHARE, _SHORTEST_GAP, _SHORTEST_PART = 0.01, 2.0, 5.0


@dataclasses.dataclass(frozen=True)
class File:
  """A file that may be a film.

  Attributes:
    path: To open it, absolute; bytes that are no UTF-8 are surrogates.
    name: As it is listed, relative to the folder or table.
    split: Its split if a table states it, "" otherwise.
    actions: Path of its recorded actions if a table states it, "" otherwise.
  """

  path: str
  name: str
  split: str = ""
  actions: str = ""


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a user named.

  Attributes:
    files: In the order of their names, or of the table.
    others: Number of files in a folder that are not taken for films.
    unreadable: Folders that could not be read.
  """

  files: list[File]
  others: int = 0
  unreadable: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
  """One row of `sources.parquet`.

  Attributes:
    source: Its number.
    path: As `File.path`.
    name: As `File.name`.
    size: Bytes.
    sha256: Of the file, "" where it could not be read.
    duration: Seconds, 0 where it is not known.
    width: Columns of the picture as it is stored.
    height: Rows.
    fps: Frames per second, 0 where it is not known.
    rotation: Degrees by which it is turned counter-clockwise.
    codec: Of its pictures.
    split: Its split, "" for a bad film and for a copy.
    status: "good", "bad", or "copy" for the same bytes as an earlier source.
    reason: Why it is bad, or which file it is a copy of.
    begin: Seconds at which the source begins in its film.
    end: Seconds at which it ends, 0 for the film's end.
    actions: Path of its recorded actions, "" for none.
    actions_sha256: Of that file.
    labels: The labels in it; none if it cannot be read.
    actions_problem: Why it cannot.
    film_frames: Frames of the film if actions need it and it is known, else 0.
  """

  source: int
  path: str
  name: str
  size: int = 0
  sha256: str = ""
  duration: float = 0.0
  width: int = 0
  height: int = 0
  fps: float = 0.0
  rotation: int = 0
  codec: str = ""
  split: str = ""
  status: str = GOOD
  reason: str = ""
  begin: float = 0.0
  end: float = 0.0
  actions: str = ""
  actions_sha256: str = ""
  labels: tuple[str, ...] = ()
  actions_problem: str = ""
  film_frames: int = 0

  @property
  def seconds(self) -> float:
    """Duration of the source, a guess where the film states none."""
    if self.end or self.begin:
      return max(0.0, (self.end or self.duration) - self.begin)
    return self.duration or 60.0


def printable(path: str) -> str:
  """Returns a path as one line of text that any terminal shows."""
  text = os.fsencode(path).decode("utf-8", "backslashreplace")
  return "".join(
    c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
  )


def find(videos: str, out: str = "") -> Listing:
  """Lists the files that a user names.

  Args:
    videos: A folder, a film, a pattern such as "films/*.mp4" (** for any
      folders), or a table with a column "path".
    out: A folder inside `videos` that is left out.

  Raises:
    UserError: There is no such file, or the table is wrong.
  """
  if buckets.is_remote(videos):
    raise errors.UserError(
      f"--videos {printable(videos)} is an address; copy the films to a disk, "
      "or mount their bucket as a folder."
    )
  if os.path.isdir(videos):
    found = _in_folder(videos, out)
    if not found.files and found.unreadable:
      raise errors.UserError(
        f"--videos {printable(videos)}: no film was found, and "
        f"{len(found.unreadable)} folders cannot be read, such as "
        f"{found.unreadable[0]}; allow it, or give another folder."
      )
    return found
  if os.path.exists(videos):
    if pathlib.Path(videos).suffix.lower() in _TABLES:
      return _in_table(videos)
    return Listing([File(os.path.abspath(videos), os.path.basename(videos))])
  if glob.has_magic(videos):
    return _in_pattern(videos, out)
  raise errors.UserError(
    f"--videos {printable(videos)} does not exist; give a folder, a pattern "
    "in quotes, or a table with a column `path`."
  )


def _in_folder(folder: str, out: str) -> Listing:
  files, others, unreadable = [], 0, []
  for path, name in _walk(folder, out, unreadable):
    if os.path.splitext(name)[1].lower() in SUFFIXES:
      files.append(File(path, name))
    else:
      others += 1
  files.sort(key=lambda file: os.fsencode(file.name))
  return Listing(files, others, tuple(sorted(unreadable)))


def _walk(
  folder: str, out: str, unreadable: list[str]
) -> Iterator[tuple[str, str]]:
  """Yields path and name of each file; each folder is visited once."""
  seen = set()
  fail = lambda error: unreadable.append(printable(error.filename))
  for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
    folders.sort(key=os.fsencode)
    try:
      status = os.stat(parent)
    except OSError as error:
      fail(error)
      folders.clear()
      continue
    place = (status.st_dev, status.st_ino)
    if place in seen or (out and os.path.realpath(parent) == out):
      folders.clear()
      continue
    seen.add(place)
    for name in names:
      path = os.path.join(parent, name)
      yield os.path.abspath(path), os.path.relpath(path, folder)


def _in_pattern(pattern: str, out: str) -> Listing:
  found = sorted(set(glob.glob(pattern, recursive=True)), key=os.fsencode)
  files, others, unreadable = [], 0, []
  for path in found:
    if not os.path.isdir(path):
      files.append(File(os.path.abspath(path), path))
    elif not pattern.endswith("**"):
      inside = _in_folder(path, out)
      files += [
        dataclasses.replace(file, name=os.path.join(path, file.name))
        for file in inside.files
      ]
      others += inside.others
      unreadable += inside.unreadable
  if not files:
    raise errors.UserError(
      f"--videos {printable(pattern)} matches no file; put the pattern in "
      "quotes and check its folder."
    )
  # A pattern may match a folder and the files in it.
  unique = {file.path: file for file in reversed(files)}
  ordered = sorted(unique.values(), key=lambda file: os.fsencode(file.name))
  return Listing(ordered, others, tuple(sorted(unreadable)))


def _in_table(path: str) -> Listing:
  rows = _read_table(path)
  folder = os.path.dirname(os.path.abspath(path))
  files = []
  for number, row in enumerate(rows, start=1):
    where = f"--videos {printable(path)}, row {number}"
    named = row.get("path")
    if not _names_file(named):
      raise errors.UserError(f"{where} has no path; give each row one.")
    split = row.get("split") or ""
    if split and split not in SPLITS:
      raise errors.UserError(
        f"{where} has split {split!r}; use train, validation, test or nothing"
        f"{errors.closest(str(split), SPLITS)}."
      )
    actions = row.get("actions") or ""
    if actions and not _names_file(actions):
      raise errors.UserError(
        f"{where} has actions {actions!r:.60}; give the path of a file, or "
        "nothing."
      )
    files.append(
      File(
        os.path.normpath(os.path.join(folder, named)),
        named,
        split,
        os.path.normpath(os.path.join(folder, actions)) if actions else "",
      )
    )
  return Listing(files)


def _names_file(value: Any) -> TypeGuard[str]:
  """Returns whether a cell can be the path of a file."""
  return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _read_table(path: str) -> list[dict[str, Any]]:
  """Returns the rows of a table that has a column "path"."""
  suffix = pathlib.Path(path).suffix.lower()
  try:
    if suffix == ".parquet":
      table = pq.read_table(path)
      names, rows = table.column_names, table.to_pylist()
    else:
      with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(
          file, delimiter="\t" if suffix == ".tsv" else ",", strict=True
        )
        rows, names = list(reader), reader.fieldnames or []
  except (
    OSError,
    pa.ArrowException,
    UnicodeDecodeError,
    csv.Error,
  ) as error:
    raise errors.UserError(
      f"--videos {printable(path)} is not a table that can be read ({error})."
    ) from error
  if "path" not in names:
    raise errors.UserError(
      f"--videos {printable(path)} has no column `path`"
      f"{errors.closest('path', [n for n in names if n])}; its columns are "
      f"{', '.join(map(str, names)) or 'none'}."
    )
  if not rows:
    raise errors.UserError(f"--videos {printable(path)} has no rows.")
  return rows


def status_of(path: str) -> os.stat_result | str:
  """Returns the status of a regular file, or why it cannot be read."""
  try:
    status = os.stat(path)
  except OSError as error:
    return error.strerror or "cannot be read"
  if not stat.S_ISREG(status.st_mode):
    return "is not a file"
  return status


def assign(
  found: Sequence[Source],
  stated: Sequence[str],
  options: options_lib.Options,
) -> list[Source]:
  """Marks copies, gives each good film its split and numbers the sources.

  Args:
    found: The films, in order.
    stated: The split that a table states for each, "" for none.
    options: With the shares of the splits.

  Raises:
    UserError: No film is good, or a table leaves no film for train.
  """
  rows = _without_copies(found)
  good = [k for k, row in enumerate(rows) if row.status == GOOD]
  if not good:
    raise errors.UserError(_no_good_film(rows))
  free = [k for k in good if not stated[k]]
  splits = {k: stated[k] for k in good if stated[k]}
  wanted = [
    split
    for split, share in (
      ("validation", options.validation_share),
      ("test", options.test_share),
    )
    if share and split not in splits.values()
  ]
  if free and len(splits) == 0 and len(free) < 1 + len(wanted):
    return _numbered(_in_parts(rows, options))
  splits |= _by_digest(rows, free, wanted, "train" in splits.values(), options)
  if "train" not in splits.values():
    raise errors.UserError(
      "The table's column `split` leaves no good film for train; give train "
      "at least one."
    )
  return _numbered(
    dataclasses.replace(row, split=splits.get(k, ""))
    for k, row in enumerate(rows)
  )


def _without_copies(found: Sequence[Source]) -> list[Source]:
  first: dict[str, str] = {}
  rows = []
  for row in found:
    if row.status == GOOD and row.sha256 in first:
      row = dataclasses.replace(
        row, status=COPY, reason=f"the same file as {first[row.sha256]}"
      )
    elif row.status == GOOD:
      first[row.sha256] = printable(row.name)
    rows.append(row)
  return rows


def _by_digest(
  rows: Sequence[Source],
  free: Sequence[int],
  wanted: Sequence[str],
  has_train: bool,
  options: options_lib.Options,
) -> dict[int, str]:
  """Returns split by row: by a number that the film's digest determines."""
  place = lambda k: int(rows[k].sha256[:16], 16) / 16**16
  ordered = sorted(free, key=lambda k: (place(k), rows[k].sha256))
  splits = {}
  for k in ordered:
    splits[k] = "train"
    if place(k) < options.validation_share:
      splits[k] = "validation"
    elif place(k) < options.validation_share + options.test_share:
      splits[k] = "test"
  # Few films may leave a split empty. Then it gets the next one in this order.
  for split in wanted:
    if split not in splits.values():
      spare = _spare(ordered, splits, keep=0 if has_train else 1)
      if spare is not None:
        splits[spare] = split
  if not has_train and ordered and "train" not in splits.values():
    splits[ordered[-1]] = "train"
  return splits


def _spare(
  ordered: Iterable[int], splits: dict[int, str], keep: int
) -> int | None:
  """Returns the first train film if more than `keep` are left."""
  train = [k for k in ordered if splits[k] == "train"]
  return train[0] if len(train) > keep else None


def _in_parts(
  rows: Sequence[Source], options: options_lib.Options
) -> list[Source]:
  """Divides each film in time: train first, then validation and test."""
  result = []
  for row in rows:
    if row.status != GOOD:
      result.append(row)
      continue
    gap = max(_SHORTEST_GAP, _GAP_SHARE * row.duration)
    ends = {
      "train": 1 - options.validation_share - options.test_share,
      "validation": 1 - options.test_share,
      "test": 1.0,
    }
    begin, parts = 0.0, []
    for split, share in ends.items():
      end = round(row.duration * share, 3)
      if end - begin >= _SHORTEST_PART:
        parts.append(
          dataclasses.replace(row, split=split, begin=round(begin, 3), end=end)
        )
        begin = end + gap
    if [part.split for part in parts][:1] != ["train"] or len(parts) == 1:
      parts = [dataclasses.replace(row, split="train")]
    elif parts[-1].end >= row.duration:
      parts[-1] = dataclasses.replace(parts[-1], end=0.0)
    result += parts
  return result


def _numbered(rows: Iterable[Source]) -> list[Source]:
  return [dataclasses.replace(row, source=k) for k, row in enumerate(rows)]


def _no_good_film(rows: Sequence[Source]) -> str:
  if not rows:
    return (
      "--videos names no film; in a folder, films are found by their suffix "
      "(.mp4, .mkv, .webm, ...)."
    )
  shown = "; ".join(f"{printable(row.name)} {row.reason}" for row in rows[:3])
  more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
  return (
    f"None of the {len(rows)} films can be used: {shown}{more}. Give at least "
    "one film that plays."
  )


def digest(rows: Sequence[Source]) -> str:
  """Returns one SHA-256 over names, bytes, splits and actions of sources."""
  total = hashlib.sha256()
  for row in rows:
    line = (printable(row.name), row.sha256, row.split, row.begin, row.end)
    if row.actions_sha256:
      line += (row.actions_sha256,)
    total.update(repr(line).encode())
  return total.hexdigest()


def plan_units(
  rows: Sequence[Source], options: options_lib.Options
) -> dict[str, list[list[Source]]]:
  """Groups the good sources of each split to units of work.

  A unit is one shard: sources one after another, of about a 32nd of all films
  or `unit_hours`, whichever is less. A longer film is a unit by itself.

  Args:
    rows: The sources.
    options: With `unit_hours`.
  """
  good = [row for row in rows if row.status == GOOD]
  total = sum(row.seconds for row in good)
  most = min(total / 32, options.unit_hours * 3600)
  units: dict[str, list[list[Source]]] = {split: [] for split in SPLITS}
  filled: dict[str, float] = dict.fromkeys(SPLITS, most)
  for row in good:
    if filled[row.split] + row.seconds > most:
      units[row.split].append([])
      filled[row.split] = 0.0
    units[row.split][-1].append(row)
    filled[row.split] += row.seconds
  return units
