"""The keyword filter over titles and descriptions (Genie, appendix B.1).

The paper's rule: the title has keywords of 2D platform games, the title or the
description has an action word such as "speedrun" or "playthrough", and neither
has a negating word such as "movie" or "unboxing". The lists of words are in
`keywords.toml`. Rows are read and written a few at a time, so that a table may
be larger than memory.
"""

import collections
import contextlib
import csv
import dataclasses
import os
import pathlib
import re
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from genie_jax.core import buckets, errors, files, progress

DEFAULT = pathlib.Path(__file__).with_name("keywords.toml")
GROUPS = ("platformer", "action", "negating")
COLUMNS = ("title", "description")
ADDED = ("kept", "reason")

NO_PLATFORMER = "no platformer word in the title"
NO_ACTION = "no action word in the title or description"
NEGATING = "negating word"

_ROWS = 10_000  # Read at once.
# Descriptions may be longer than the csv module's own limit.
_LONGEST_FIELD = 1 << 24
# Typographic quotes and dashes, which NFKC keeps apart.
_PLAIN = str.maketrans(
  {"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'"}
  | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
)


@dataclasses.dataclass(frozen=True)
class Keywords:
  """The word lists, as one pattern each."""

  platformer: re.Pattern[str]
  action: re.Pattern[str]
  negating: re.Pattern[str]

  def reason(self, title: str, description: str) -> str:
    """Returns why a video is dropped; empty for one that is kept."""
    title, description = normalised(title), normalised(description)
    if not self.platformer.search(title):
      return NO_PLATFORMER
    texts = (title, description)
    if not any(self.action.search(text) for text in texts):
      return NO_ACTION
    for text in texts:
      if found := self.negating.search(text):
        return f"{NEGATING} {' '.join(found[0].split())!r}"
    return ""


def normalised(text: str) -> str:
  """Returns a text in one form: case, width, accents and quotes do not matter.

  Compatibility forms become plain ones ("\uff12\uff24" is "2d"), letters lose
  their accents ("Pok\u00e9mon" is "pokemon"), and case is folded.
  """
  text = unicodedata.normalize("NFKD", text.translate(_PLAIN))
  text = "".join(each for each in text if not unicodedata.combining(each))
  return unicodedata.normalize("NFKC", text).casefold()


def pattern(words: Sequence[str]) -> re.Pattern[str]:
  """Returns a pattern that finds any of the words, as whole words.

  Args:
    words: See the top of `keywords.toml`.
  """
  parts = []
  for word in words:
    stem = normalised(word.removesuffix("*").strip())
    text = r"[\s_-]+".join(re.escape(piece) for piece in stem.split())
    # Not `\b`: a word may end in a sign, as "100%" does, and an underscore
    # separates words in titles.
    parts.append(text + (r"\w*" if word.endswith("*") else ""))
  return re.compile(rf"(?<![^\W_])(?:{'|'.join(parts)})(?![^\W_])")


def load(path: files.PathLike | None = None) -> Keywords:
  """Reads the word lists.

  Args:
    path: A file like `keywords.toml`; None for that one.

  Raises:
    UserError: The file is missing, is not TOML, or lacks a list.
  """
  path = DEFAULT if path is None else pathlib.Path(path)
  try:
    found = tomllib.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, IsADirectoryError) as error:
    raise errors.UserError(
      f"--keywords {path} is no file; give a TOML file like {DEFAULT.name}."
    ) from error
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise errors.UserError(
      f"--keywords {path} is not TOML ({error}); repair it, or start from "
      f"{DEFAULT}."
    ) from error
  errors.check_fields(str(path), found, GROUPS)
  for group in GROUPS:
    words = found.get(group, {})
    words = words.get("words") if isinstance(words, dict) else None
    if not (
      isinstance(words, list)
      and words
      and all(isinstance(word, str) and word.strip(" *") for word in words)
    ):
      raise errors.UserError(
        f"--keywords {path}: [{group}] needs words = [...], a list of texts "
        "that are not empty."
      )
  return Keywords(**{group: pattern(found[group]["words"]) for group in GROUPS})


def filter_table(
  table: files.PathLike,
  out: files.PathLike,
  keywords: Keywords,
  *,
  kept_only: bool = False,
) -> dict[str, int]:
  """Writes a table with two more columns, kept and reason, for every row.

  Args:
    table: A .csv or .parquet file with the columns title and description.
    out: The .csv or .parquet file to write, atomically.
    keywords: The word lists.
    kept_only: Whether to leave out the rows that are dropped.

  Returns:
    Reason -> number of rows; the reason of kept rows is empty.

  Raises:
    UserError: A file is not such a table, or `out` is `table`.
  """
  table, target = pathlib.Path(table), buckets.disk(out, "--out")
  for flag, path in (("--table", table), ("--out", target)):
    if path.suffix not in (".csv", ".parquet"):
      raise errors.UserError(
        f"{flag} {path}: give a file that ends in .csv or .parquet."
      )
  if not table.is_file():
    raise errors.UserError(f"--table {table} is no file; give a table.")
  if target.exists() and os.path.samefile(table, target):
    raise errors.UserError(f"--out {target} is --table; give another file.")
  files.check_writable(target.parent, "--out")
  if target.is_dir():
    raise errors.UserError(f"--out {target} is a folder; give a file.")
  counts: dict[str, int] = collections.Counter()
  target.parent.mkdir(parents=True, exist_ok=True)
  temporary = files.temporary_sibling(target)
  reading = _csv_reader if table.suffix == ".csv" else _parquet_reader
  writing = _csv_writer if target.suffix == ".csv" else _parquet_writer
  try:
    with (
      reading(table) as (columns, batches),
      writing(temporary, columns) as write,
      progress.track(unit="videos", description="filtering") as bar,
    ):
      for rows in batches:
        for row in rows:
          title, description = (str(row[name] or "") for name in COLUMNS)
          reason = keywords.reason(title, description)
          row["kept"], row["reason"] = not reason, reason
          counts[reason] += 1
        write([row for row in rows if row["kept"] or not kept_only])
        bar.update(len(rows))
    if not counts:
      raise errors.UserError(f"--table {table} has no rows.")
    os.replace(temporary, target)
  finally:
    temporary.unlink(missing_ok=True)
  return dict(counts)


Rows = list[dict[str, Any]]
# Name -> its type in Parquet; None for text.
Columns = dict[str, Any]


def _check_columns(path: pathlib.Path, names: Sequence[str]) -> None:
  for name in COLUMNS:
    if name not in names:
      raise errors.UserError(
        f"--table {path} has no column {name!r}{errors.closest(name, names)}; "
        f"its columns are {', '.join(map(repr, names))[:200] or 'none'}."
      )


@contextlib.contextmanager
def _csv_reader(path: pathlib.Path) -> Iterator[tuple[Columns, Iterator[Rows]]]:
  csv.field_size_limit(_LONGEST_FIELD)
  with open(path, encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file, strict=True)
    with _csv_errors(path, reader):
      names = list(reader.fieldnames or [])
    _check_columns(path, names)
    yield dict.fromkeys(names), _csv_rows(path, reader)


@contextlib.contextmanager
def _csv_errors(
  path: pathlib.Path, reader: "csv.DictReader[str]"
) -> Iterator[None]:
  try:
    yield
  except csv.Error as error:
    raise errors.UserError(
      f"--table {path} line {reader.line_num} is not CSV ({error}); repair or "
      "remove it."
    ) from error
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f"--table {path} is not UTF-8 after line {reader.line_num} "
      f"({error.reason}); convert it first."
    ) from error


def _csv_rows(
  path: pathlib.Path, reader: "csv.DictReader[str]"
) -> Iterator[Rows]:
  rows: Rows = []
  while True:
    with _csv_errors(path, reader):
      row = next(reader, None)
    if row is None:
      break
    if None in row or None in row.values():
      raise errors.UserError(
        f"--table {path} line {reader.line_num} does not have the "
        f"{len(reader.fieldnames or [])} columns of the first line; repair or "
        "remove it."
      )
    rows.append(row)
    if len(rows) == _ROWS:
      yield rows
      rows = []
  yield rows


@contextlib.contextmanager
def _csv_writer(path: pathlib.Path, columns: Columns) -> Iterator[Any]:
  with open(path, "w", encoding="utf-8", newline="") as file:
    names = [*dict.fromkeys([*columns, *ADDED])]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    yield lambda rows: writer.writerows(
      [{**row, "kept": str(row["kept"]).lower()} for row in rows]
    )


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ModuleNotFoundError as error:
    raise errors.UserError(
      "Parquet files need pyarrow; install genie_jax with `pip install "
      "'genie_jax[videos]'`, or use .csv files."
    ) from error
  return pyarrow


@contextlib.contextmanager
def _parquet_reader(
  path: pathlib.Path,
) -> Iterator[tuple[Columns, Iterator[Rows]]]:
  pyarrow = _pyarrow()
  with contextlib.ExitStack() as stack:
    with _parquet_errors(path):
      file = stack.enter_context(pyarrow.parquet.ParquetFile(path))
      schema = file.schema_arrow
    _check_columns(path, schema.names)
    yield (
      dict(zip(schema.names, schema.types, strict=True)),
      _batches(path, file),
    )


@contextlib.contextmanager
def _parquet_errors(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (_pyarrow().ArrowException, OSError) as error:
    raise errors.UserError(
      f"--table {path} is not a Parquet file "
      f"({str(error).splitlines()[0][:100]}); write it again."
    ) from error


def _batches(path: pathlib.Path, file: Any) -> Iterator[Rows]:
  batches = file.iter_batches(_ROWS)
  while True:
    with _parquet_errors(path):
      batch = next(batches, None)
    if batch is None:
      return
    yield batch.to_pylist()


@contextlib.contextmanager
def _parquet_writer(path: pathlib.Path, columns: Columns) -> Iterator[Any]:
  pyarrow = _pyarrow()
  text = pyarrow.string()
  schema = pyarrow.schema(
    {
      **{name: kind or text for name, kind in columns.items()},
      "kept": pyarrow.bool_(),
      "reason": text,
    }
  )
  with pyarrow.parquet.ParquetWriter(path, schema) as writer:
    yield lambda rows: writer.write_table(
      pyarrow.Table.from_pylist(rows, schema=schema)
    )
