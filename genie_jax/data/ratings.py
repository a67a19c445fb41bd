"""Tables of ratings: an append-only CSV file, one row for each key press.

    clip,rating,time,labeller
    train-0-0-0,5,2026-11-30T09:15:02Z,ann
    train-0-10-0,skip,2026-11-30T09:15:07Z,ann
    train-0-10-0,undo,2026-11-30T09:15:09Z,ann

`rating` is 1 to 5; "skip"; or "undo", which cancels the newest row of the clip
that is not yet cancelled. The newest remaining row of a clip counts. Each row
is on the disk before the page learns of it. A last line without an end, as a
killed machine leaves it, was never reported as stored; it is ignored, and
removed before the next row is written.
"""

import csv
import dataclasses
import datetime
import fcntl
import io
import os
import pathlib
import types
from collections.abc import Collection
from typing import Self

from genie_jax.core import buckets, errors, files

COLUMNS = ("clip", "rating", "time", "labeller")
GOOD, BAD = 5, 1
SKIP, UNDO = "skip", "undo"
_RATINGS = tuple(str(rating) for rating in range(1, 6))
_HEADER = ",".join(COLUMNS)
_MOST_NAME = 64
_MOST_ID = 200


@dataclasses.dataclass
class Ratings:
  """What a table says about each clip.

  Attributes:
    marks: Clip -> its rows that were not undone, oldest first: "1" to "5" or
      "skip".
    order: Clips of these rows, in the order of the table.
    torn: Whether the last line is incomplete.
  """

  marks: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  order: list[str] = dataclasses.field(default_factory=list)
  torn: bool = False

  def __len__(self) -> int:
    return len(self.rated)

  @property
  def rated(self) -> dict[str, int]:
    """Clip -> rating, without skipped clips."""
    return {
      clip: int(marks[-1])
      for clip, marks in self.marks.items()
      if marks and marks[-1] != SKIP
    }

  @property
  def skipped(self) -> set[str]:
    """Clips that were skipped."""
    return {
      clip for clip, marks in self.marks.items() if marks and marks[-1] == SKIP
    }

  def add(self, clip: str, rating: str) -> None:
    """Adds a row.

    Raises:
      ValueError: There is nothing to undo.
    """
    marks = self.marks.setdefault(clip, [])
    if rating != UNDO:
      marks.append(rating)
      self.order.append(clip)
      return
    if not marks:
      raise ValueError("there is nothing to undo")
    marks.pop()
    # The newest occurrence is the last.
    at = len(self.order) - 1 - self.order[::-1].index(clip)
    del self.order[at]

  def check(self, known: Collection[str], where: object) -> int:
    """Returns how many rated clips are unknown.

    Args:
      known: Identifiers of the clips of a folder.
      where: The table, for the message.

    Raises:
      UserError: The table has ratings, but none of a known clip.
    """
    unknown = [clip for clip in self.rated if clip not in known]
    if unknown and len(unknown) == len(self.rated):
      raise errors.UserError(
        f"{where} rates {len(unknown)} clips, for example {unknown[0]!r:.60}, "
        "but none of this folder; give the table that belongs to the folder, "
        "and the same --clip-frames."
      )
    return len(unknown)


def read(path: files.PathLike) -> Ratings:
  """Reads a table.

  Raises:
    UserError: The file is missing, or a line is not a row of such a table.
  """
  try:
    content = pathlib.Path(path).read_bytes()
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path} does not exist; rate clips with `genie data label` first."
    ) from error
  except IsADirectoryError as error:
    raise errors.UserError(
      f"{path} is a folder; give a table of ratings, a CSV file."
    ) from error
  return parse(content, path)


def parse(content: bytes, where: object) -> Ratings:
  """Reads the content of a table; see `read`."""
  whole, end, rest = content.rpartition(b"\n")
  found = Ratings(torn=bool(rest))
  try:
    text = (whole + end).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f"{where} is not a text file ({error.reason} at byte {error.start}); "
      f"give a CSV file with the columns {_HEADER}."
    ) from error
  lines = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    header = next(lines, None)
    if header is None:
      if rest and not _HEADER.startswith(rest.decode("latin-1").strip()):
        header = [rest.decode("latin-1")]
      else:
        return found
    if tuple(header) != COLUMNS:
      raise errors.UserError(
        f"{where} begins with {','.join(header)!r:.60}, but a table of ratings "
        f"has the columns {_HEADER}; give a table that `genie data label` "
        "wrote."
      )
    for row in lines:
      _add(found, row, f"{where} line {lines.line_num}")
  except csv.Error as error:
    raise errors.UserError(
      f"{where} line {lines.line_num} is not CSV ({error}); repair or remove "
      "this line."
    ) from error
  return found


def _add(found: Ratings, row: list[str], where: str) -> None:
  if len(row) != len(COLUMNS):
    raise errors.UserError(
      f"{where} has {len(row)} columns, not {len(COLUMNS)} ({_HEADER}); repair "
      "or remove this line."
    )
  clip, rating, _, _ = row
  if not clip or rating not in (*_RATINGS, SKIP, UNDO):
    raise errors.UserError(
      f"{where} rates clip {clip!r:.40} as {rating!r:.20}; a rating is 1 to 5, "
      f"{SKIP} or {UNDO}, and a clip has a name; repair or remove this line."
    )
  try:
    found.add(clip, rating)
  except ValueError as error:
    raise errors.UserError(
      f"{where} cannot be applied to clip {clip!r:.40}: {error}; repair or "
      "remove this line."
    ) from error


class Table:
  """A table that one process appends to; used as a context manager.

  Attributes:
    ratings: Its content, kept up to date.
    torn: The incomplete last line that was removed; empty for none.
  """

  def __init__(self, path: files.PathLike, labeller: str):
    """Checks the arguments; opens nothing.

    Args:
      path: The CSV file; made when missing.
      labeller: Name to store with each rating.

    Raises:
      UserError: The name is empty, too long or has control characters, or the
        path is in a bucket.
    """
    if not 0 < len(labeller) <= _MOST_NAME or not labeller.isprintable():
      raise errors.UserError(
        f"--labeller {labeller!r:.80} must be a name of 1 to {_MOST_NAME} "
        "printable characters."
      )
    self.path = buckets.disk(path, "--labels")
    self._labeller = labeller
    self.ratings = Ratings()
    self.torn = ""

  def __enter__(self) -> Self:
    """Opens and locks the table.

    Raises:
      UserError: It is not a table of ratings, cannot be written, or another
        process has it open.
    """
    try:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      self._file = open(self.path, "a+b")
    except OSError as error:
      raise errors.UserError(
        f"--labels {self.path} cannot be written ({error.strerror}); give a "
        "file in a folder that you may write to."
      ) from error
    try:
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise errors.UserError(
          f"Another `genie data label` writes to {self.path}; end it, or give "
          "another --labels."
        ) from error
      self._file.seek(0)
      content = self._file.read()
      self.ratings = parse(content, self.path)
      whole, end, rest = content.rpartition(b"\n")
      if rest:
        self.torn = rest.decode("utf-8", "replace")
        self._file.truncate(len(whole + end))
        self.ratings.torn = False
      if not whole + end:
        self._write(list(COLUMNS))
    except BaseException:
      self._file.close()
      raise
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self._file.close()

  def add(self, clip: str, rating: str) -> None:
    """Appends a row; it is on the disk when this returns.

    Raises:
      ValueError: The rating is not one, or there is nothing to undo.
      OSError: The disk is full; the table is as it was before.
    """
    if rating not in (*_RATINGS, SKIP, UNDO) or not 0 < len(clip) <= _MOST_ID:
      raise ValueError("a rating is 1 to 5, skip or undo")
    if rating == UNDO and not self.ratings.marks.get(clip):
      raise ValueError("there is nothing to undo")
    now = datetime.datetime.now(datetime.UTC)
    stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    self._write([clip, rating, stamp, self._labeller])
    self.ratings.add(clip, rating)

  def _write(self, row: list[str]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(row)
    size = os.fstat(self._file.fileno()).st_size
    try:
      self._file.write(buffer.getvalue().encode())
      self._file.flush()
      os.fsync(self._file.fileno())
    except OSError:
      # A line that was written in part must not be followed by another.
      os.ftruncate(self._file.fileno(), size)
      raise
