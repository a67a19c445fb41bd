"""Tests of which files are films, and of their splits."""

import csv
import dataclasses
import hashlib
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources
from genie_jax.core import errors

OPTIONS = options_lib.Options()


def touch(path):
  """Makes an empty file and its folders."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.touch()
  return path


def names(listing):
  """Returns the names of the files of a listing."""
  return [file.name for file in listing.files]


def good(count, seconds=100.0):
  """Returns that many good films."""
  return [
    sources.Source(
      0, f"/f/{k}.mp4", f"{k}.mp4", 1,
      hashlib.sha256(bytes([k])).hexdigest(), seconds,
    )
    for k in range(count)
  ]  # fmt: skip


def splits(rows):
  """Returns how many sources each split has."""
  found = [row.split for row in rows]
  return tuple(found.count(split) for split in sources.SPLITS)


def test_a_folder_is_searched_for_films_in_a_fixed_order(tmp_path):
  for name in ("b.mp4", "a/z.MKV", "a/readme.txt", "c.webm"):
    touch(tmp_path / name)
  found = sources.find(str(tmp_path))
  assert names(found) == ["a/z.MKV", "b.mp4", "c.webm"]
  assert found.others == 1


def test_links_in_circles_are_followed_once(tmp_path):
  touch(tmp_path / "in/a.mp4")
  (tmp_path / "in/loop").symlink_to(tmp_path)
  (tmp_path / "self").symlink_to(tmp_path / "self")
  assert names(sources.find(str(tmp_path))) == ["in/a.mp4"]


def test_names_with_newlines_and_without_utf8_are_found_and_shown(tmp_path):
  touch(tmp_path / "two\nlines.mp4")
  raw = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
  open(raw, "w").close()
  found = sources.find(str(tmp_path)).files
  assert [os.fsencode(file.path) for file in found] == [
    raw,
    os.fsencode(tmp_path / "two\nlines.mp4"),
  ]
  assert [sources.printable(file.name) for file in found] == [
    r"caf\xe9.mp4",
    r"two\nlines.mp4",
  ]


def test_an_unreadable_folder_is_listed_and_passed_by(tmp_path, monkeypatch):
  touch(tmp_path / "a.mp4")
  touch(tmp_path / "locked/b.mp4")
  scandir = os.scandir

  def guarded(path):
    if str(path).endswith("locked"):
      raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)

  # Permissions do not stop the superuser, who may run the tests.
  monkeypatch.setattr(os, "scandir", guarded)
  found = sources.find(str(tmp_path))
  assert names(found) == ["a.mp4"]
  assert found.unreadable == (str(tmp_path / "locked"),)
  (tmp_path / "a.mp4").unlink()
  with pytest.raises(errors.UserError, match="1 folders cannot be read"):
    sources.find(str(tmp_path))


def test_a_pipe_is_no_film_and_is_not_opened(tmp_path):
  os.mkfifo(tmp_path / "a.mp4")
  assert sources.status_of(str(tmp_path / "a.mp4")) == "is not a file"
  (tmp_path / "b.mp4").symlink_to(tmp_path / "nowhere")
  assert "No such file" in sources.status_of(str(tmp_path / "b.mp4"))


def test_the_folder_that_is_written_is_not_searched(tmp_path):
  touch(tmp_path / "a.mp4")
  touch(tmp_path / "out/b.mp4")
  found = sources.find(str(tmp_path), os.path.realpath(tmp_path / "out"))
  assert names(found) == ["a.mp4"]


def test_a_pattern_matches_films_and_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("d/a.mp4", "d/b.mkv", "e/c.mp4"):
    touch(tmp_path / name)
  assert names(sources.find("*/*.mp4")) == ["d/a.mp4", "e/c.mp4"]
  assert names(sources.find("d*")) == ["d/a.mp4", "d/b.mkv"]
  assert names(sources.find("**/*.mp4")) == ["d/a.mp4", "e/c.mp4"]
  with pytest.raises(errors.UserError, match="matches no file"):
    sources.find("*.avi")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_a_table_names_films_splits_and_actions(tmp_path, suffix):
  table = tmp_path / f"films.{suffix}"
  columns = {
    "path": ["x/a.mp4", "/b.mp4"],
    "split": ["test", ""],
    "actions": ["", "b.jsonl"],
  }
  if suffix == "parquet":
    pq.write_table(pa.table(columns), table)
  else:
    with open(table, "w", newline="") as file:
      writer = csv.writer(file, delimiter="\t" if suffix == "tsv" else ",")
      writer.writerows([columns.keys(), *zip(*columns.values(), strict=True)])
  found = sources.find(str(table)).files
  assert [dataclasses.astuple(file) for file in found] == [
    (str(tmp_path / "x/a.mp4"), "x/a.mp4", "test", ""),
    ("/b.mp4", "/b.mp4", "", str(tmp_path / "b.jsonl")),
  ]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "has no column `path`"),
    (b"file,split\na.mp4,\n", "its columns are file, split"),
    (b"path\n", "has no rows"),
    (b"path,split\na.mp4,trian\n", "row 1 has split 'trian'.*'train'"),
    (b"path,split\n,\n", "row 1 has no path"),
    (b"path\n\xff\xfe\n", "not a table that can be read"),
    (b'path\na.mp4\n"b.mp4\nc.mp4\n', "unexpected end of data"),
    (b"path,actions\na.mp4,b\0.csv\n", "row 1 has actions"),
  ],
)
def test_a_nonsense_table_is_one_clear_line(tmp_path, content, message):
  table = tmp_path / "films.csv"
  table.write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    sources.find(str(table))


def test_a_damaged_parquet_is_one_clear_line(tmp_path):
  table = tmp_path / "films.parquet"
  table.write_bytes(b"PAR1 and nothing else")
  with pytest.raises(errors.UserError, match="not a table that can be read"):
    sources.find(str(table))


def test_a_table_that_may_not_be_read_is_one_clear_line(tmp_path, monkeypatch):
  (tmp_path / "films.csv").write_text("path\na.mp4\n")

  def refuse(*args, **kwargs):
    raise PermissionError(13, "Permission denied")

  # The user who runs the tests may be root, who may read everything.
  monkeypatch.setattr(sources, "open", refuse, raising=False)
  with pytest.raises(errors.UserError, match="Permission denied"):
    sources.find(str(tmp_path / "films.csv"))


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_actions_in_a_table_are_names_of_files(tmp_path, value):
  table = tmp_path / "films.parquet"
  pq.write_table(pa.table({"path": ["a.mp4"], "actions": [value]}), table)
  with pytest.raises(errors.UserError, match="row 1 has actions"):
    sources.find(str(table))


@pytest.mark.parametrize("where", ["nowhere", "gs://bucket/films"])
def test_films_that_are_not_there_are_one_clear_line(where):
  with pytest.raises(errors.UserError, match="--videos"):
    sources.find(where)


def test_splits_do_not_depend_on_the_order_of_the_films():
  rows = good(60)
  one = sources.assign(rows, [""] * 60, OPTIONS)
  other = sources.assign(rows[::-1], [""] * 60, OPTIONS)
  assert {r.name: r.split for r in one} == {r.name: r.split for r in other}
  train, validation, test = splits(one)
  assert train > 40 and validation > 1 and test > 1


@pytest.mark.parametrize("count", range(3, 9))
def test_three_films_are_enough_for_three_splits(count):
  found = splits(sources.assign(good(count), [""] * count, OPTIONS))
  assert min(found) >= 1 and sum(found) == count


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_films_are_divided_in_time_with_gaps(count):
  rows = sources.assign(good(count), [""] * count, OPTIONS)
  assert [row.source for row in rows] == list(range(3 * count))
  assert splits(rows) == (count, count, count)
  for film in range(count):
    train, validation, test = rows[3 * film : 3 * film + 3]
    assert (train.begin, train.end) == (0, 80)
    assert (validation.begin, validation.end) == (82, 90)
    assert (test.begin, test.end) == (92, 0)


def test_a_short_film_alone_is_train():
  rows = sources.assign(good(1, seconds=12.0), [""], OPTIONS)
  assert [(row.split, row.begin, row.end) for row in rows] == [("train", 0, 0)]


def test_shares_of_zero_leave_all_films_to_train():
  options = options_lib.Options(validation_share=0, test_share=0)
  assert splits(sources.assign(good(2), ["", ""], options)) == (2, 0, 0)


def test_a_tables_splits_win():
  rows = sources.assign(good(4), ["test", "train", "", ""], OPTIONS)
  assert [row.split for row in rows[:2]] == ["test", "train"]
  assert splits(rows)[1] == 1  # Of the two films that were left.
  with pytest.raises(errors.UserError, match="no good film for train"):
    sources.assign(good(2), ["test", "test"], OPTIONS)


def test_the_same_file_twice_is_used_once():
  rows = good(4)
  rows.append(dataclasses.replace(rows[1], name="again.mp4"))
  found = sources.assign(rows, [""] * 5, OPTIONS)
  assert (found[4].status, found[4].split) == ("copy", "")
  assert found[4].reason == "the same file as 1.mp4"


def test_no_good_film_is_one_line_that_says_why():
  bad = [
    dataclasses.replace(row, status="bad", reason="is empty") for row in good(5)
  ]
  with pytest.raises(errors.UserError, match=r"0\.mp4 is empty.*and 2 more"):
    sources.assign(bad, [""] * 5, OPTIONS)


def test_units_are_a_share_of_all_films_and_at_most_an_hour():
  rows = sources.assign(good(64), [""] * 64, OPTIONS)
  units = sources.plan_units(rows, OPTIONS)
  for split, some in units.items():
    assert sum(map(len, some)) == sum(row.split == split for row in rows)
    assert all(len(unit) <= 2 for unit in some)
  long = [dataclasses.replace(row, duration=3000.0) for row in rows]
  units = sources.plan_units(long, OPTIONS)
  assert all(len(unit) == 1 for some in units.values() for unit in some)
