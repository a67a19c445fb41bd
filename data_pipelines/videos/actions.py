"""Recorded actions of a film: which keys were held at each of its frames.

Two kinds of files are read:

  one JSON line a frame of the film, `NAME.jsonl`, as in the data of VPT
    (arXiv:2206.11795): {"keyboard": {"keys": ["key.keyboard.w"]},
    "mouse": {"buttons": [0]}, ...}; also {"keys": ["w", "space"]},
    {"action": "jump"} and {"action": 3}
  a table, `NAME.csv` or `NAME.parquet`, with a column "time" in seconds and a
    column "action", "key" or "keys" ("w space" or "w+space", nothing for no
    key), which holds until the next row; with a column "event" ("down" or
    "up") each row is one key that goes down or comes up

A JSON line may state "time" in seconds too, and then holds until the next line.

Keys that are held at once are one action, whose label joins their names in
alphabetical order with "+"; "none" is no key. The movement of the mouse is not
an action. `names` collects the labels of all files of a data set, and the
number of an action is its place there: one number for one label in every film.
"""

import codecs
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors, files

IDLE = "none"
SUFFIXES = (".jsonl", ".csv", ".parquet")
# A film may be this much longer or shorter than its actions, in seconds,
# before the difference is reported: a player's last frame is often lost.
TOLERANCE = 0.25
# Numbered actions above this are surely not actions of a game.
_LARGEST_NUMBER = 65_535
_NO_ACTION = f"which is no action; a number may be at most {_LARGEST_NUMBER}"

_TIMES = ("time", "seconds", "timestamp")
_ACTIONS = ("action", "keys", "key")
_DOWN = {"down", "press", "pressed", "1", "true"}
_UP = {"up", "release", "released", "0", "false"}
_LONGEST_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Actions:
  """The recorded actions of one film.

  Attributes:
    path: The file.
    labels: The label of each entry.
    times: float64 [entries], seconds at which each entry begins; None if there
      is one entry for each frame of the film.
  """

  path: str
  labels: tuple[str, ...]
  times: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Aligned:
  """Actions of the frames of a clip timeline.

  Attributes:
    values: int32 [n], the action that leads from each frame to the next.
    recorded: Seconds of the film that the file has actions for; None if a
      table's last row holds to the film's end.
    missing: Frames after the recorded actions, which have the idle action.
    note: How the file and the film differ; "" if they agree.
  """

  values: np.ndarray
  recorded: float | None
  missing: int
  note: str


def beside(film: files.PathLike) -> pathlib.Path | None:
  """Returns the file of actions beside a film, or None.

  It has the film's name with another ending, or with one more: `a.jsonl` or
  `a.mp4.jsonl` for `a.mp4`.

  Raises:
    UserError: There are several.
  """
  film = pathlib.Path(film)
  found = [
    path
    for suffix in SUFFIXES
    for path in (film.with_suffix(suffix), film.with_name(film.name + suffix))
    # Not `path.is_file()`, which raises where a name is too long.
    if path != film and os.path.isfile(path)
  ]
  if len(found) > 1:
    raise errors.UserError(
      f"{film} has actions in {found[0].name} and in {found[1].name}; keep one."
    )
  return found[0] if found else None


def read(path: files.PathLike) -> Actions:
  """Reads a file of recorded actions.

  Raises:
    UserError: The file cannot be read, or a line or row of it is malformed; the
      message names the first one.
  """
  path = pathlib.Path(path)
  readers = {
    ".jsonl": _read_lines,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
  }
  if path.suffix.lower() not in readers:
    raise errors.UserError(
      f"{path} is not a file of actions; its name must end in "
      f"{', '.join(SUFFIXES)}."
    )
  try:
    labels, times = readers[path.suffix.lower()](path)
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read ({error.strerror or error})."
    ) from error
  if not labels:
    raise errors.UserError(
      f"{path} has no actions; remove it, or record them again."
    )
  return Actions(
    str(path), tuple(labels), None if times is None else np.array(times)
  )


def names(found: Iterable[Actions | Iterable[str]]) -> tuple[str, ...]:
  """Returns the labels of a data set; an action's number is its label's place.

  If every label of every file is a whole number, actions keep these numbers.
  Otherwise "none" is action 0, and the other labels follow in alphabetical
  order. The order of the files does not matter.

  Args:
    found: Files from `read`, or the labels of each.

  Raises:
    UserError: An action has a number that is too large.
  """
  labels = set()
  for each in found:
    labels.update(each.labels if isinstance(each, Actions) else each)
  if labels and all(label.isdecimal() for label in labels):
    largest = max(map(int, labels))
    if largest > _LARGEST_NUMBER:
      raise errors.UserError(
        f"The recorded actions have the number {largest}, above "
        f"{_LARGEST_NUMBER}; number the actions from 0."
      )
    return tuple(str(number) for number in range(largest + 1))
  return (IDLE, *sorted(labels - {IDLE}))


def align(
  actions: Actions,
  frame_times: Sequence[float] | np.ndarray,
  duration: float,
  known: Sequence[str],
  film_frames: int | None = None,
) -> Aligned:
  """Returns the action of each frame of a film's timeline.

  A frame's action is the one that was held longest from its time until that of
  the next frame; of several, one with a key; of several of these, the earliest.

  Args:
    actions: From `read`.
    frame_times: [n], increasing, seconds in the film of the frames that are
      kept, for example each tenth of a second.
    duration: Seconds of the whole film.
    known: From `names`.
    film_frames: Number of frames of the film itself; None if it is not known
      and the file has as many lines as the film has frames. Line i belongs to
      frame i, which begins at i / film_frames of the duration.

  Raises:
    UserError: A label is not in `known`.
  """
  number_of = {label: number for number, label in enumerate(known)}
  unknown = set(actions.labels) - number_of.keys()
  if unknown:
    raise errors.UserError(
      f"{actions.path} has the action {min(unknown)!r}, which the data set's "
      f"{len(known)} actions do not have; collect the names of all files first."
    )
  numbers = np.array([number_of[label] for label in actions.labels], np.int32)
  idle = number_of.get(IDLE, 0)
  times = np.asarray(frame_times, np.float64)
  if actions.times is not None:
    # Before the first row no key is held.
    starts = np.concatenate([[-np.inf], actions.times])
    numbers = np.concatenate([[idle], numbers]).astype(np.int32)
    starts = np.append(starts, np.inf)
    recorded, last = None, float(actions.times[-1])
    note = (
      f"the last action is at {last:.2f} s, after the film's end at "
      f"{duration:.2f} s"
      if last > duration + TOLERANCE
      else ""
    )
  else:
    frames = len(numbers) if film_frames is None else film_frames
    step = duration / max(frames, 1)
    starts = np.arange(len(numbers) + 1) * step
    recorded, note = float(starts[-1]), ""
    if abs(len(numbers) - frames) * step > TOLERANCE:
      note = (
        f"{len(numbers)} lines of actions for {frames} frames: "
        f"{abs(recorded - duration):.2f} s "
        f"{'longer' if len(numbers) > frames else 'shorter'} than the film"
      )
  values, missing = _longest(numbers, starts, times, duration, idle)
  if missing and not note and missing * _step(times, duration) > TOLERANCE:
    note = f"no actions for the last {missing} frames"
  return Aligned(values, recorded, missing, note)


def _step(times: np.ndarray, duration: float) -> float:
  """Returns the seconds of a frame of a timeline."""
  return float(np.median(np.diff(times))) if len(times) > 1 else duration


def _longest(
  numbers: np.ndarray,
  starts: np.ndarray,
  times: np.ndarray,
  duration: float,
  idle: int,
) -> tuple[np.ndarray, int]:
  """Returns each frame's action, and the number of frames without one.

  Args:
    numbers: int32 [entries].
    starts: [entries + 1], where entry i begins and the one before it ends.
    times: [n].
    duration: Seconds of the film.
    idle: Number of the idle action.
  """
  ends = np.append(times[1:], times[-1:] + _step(times, duration))
  values, missing = np.full(len(times), idle, np.int32), 0
  # A frame that begins less than this before an entry's end is rounding.
  tiny = 1e-6
  heads = np.searchsorted(starts, times + tiny, side="right") - 1
  tails = np.searchsorted(starts, ends - tiny, side="left")
  for frame, (head, tail) in enumerate(zip(heads, tails, strict=True)):
    begin, end = max(int(head), 0), min(int(tail), len(numbers))
    if begin >= end:
      missing += 1
    elif end == begin + 1:
      values[frame] = numbers[begin]
    else:
      held: dict[int, float] = {}
      for entry in range(begin, end):
        length = min(starts[entry + 1], ends[frame]) - max(
          starts[entry], times[frame]
        )
        number = int(numbers[entry])
        held[number] = held.get(number, 0.0) + length
      most = max(held.values())
      longest = [number for number in held if held[number] > most - tiny]
      values[frame] = next(
        (number for number in longest if number != idle), longest[0]
      )
  return values, missing


def _bad(path: pathlib.Path, what: str, number: int, why: str) -> Exception:
  return errors.UserError(f"{path} {what} {number}: {why}.")


def _brief(value: Any) -> str:
  text = value if isinstance(value, str) else json.dumps(value, default=str)
  return repr(
    text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."
  )


def _key(name: Any) -> str | None:
  """Returns the normal form of a key's name; None if it is not one."""
  if isinstance(name, bool) or not isinstance(name, str | int):
    return None
  text = str(name).strip().lower().removeprefix("key.keyboard.")
  text = "plus" if text == "+" else text.replace(".", "_").replace(" ", "_")
  if text.isdecimal():
    return _number(text)
  return text if text and text.isprintable() and "+" not in text else None


def _number(text: str) -> str | None:
  """Returns the one form of a number, "7" for "007"; None if it is too large.

  The text is not made a number before its length is known: Python refuses
  thousands of digits.
  """
  digits = text.lstrip("0") or "0"
  if len(digits) > len(str(_LARGEST_NUMBER)):
    return None
  number = int(digits)
  return str(number) if number <= _LARGEST_NUMBER else None


def _label(keys: Iterable[str]) -> str:
  return "+".join(sorted(set(keys))) or IDLE


def _label_of(column: str, value: Any) -> str | None:
  """Returns the label of text, a number or a list; None if it is no action.

  Keys in text are separated by "+" or spaces; an action may have spaces.
  """
  if value is None:
    return IDLE
  if isinstance(value, str):
    text = value.strip()
    if text.lower() in ("", IDLE):
      return IDLE
    between = r"\+" if column == "action" else r"\s*\+\s*|\s+"
    value = [text] if text == "+" else re.split(between, text)
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value) if 0 <= value <= _LARGEST_NUMBER else None
  if isinstance(value, float):
    if not (0 <= value <= _LARGEST_NUMBER and value.is_integer()):
      return None
    return str(int(value))
  if not isinstance(value, list):
    return None
  keys = [_key(name) for name in value]
  return None if None in keys else _label(key for key in keys if key)


def _read_lines(
  path: pathlib.Path,
) -> tuple[list[str], list[float] | None]:
  labels, times = [], []
  blank = None
  for number, line in _lines(path):
    if not line.strip():
      blank = blank or number
      continue
    if blank:
      raise _bad(path, "line", blank, "is empty, but each frame needs a line")
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise _bad(
        path, "line", number, f"is not JSON: {_brief(line.strip())}"
      ) from error
    label, why = _label_of_line(row)
    if label is None:
      raise _bad(path, "line", number, why)
    labels.append(label)
    time = row.get("time") if isinstance(row, Mapping) else None
    if (time is not None) != bool(times) and number > 1:
      raise _bad(
        path, "line", number, 'some lines state "time" and others do not'
      )
    if time is not None:
      times.append(_time(path, "line", number, time, times))
  return labels, times or None


def _label_of_line(row: Any) -> tuple[str | None, str]:
  """Returns the label of one JSON line; or None and what is wrong."""
  if not isinstance(row, Mapping):
    return None, f"is not an object: {_brief(row)}"
  for name in _ACTIONS:
    if name in row:
      label = _label_of(name, row[name])
      return label, f"has {name} {_brief(row[name])}, {_NO_ACTION}"
  if "keyboard" not in row and "mouse" not in row:
    return None, ('has none of "keyboard", "mouse", "keys", "key" and "action"')
  keys = []
  for device, field, prefix in (
    ("keyboard", "keys", ""),
    ("mouse", "buttons", "mouse_"),
  ):
    part = row.get(device) or {}
    values = part.get(field, []) if isinstance(part, Mapping) else None
    if not isinstance(values, list):
      return None, f"has no list {device}.{field}"
    found = [_key(value) for value in values]
    if None in found:
      return None, f"has {device}.{field} {_brief(values)}, which are no keys"
    keys += [prefix + key for key in found if key]
  return _label(keys), ""


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
  """Yields the lines of a text file with their numbers, from 1."""
  with open(path, "rb") as file:
    for number, line in enumerate(file, start=1):
      if number == 1:
        line = line.removeprefix(codecs.BOM_UTF8)
      try:
        yield number, line.decode()
      except UnicodeDecodeError as error:
        raise _bad(path, "line", number, "is not UTF-8") from error


def _read_csv(path: pathlib.Path) -> tuple[list[str], list[float]]:
  rows = csv.reader(line for _, line in _lines(path))
  try:
    head = [name.strip().lower() for name in next(rows, [])]
    table = []
    for row in rows:
      if not any(cell.strip() for cell in row):
        continue
      if len(row) != len(head):
        raise _bad(
          path,
          "line",
          rows.line_num,
          f"has {len(row)} columns, but the first line has {len(head)}",
        )
      table.append((rows.line_num, dict(zip(head, row, strict=True))))
  except csv.Error as error:
    raise _bad(path, "line", rows.line_num, f"is no CSV ({error})") from error
  return _read_table(path, "line", head, table)


def _read_parquet(path: pathlib.Path) -> tuple[list[str], list[float]]:
  import pyarrow
  from pyarrow import parquet

  try:
    found = parquet.read_table(path)
  except pyarrow.ArrowException as error:
    raise errors.UserError(
      f"{path} is not a Parquet file ({str(error).splitlines()[0][:120]})."
    ) from error
  head = [name.strip().lower() for name in found.column_names]
  found = found.rename_columns(head)
  table = list(enumerate(found.to_pylist(), start=1))
  return _read_table(path, "row", head, table)


def _read_table(
  path: pathlib.Path,
  what: str,
  head: Sequence[str],
  table: Sequence[tuple[int, Mapping[str, Any]]],
) -> tuple[list[str], list[float]]:
  """Returns labels and times of the rows of a table."""
  time_column = next((name for name in _TIMES if name in head), None)
  column = next((name for name in _ACTIONS if name in head), None)
  if time_column is None or column is None:
    raise errors.UserError(
      f"{path} has columns {', '.join(head)[:120]}; a table of actions needs "
      '"time" in seconds and one of "action", "key" and "keys".'
    )
  labels, times, held = [], [], set()
  for number, row in table:
    times.append(_time(path, what, number, row[time_column], times))
    label = _label_of(column, row[column])
    if label is None:
      raise _bad(
        path,
        what,
        number,
        f"has {column} {_brief(row[column])}, {_NO_ACTION}",
      )
    if "event" in head:
      event = str(row["event"]).strip().lower()
      if event not in _DOWN | _UP or label == IDLE:
        raise _bad(
          path,
          what,
          number,
          f"has event {_brief(row['event'])} of key {_brief(row[column])}; "
          "give a key, and down or up",
        )
      change = set(label.split("+"))
      held = held | change if event in _DOWN else held - change
      label = _label(held)
    labels.append(label)
  return labels, times


def _time(
  path: pathlib.Path, what: str, number: int, value: Any, before: list[float]
) -> float:
  try:
    time = math.nan if isinstance(value, bool) else float(value)
  except (TypeError, ValueError):
    time = math.nan
  if not math.isfinite(time) or time < 0:
    raise _bad(
      path, what, number, f"has time {_brief(value)}; give seconds from 0"
    )
  if before and time < before[-1]:
    raise _bad(
      path,
      what,
      number,
      f"has time {time:g} after {before[-1]:g}; sort it by time",
    )
  return time
