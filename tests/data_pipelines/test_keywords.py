"""Tests of the keyword filter over titles and descriptions."""

import csv

import pyarrow as pa
import pytest
from pyarrow import parquet

from data_pipelines.platformers import keywords
from genie_jax.cli import main

ROWS = [
  ("SuperTux 2D-Platformer SPEEDRUN", "", ""),
  # Full-width letters, and a typographic quote.
  ("\uff32\uff41\uff59\uff4d\uff41\uff4e any%", "", ""),
  ("Let\u2019s play RAYMAN", "", ""),
  ("Super_Mario_Bros speedruns", "", ""),
  ("C\u00e9leste", "a full\nplaythrough", ""),
  ("cooking", "a playthrough of Celeste", keywords.NO_PLATFORMER),
  ("celestejoy speedrun", "", keywords.NO_PLATFORMER),
  ("supercelebrated celestes", "gameplay", keywords.NO_PLATFORMER),
  ("Celeste", "the best moments", keywords.NO_ACTION),
  ("Celeste", "overgameplayed", keywords.NO_ACTION),
  ("Celeste MOVIE playthrough", "", f"{keywords.NEGATING} 'movie'"),
  ("Celeste playthrough", "unboxing of it", f"{keywords.NEGATING} 'unboxing'"),
  ("Celeste gameplay of the removie", "", ""),
  ("Rayman speedrun in Toyland", "", ""),
  ("", "", keywords.NO_PLATFORMER),
]


@pytest.mark.parametrize("title, description, reason", ROWS)
def test_each_video_is_kept_or_has_its_reason(title, description, reason):
  assert keywords.load().reason(title, description) == reason


def write(path, rows):
  names = ("id", "title", "description")
  columns = {
    name: [row[place] for row in rows] for place, name in enumerate(names)
  }
  if path.suffix == ".parquet":
    parquet.write_table(pa.table(columns), path)
    return path
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(names)
    writer.writerows(rows)
  return path


def filtered(table, out, *more):
  words = ("--table", str(table), "--out", str(out), *more)
  return main.main(["data", "filter", *words])


def reasons(path):
  if path.suffix == ".parquet":
    return parquet.read_table(path)["reason"].to_pylist()
  with open(path, newline="", encoding="utf-8") as file:
    return [row["reason"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize("to", [".csv", ".parquet"])
def test_all_rows_and_columns_are_kept_in_every_format(tmp_path, kind, to):
  rows = [
    (str(number), title, description)
    for number, (title, description, _) in enumerate(ROWS)
  ]
  table, out = write(tmp_path / f"in{kind}", rows), tmp_path / f"out{to}"
  assert filtered(table, out) == 0
  assert reasons(out) == [reason for *_, reason in ROWS]
  first = out.read_bytes()
  assert filtered(table, out) == 0 and out.read_bytes() == first
  only = tmp_path / f"only{to}"
  assert filtered(table, only, "--kept-only") == 0
  assert reasons(only) == [""] * sum(not reason for *_, reason in ROWS)


def test_own_word_lists_are_used(tmp_path, capsys):
  lists = tmp_path / "k.toml"
  lists.write_text(
    '[platformer]\nwords = ["chess"]\n[action]\nwords = ["match*"]\n'
    '[negating]\nwords = ["blitz"]\n'
  )
  table = write(tmp_path / "t.csv", [("1", "Chess matches", "")])
  assert filtered(table, tmp_path / "o.csv", "--keywords", str(lists)) == 0
  assert "kept 1 of 1" in capsys.readouterr().out
  assert keywords.load(lists).reason("Celeste speedrun", "")


@pytest.mark.parametrize(
  "text, message",
  [
    ("words = [", "is not TOML"),
    ('[platformer]\nwords = ["a"]\n', "[action] needs words"),
    ('[platformers]\nwords = ["a"]\n', "did you mean 'platformer'"),
    (
      '[platformer]\nwords = [" *"]\n[action]\nwords = ["a"]\n'
      '[negating]\nwords = ["a"]\n',
      "[platformer] needs words",
    ),
  ],
)
def test_bad_word_lists_are_one_clear_line(tmp_path, capsys, text, message):
  lists = tmp_path / "k.toml"
  lists.write_text(text)
  table = write(tmp_path / "t.csv", [("1", "a", "b")])
  assert filtered(table, tmp_path / "o.csv", "--keywords", str(lists)) == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and message in err


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("t.csv", b"id,name,description\n1,a,b\n", "no column 'title'"),
    ("t.csv", b"title,description\na,b\nc\n", "line 3 does not have the 2"),
    ("t.csv", b'title,description\n"a,b\n', "is not CSV"),
    ("t.csv", b"title,description\n\xff,b\n", "is not UTF-8"),
    ("t.csv", b"", "its columns are none"),
    ("t.csv", b"title,description\n", "has no rows"),
    ("t.parquet", b"nothing", "is not a Parquet file"),
    ("t.xlsx", b"", "ends in .csv or .parquet"),
    ("none.csv", None, "is no file"),
  ],
)
def test_bad_tables_are_one_clear_line_and_write_nothing(
  tmp_path, capsys, name, content, message
):
  table = tmp_path / name
  if content is not None:
    table.write_bytes(content)
  assert filtered(table, tmp_path / "out.csv") == 2
  err = capsys.readouterr().err.splitlines()
  assert message in err[-1]
  assert [path.name for path in tmp_path.iterdir()] == (
    [name] if content is not None else []
  )


@pytest.mark.parametrize("kind", [".csv", ".parquet"])
@pytest.mark.parametrize("to", [".csv", ".parquet"])
def test_a_table_of_which_nothing_is_kept_keeps_its_columns(tmp_path, kind, to):
  table = write(tmp_path / f"in{kind}", [("1", "cooking", "")])
  out = tmp_path / f"out{to}"
  assert filtered(table, out, "--kept-only") == 0
  names = (
    parquet.read_schema(out).names
    if to == ".parquet"
    else out.read_text().splitlines()[0].split(",")
  )
  assert names == ["id", "title", "description", "kept", "reason"]


def test_columns_keep_their_types_also_if_they_begin_with_nothing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(keywords, "_ROWS", 2)
  schema = pa.schema(
    {
      "title": pa.string(),
      "description": pa.string(),
      "url": pa.string(),
      "views": pa.int16(),
    }
  )
  rows = [
    {"title": "Celeste speedrun", "url": None, "views": number}
    for number in range(4)
  ]
  rows.append({**rows[0], "url": "last"})
  parquet.write_table(
    pa.Table.from_pylist(rows, schema), tmp_path / "t.parquet"
  )
  for words in ((), ("--kept-only",)):
    out = tmp_path / "out.parquet"
    assert filtered(tmp_path / "t.parquet", out, *words) == 0
    found = parquet.read_table(out)
    assert found.schema.field("views").type == pa.int16()
    assert found["url"].to_pylist() == [None] * 4 + ["last"]


@pytest.mark.parametrize("name", ["file/out.csv", "folder.csv"])
def test_an_output_that_cannot_be_written_is_refused_at_once(
  tmp_path, capsys, name
):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder.csv").mkdir()
  table = write(tmp_path / "t.csv", [("1", "a", "b")])
  assert filtered(table, tmp_path / name) == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and "folder" in err
