"""Tests of recorded actions: what is read, how frames get them, what is bad."""

import json
import random

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from data_pipelines.videos import actions
from genie_jax.core import errors


def write_lines(path, rows):
  """Writes one JSON line for each row."""
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def vpt(*keys, buttons=()):
  """Returns a line with the fields of VPT's data."""
  return {
    "mouse": {
      "x": 640.0,
      "dx": 1.5,
      "dy": -2.0,
      "buttons": list(buttons),
      "newButtons": [],
    },
    "keyboard": {
      "keys": [f"key.keyboard.{key}" for key in keys],
      "newKeys": [],
      "chars": "",
    },
    "isGuiOpen": False,
    "tick": 7,
    "milli": 1625095743710,
  }


def test_vpt_lines_become_combinations_of_keys_and_buttons(tmp_path):
  path = write_lines(
    tmp_path / "a.jsonl",
    [vpt(), vpt("w"), vpt("space", "w"), vpt("left.shift", buttons=[0])],
  )
  found = actions.read(path)
  assert found.labels == ("none", "w", "space+w", "left_shift+mouse_0")
  assert found.times is None


@pytest.mark.parametrize(
  "row, label",
  [
    ({"keys": ["d", "A"]}, "a+d"),
    ({"keys": []}, "none"),
    ({"key": "w + space"}, "space+w"),
    ({"key": "+"}, "plus"),
    ({"keys": "Left  space"}, "left+space"),
    ({"action": "jump"}, "jump"),
    ({"action": "turn left"}, "turn_left"),
    ({"action": None}, "none"),
    ({"action": 12}, "12"),
    ({"mouse": {"buttons": [1]}}, "mouse_1"),
    ({"keyboard": None, "mouse": None}, "none"),
  ],
)
def test_other_lines_are_understood(tmp_path, row, label):
  assert actions.read(write_lines(tmp_path / "a.jsonl", [row])).labels == (
    label,
  )


@pytest.mark.parametrize(
  "line, message",
  [
    ('{"keys": ["a"', "line 2: is not JSON"),
    ("", "line 2: is empty"),
    ("[1]", "line 2: is not an object"),
    ('{"tick": 1}', 'line 2: has none of "keyboard"'),
    ('{"keys": [["a"]]}', "line 2: has keys .* no action"),
    ('{"action": -1}', "line 2: has action .* no action"),
    ('{"action": NaN}', "line 2: has action .* no action"),
    ('{"action": 65536}', "line 2: has action .* at most 65535"),
    ('{"action": 1e300}', "line 2: has action .* at most 65535"),
    ('{"action": "%s"}' % ("1" * 5000), "line 2: has action .* at most 65535"),
    ('{"keyboard": {"keys": "w"}}', r"line 2: has no list keyboard\.keys"),
    ('{"keyboard": {"keys": [true]}}', "line 2: .* are no keys"),
    ('{"keyboard": 3}', r"line 2: has no list keyboard\.keys"),
    ('{"keys": [], "time": 1}', 'line 2: some lines state "time"'),
  ],
)
def test_a_malformed_line_is_named_in_one_line(tmp_path, line, message):
  path = tmp_path / "a.jsonl"
  path.write_text(f'{{"keys": []}}\n{line}\n{{"keys": []}}\n')
  with pytest.raises(errors.UserError, match=message) as caught:
    actions.read(path)
  assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"keys": []}\n{"keys": ["\xff"]}\n')
  with pytest.raises(errors.UserError, match="line 2: is not UTF-8"):
    actions.read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_files_without_actions_or_that_are_missing_are_one_line(tmp_path, name):
  path = tmp_path / name
  with pytest.raises(errors.UserError, match="cannot be read") as caught:
    actions.read(path)
  assert "\n" not in str(caught.value)
  path.write_bytes(b"")
  with pytest.raises(errors.UserError) as caught:
    actions.read(path)
  assert "\n" not in str(caught.value)


def test_random_bytes_never_give_a_traceback(tmp_path):
  rng = random.Random(0)
  good = (
    b'time,key\n0,a\n1.5,"a+d"\n',
    b'{"keyboard": {"keys": ["w"]}}\n{"action": 3}\n',
  )
  for number in range(300):
    data = bytearray(rng.choice(good))
    for _ in range(rng.randrange(1, 5)):
      data[rng.randrange(len(data))] = rng.randrange(256)
    path = tmp_path / f"a{rng.choice(actions.SUFFIXES)}"
    path.write_bytes(data)
    try:
      assert actions.read(path).labels, number
    except errors.UserError as error:
      assert str(path) in str(error)


def test_tables_hold_an_action_until_the_next_row(tmp_path):
  csv = tmp_path / "a.csv"
  csv.write_text("\ufeffTime,Key,comment\n0.0,right,x\n0.5,right+a,\n1.25,,\n")
  table = tmp_path / "b.parquet"
  parquet.write_table(
    pyarrow.table(
      {"time": [0.0, 0.5, 1.25], "keys": [["right"], ["a", "right"], []]}
    ),
    table,
  )
  for path in (csv, table):
    found = actions.read(path)
    assert found.labels == ("right", "a+right", "none")
    assert found.times is not None
    assert found.times.tolist() == [0.0, 0.5, 1.25]


def test_events_of_keys_are_followed(tmp_path):
  path = tmp_path / "a.csv"
  path.write_text(
    "time,key,event\n0,right,down\n1,space,down\n2,space,up\n3,right,up\n"
  )
  assert actions.read(path).labels == ("right", "right+space", "right", "none")


@pytest.mark.parametrize(
  "text, message",
  [
    ("when,key\n0,a\n", 'needs "time"'),
    ("time,what\n0,a\n", 'needs "time"'),
    ("time,key\n0,a\nsoon,b\n", "line 3: has time 'soon'"),
    ("time,key\n0,a\n-1,b\n", "line 3: has time '-1'"),
    ("time,key\n0,a\nnan,b\n", "line 3: has time 'nan'"),
    ("time,key\n5,a\n4,b\n", "line 3: has time 4 after 5; sort it"),
    ("time,key\n0,a\n1\n", "line 3: has 1 columns"),
    ("time,key\n0,a++b\n", "line 2: has key .* no action"),
    ("time,key,event\n0,a,held\n", "line 2: has event 'held' of key 'a'"),
    ("time,key\n", "has no actions"),
  ],
)
def test_a_malformed_table_is_named_in_one_line(tmp_path, text, message):
  path = tmp_path / "a.csv"
  path.write_text(text)
  with pytest.raises(errors.UserError, match=message) as caught:
    actions.read(path)
  assert "\n" not in str(caught.value)


def test_names_do_not_depend_on_the_order_of_the_files():
  files = [["w", "none"], ["a+d", "w"], ["none"]]
  wanted = ("none", "a+d", "w")
  assert actions.names(files) == actions.names(files[::-1]) == wanted


def test_numbered_actions_keep_their_numbers():
  assert actions.names([["3"], ["0", "10"]]) == tuple(
    str(number) for number in range(11)
  )
  with pytest.raises(errors.UserError, match="number 70000"):
    actions.names([["70000"]])


@pytest.mark.parametrize("number", ["007", "7", " 7 ", "\u0667", 7, 7.0])
def test_a_number_has_one_form(tmp_path, number):
  path = write_lines(tmp_path / "a.jsonl", [{"action": number}])
  assert actions.read(path).labels == ("7",)


def lines(*labels):
  """Returns actions with one entry for each frame of a film."""
  return actions.Actions("film.jsonl", labels, None)


def rows(**times):
  """Returns actions of a table: label -> the second at which it begins."""
  return actions.Actions(
    "film.csv", tuple(times), np.array(list(times.values()), float)
  )


def test_each_frame_has_the_action_held_longest_until_the_next():
  found = rows(left=0.0, jump=0.18, right=0.34)
  known = actions.names([found])
  aligned = actions.align(found, [0, 0.1, 0.2, 0.3, 0.4], 0.5, known)
  assert [known[value] for value in aligned.values] == [
    "left",
    "left",  # For 0.08 s; jump for 0.02 s.
    "jump",
    "right",
    "right",
  ]
  assert aligned.values.dtype == np.int32
  assert aligned.note == "" and aligned.missing == 0


def test_a_tapped_key_is_not_lost_at_half_the_rate():
  found = lines("none", "none", "none", "jump", "left", "right", "none", "a")
  known = actions.names([found])
  aligned = actions.align(found, [0, 0.1, 0.2, 0.3], 0.4, known, film_frames=8)
  assert [known[value] for value in aligned.values] == [
    "none",
    "jump",
    "left",
    "a",
  ]


def test_one_line_for_each_kept_frame_is_kept_exactly():
  labels = [str(number) for number in range(100)]
  found = lines(*labels)
  for rate in (10, 15, 20, 30, 59.94):
    times = np.arange(100) / rate
    aligned = actions.align(found, times, 100 / rate, labels, 100)
    assert aligned.values.tolist() == list(range(100))


@pytest.mark.parametrize("count, word", [(10, "shorter"), (45, "longer")])
def test_actions_of_another_length_are_reported(count, word):
  found = lines(*["a"] * count)
  aligned = actions.align(
    found, np.arange(30) / 10, 3.0, ("none", "a"), film_frames=30
  )
  assert word in aligned.note and f"{count} lines" in aligned.note
  assert "\n" not in aligned.note
  assert aligned.recorded == pytest.approx(count / 10)
  assert aligned.missing == max(0, 30 - count)
  assert aligned.values.tolist() == [1] * min(count, 30) + [0] * (
    aligned.missing
  )


def test_a_frame_lost_at_the_end_is_not_reported():
  aligned = actions.align(
    lines(*["a"] * 29), np.arange(30) / 10, 3.0, ("none", "a"), film_frames=30
  )
  assert aligned.note == "" and aligned.missing == 1


def test_a_table_that_goes_on_after_the_film_is_reported():
  found = rows(a=0.0, b=9.0)
  aligned = actions.align(found, [0, 0.1], 0.2, ("none", "a", "b"))
  assert "9.00 s, after the film's end at 0.20 s" in aligned.note
  assert aligned.values.tolist() == [1, 1]


def test_no_key_is_held_before_the_first_row():
  aligned = actions.align(rows(a=0.2), [0, 0.1, 0.2, 0.3], 0.4, ("none", "a"))
  assert aligned.values.tolist() == [0, 0, 1, 1]


def test_an_action_that_the_data_set_lacks_is_named():
  with pytest.raises(errors.UserError, match=r"film\.jsonl has the action 'b'"):
    actions.align(lines("b"), [0.0], 0.1, ("none", "a"))


def test_no_frames_need_no_actions():
  aligned = actions.align(lines("a"), [], 0.0, ("none", "a"))
  assert aligned.values.shape == (0,) and aligned.missing == 0


def test_the_file_beside_a_film_is_found(tmp_path):
  film = tmp_path / "a.b.mp4"
  assert actions.beside(film) is None
  (tmp_path / "a.b.jsonl").touch()
  assert actions.beside(film) == tmp_path / "a.b.jsonl"
  (tmp_path / "a.b.mp4.csv").touch()
  with pytest.raises(errors.UserError, match="keep one"):
    actions.beside(film)


def test_a_film_whose_name_is_as_long_as_names_may_be_has_no_actions(tmp_path):
  assert actions.beside(tmp_path / ("a" * 251 + ".mp4")) is None
