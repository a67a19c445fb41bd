"""Tests of tables of ratings."""

import multiprocessing
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genie_jax.core import errors
from genie_jax.data import ratings

HEADER = b"clip,rating,time,labeller\n"


def test_the_newest_row_counts_and_undo_brings_back_the_one_before(tmp_path):
  path = tmp_path / "t.csv"
  with ratings.Table(path, "ann") as table:
    table.add("a", "1")
    table.add("a", "5")
    table.add("b", "skip")
    assert table.ratings.rated == {"a": 5}
    assert table.ratings.skipped == {"b"}
    table.add("a", "undo")
    table.add("b", "undo")
  found = ratings.read(path)
  assert found.rated == {"a": 1} and not found.skipped
  assert found.order == ["a"]


def test_names_with_commas_quotes_and_other_scripts_come_back(tmp_path):
  path = tmp_path / "t.csv"
  with ratings.Table(path, 'Zo\u00eb, "the" \u738b') as table:
    table.add("a,b", "5")
  assert ratings.read(path).rated == {"a,b": 5}


@pytest.mark.parametrize("labeller", ["", "a\nb", "x" * 65, "\x00"])
def test_a_labeller_needs_a_printable_name(tmp_path, labeller):
  with pytest.raises(errors.UserError, match="--labeller"):
    ratings.Table(tmp_path / "t.csv", labeller)


@pytest.mark.parametrize("cut", range(1, 29))
def test_a_table_that_was_cut_off_anywhere_loses_at_most_its_last_row(
  tmp_path, cut
):
  path = tmp_path / "t.csv"
  with ratings.Table(path, "ann") as table:
    for clip in "abc":
      table.add(clip, "5")
  content = path.read_bytes()
  path.write_bytes(content[:-cut])
  found = ratings.read(path)
  assert found.torn
  assert found.rated == {"a": 5, "b": 5}
  with ratings.Table(path, "ann") as table:
    assert table.torn
    table.add("c", "4")
  found = ratings.read(path)
  assert found.rated == {"a": 5, "b": 5, "c": 4} and not found.torn


def _rate(path):
  with ratings.Table(path, "ann") as table:
    number = 0
    while True:
      table.add(f"clip {number}", "5")
      number += 1


def test_a_killed_process_leaves_a_table_that_can_be_read(tmp_path):
  path = tmp_path / "t.csv"
  process = multiprocessing.get_context("spawn").Process(
    target=_rate, args=(path,)
  )
  process.start()
  while not path.exists() or path.stat().st_size < 500:
    assert process.is_alive()
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  rated = list(ratings.read(path).rated)
  assert rated == [f"clip {number}" for number in range(len(rated))]
  with ratings.Table(path, "ann") as table:
    assert len(table.ratings) == len(rated) > 5


def test_a_full_disk_leaves_the_table_as_it_was(tmp_path, monkeypatch):
  path = tmp_path / "t.csv"
  with ratings.Table(path, "ann") as table:
    table.add("a", "5")
    before = path.read_bytes()

    def fail(descriptor):
      raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
      patch.setattr(os, "fsync", fail)
      with pytest.raises(OSError, match="No space"):
        table.add("b", "5")
    assert path.read_bytes() == before
    assert table.ratings.rated == {"a": 5}
    table.add("b", "4")
  assert ratings.read(path).rated == {"a": 5, "b": 4}


@pytest.mark.parametrize(
  "content, message",
  [
    (b"a,b,c\n", "begins with 'a,b,c'"),
    (b"hello", "begins with 'hello'"),
    (HEADER + b"a,6,t,n\n", "line 2 rates clip 'a' as '6'"),
    (HEADER + b"a,5,t,n\n,5,t,n\n", "line 3 rates clip ''"),
    (HEADER + b"a,5,t\n", "line 2 has 3 columns"),
    (HEADER + b"a,5,t,n\n\n", "line 3 has 0 columns"),
    (HEADER + b"a,undo,t,n\n", "there is nothing to undo"),
    (HEADER + b'"a,5,t,n\n', "is not CSV"),
    (HEADER + b"\xff,5,t,n\n", "is not a text file"),
    (b"\x89PNG\r\n\x1a\n\0\0", "is not a text file"),
  ],
)
def test_nonsense_is_one_clear_line(tmp_path, content, message):
  path = tmp_path / "t.csv"
  path.write_bytes(content)
  for act in (ratings.read, lambda p: ratings.Table(p, "ann").__enter__()):
    with pytest.raises(errors.UserError, match=message) as raised:
      act(path)
    assert "\n" not in str(raised.value)
  assert path.read_bytes() == content


@given(st.binary(max_size=200))
def test_any_bytes_are_a_table_or_one_line(content):
  try:
    ratings.parse(HEADER + content, "t.csv")
    ratings.parse(content, "t.csv")
  except errors.UserError as error:
    assert "\n" not in str(error)


def test_ratings_of_another_folder_are_refused_and_unknown_ones_counted():
  found = ratings.parse(HEADER + b"a,5,t,n\nb,1,t,n\n", "t.csv")
  assert found.check({"a", "c"}, "t.csv") == 1
  with pytest.raises(errors.UserError, match="none of this folder"):
    found.check({"c"}, "t.csv")
