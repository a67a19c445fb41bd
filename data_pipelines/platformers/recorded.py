r"""Splits and ratings of recorded films, whose labels the recorder wrote.

Run:     python -m data_pipelines.platformers.recorded split FILMS [FILMS ...] \
             --out films.csv
         genie data videos --videos films.csv --out clips --keep-static
         python -m data_pipelines.platformers.recorded ratings \
             --films films.csv --clips clips --out clips-labels.csv

`split` reads `labels.csv` of each folder that `data_pipelines.recorder` wrote,
and gives all films of a session (a place of a game, with the films that were
made from it) the same split, so that no place is in two splits. `ratings` rates
each clip 5 if its film is good and 1 if it is bad, in place of a person;
`--without GAME` leaves a game out, to measure a classifier on a game that it
never saw.
"""

import argparse
import collections
import csv
import io
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import clip_list, ratings
from genie_jax.data import manifest as manifest_lib

_LABELS = "labels.csv"
_COLUMNS = ("file", "kind", "bad_kind", "game", "session")
_TABLE = ("path", "split", *_COLUMNS[1:])
_VALIDATION_SHARE, _TEST_SHARE = 0.2, 0.25
_LABELLER = "recorder"
# The label is a property of the film, not of a moment.
_TIME = "1970-01-01T00:00:00Z"

Row = dict[str, str]


def family(game: str) -> str:
  """Returns the game without its variant: "procgen" of "procgen-ninja"."""
  return game.partition("-")[0]


def split(folders: Sequence[files.PathLike], seed: int = 0) -> list[Row]:
  """Returns the films of recordings, with splits by session.

  Each family of games has sessions in every split if it has three or more; with
  two, one is for testing. Sessions with play and sessions of bad films only
  (menus) are divided separately.

  Args:
    folders: Folders of the recorder.
    seed: Equal seeds give equal splits of equal sessions.

  Returns:
    Rows with the columns path (absolute), split, kind, bad_kind, game and
    session.

  Raises:
    UserError: A folder has no table of labels, or it lacks a column.
  """
  films = [row for folder in folders for row in _films(pathlib.Path(folder))]
  groups: dict[tuple[str, bool], set[str]] = collections.defaultdict(set)
  plays = {row["session"] for row in films if row["kind"] == "good"}
  for row in films:
    session = row["session"]
    groups[family(row["game"]), session in plays].add(session)
  chosen = {}
  for key in sorted(groups):
    sessions = sorted(groups[key])
    order = np.random.default_rng(seed).permutation(len(sessions))
    count = len(sessions)
    test = max(1, round(_TEST_SHARE * count)) if count > 1 else 0
    held = max(1, round(_VALIDATION_SHARE * count)) if count > 2 else 0
    names = ["test"] * test + ["validation"] * held
    names += ["train"] * (count - len(names))
    for place, name in zip(order, names, strict=True):
      chosen[sessions[place]] = name
  return [{**row, "split": chosen[row["session"]]} for row in films]


def _films(folder: pathlib.Path) -> list[Row]:
  found = _read(folder / _LABELS, _COLUMNS)
  return [
    {"path": str((folder / row["file"]).resolve()), **row} for row in found
  ]


def _read(path: pathlib.Path, columns: Sequence[str]) -> list[Row]:
  try:
    with open(path, encoding="utf-8", newline="") as file:
      reader = csv.DictReader(file)
      rows = list(reader)
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path} does not exist; give a folder that `python -m "
      "data_pipelines.recorder` wrote, or a table that `split` wrote."
    ) from error
  except (UnicodeDecodeError, csv.Error) as error:
    raise errors.UserError(f"{path} is not CSV ({error}).") from error
  for name in columns:
    if name not in (reader.fieldnames or []):
      raise errors.UserError(
        f"{path} has no column {name!r}; it needs {','.join(columns)}."
      )
  if any(None in row.values() for row in rows):
    raise errors.UserError(
      f"{path} has a row with fewer columns than its first line; write it "
      "again."
    )
  return rows


def rated(
  films: Iterable[Mapping[str, str]],
  folder: files.PathLike,
  without: str = "",
) -> list[tuple[str, int]]:
  """Returns the clips of films with a rating of 5 or 1.

  Args:
    films: Rows of `split`.
    folder: The clips that `genie data videos` cut from these films.
    without: A family of games whose clips are not rated.

  Raises:
    UserError: The folder is not of these films.
  """
  by_path = {row["path"]: row for row in films}
  games = sorted({family(row["game"]) for row in by_path.values()})
  if without and without not in games:
    raise errors.UserError(
      f"--without {without}: no film is of this game"
      f"{errors.closest(without, games)}; the games are {', '.join(games)}."
    )
  found = []
  for clip, film in film_of_clip(folder).items():
    row = by_path.get(film)
    if row is None:
      raise errors.UserError(
        f"{folder} has clips of {film}, which is not in the table of films; "
        "cut the films of this table with `genie data videos --videos`."
      )
    if family(row["game"]) != without:
      found.append(
        (clip, ratings.GOOD if row["kind"] == "good" else ratings.BAD)
      )
  return found


def film_of_clip(folder: files.PathLike) -> dict[str, str]:
  """Returns clip -> path of its film, for the kept clips of a folder.

  Raises:
    UserError: There is no such folder, or its clips are not of films.
  """
  manifest = manifest_lib.Manifest.read(folder)
  known = {clip.id for clip in clip_list.clips(manifest)}
  found = {}
  for table in sorted(pathlib.Path(folder).glob("*/*.parquet")):
    columns = clip_list.read_table(table, ("clip_id", "path"))
    found |= {
      clip: path
      for clip, path in zip(columns["clip_id"], columns["path"], strict=True)
      if clip in known
    }
  if not found:
    raise errors.UserError(
      f"{folder} has no tables of clips; give a folder that `genie data "
      "videos` wrote."
    )
  return found


def read_films(path: files.PathLike) -> list[Row]:
  """Reads the table that `split` wrote.

  Raises:
    UserError: It is missing, or lacks a column.
  """
  return _read(pathlib.Path(path), _TABLE)


def _to_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(rows)
  return buffer.getvalue()


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of `python -m data_pipelines.platformers.recorded`."""
  parser = argparse.ArgumentParser(
    prog="python -m data_pipelines.platformers.recorded",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  commands = parser.add_subparsers(dest="command", required=True)
  one = commands.add_parser("split", help="give each session a split")
  one.add_argument("folders", nargs="+", metavar="FILMS")
  one.add_argument("--seed", type=int, default=0, metavar="N")
  one.add_argument("--out", required=True, metavar="FILE.csv")
  two = commands.add_parser("ratings", help="rate the clips of these films")
  two.add_argument("--films", required=True, metavar="FILE.csv")
  two.add_argument("--clips", required=True, metavar="DIR")
  two.add_argument("--without", default="", metavar="GAME")
  two.add_argument("--out", required=True, metavar="FILE.csv")
  args = parser.parse_args(argv)
  with errors.reported("recorded") as done:
    done.code = _run(args)
  return done.code


def _run(args: argparse.Namespace) -> int:
  files.check_writable(pathlib.Path(args.out).parent, "--out")
  if args.command == "split":
    if args.seed < 0:
      raise errors.UserError(f"--seed must be at least 0, not {args.seed}.")
    rows = split(args.folders, args.seed)
    lines = [[row[name] for name in _TABLE] for row in rows]
    files.write_atomic(args.out, _to_csv(_TABLE, lines))
    counts = collections.Counter((row["split"], row["kind"]) for row in rows)
    print(
      f"{args.out}: {len(rows)} films; "
      + ", ".join(
        f"{name} {kind} {count}"
        for (name, kind), count in sorted(counts.items())
      )
    )
    return 0
  found = rated(read_films(args.films), args.clips, args.without)
  lines = [[clip, rating, _TIME, _LABELLER] for clip, rating in found]
  files.write_atomic(args.out, _to_csv(ratings.COLUMNS, lines))
  good = sum(rating == ratings.GOOD for _, rating in found)
  print(f"{args.out}: {good} clips rated 5, {len(found) - good} rated 1")
  return 0


if __name__ == "__main__":
  sys.exit(main())
