"""Tests that any wrong input ends in one line and code 2, without traceback.

Commands run in this process, and are refused before they compile anything.
"""

import json
import pathlib

import hypothesis
import pytest
from hypothesis import strategies as st

from genie_jax.cli import main
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.evals import curves, report
from genie_jax.plan import measured
from genie_jax.scaling import predictions, results, runs
from tests.fixtures import stage_data

_SMOKE = str(
  pathlib.Path(__file__).parents[2] / "experiments/coinrun/tokenizer.py:smoke"
)
# Whatever a JSON file may contain instead of what was written.
_OTHER = (
  b"",
  b"[1]",
  b"7",
  b'"text"',
  b"null",
  b"true",
  b'{"a":',
  b"\xff\xfe",
  b'{"a": NaN}',
  b'{"a": -1e999}',
  b'{"a": 1%s}' % (b"0" * 5000),
  b"[" * 100_000,
  b'{"a": %s0%s}' % (b"[" * 500, b"]" * 500),
)
# What a number, a text or a group may be replaced by.
_WRONG = st.sampled_from(
  [None, True, -1, 0, 1.5, 2**63, -(2**70), "", "x", "a\0", [], [None], {}]
)


def refused(capsys, *argv):
  """Asserts code 2 and one line of standard error, which is returned."""
  assert main.main([str(word) for word in argv]) == 2
  err = capsys.readouterr().err
  assert len(err.splitlines()) == 1 and len(err) < 1000, err
  return err


@pytest.mark.parametrize(
  "metrics",
  [
    *_OTHER,
    b'{"details": []}',
    b'{"details": {"control": 3}}',
    b'{"details": {"control": {"buttons": {"name": "left"}}}}',
    b'{"details": {"held": {"buttons": [{"button": "0"}]}}}',
  ],
)
def test_other_metrics_are_refused_by_export(capsys, tmp_path, metrics):
  path = tmp_path / "metrics.json"
  path.write_bytes(metrics)
  err = refused(
    capsys, "export", "--workdir", "no", "--out", "no", "--metrics", path
  )
  assert str(path) in err


@pytest.mark.parametrize(
  "flag, value, why",
  [
    ("--out", "", "Argument --out: the path is empty"),
    ("--out", " ", "Argument --out: the path is empty"),
    ("--out", "a\0b", "control characters"),
    ("--out", "a\nb", "control characters"),
    ("--out", "\udcff", "is not UTF-8"),
    ("--num-prompts", "1" * 40, "must be a finite number"),
    ("--num-prompts", "1" * 5000, "invalid int value"),
    ("--num-prompts", "nan", "invalid int value"),
    ("--sampling", "temperature=" + "[" * 99_999, ""),
    ("--sampling", "temperature=" + "1" * 5000, ""),
  ],
)
def test_odd_values_of_flags_are_one_line(capsys, flag, value, why):
  err = refused(capsys, "export", "--workdir", "no", "--out", "no", flag, value)
  assert why in err


def test_numbers_of_flags_are_finite(capsys):
  for value in ("nan", "inf", "-inf", "1e999"):
    err = refused(capsys, "play", f"--session-minutes={value}")
    assert "--session-minutes" in err and "finite" in err


@pytest.fixture
def file(tmp_path):
  """A file where a folder is needed."""
  (tmp_path / "file").write_text("x")
  return tmp_path / "file"


def test_a_file_where_a_folder_is_needed_is_one_line(capsys, tmp_path, file):
  clips = stage_data.write_clips(tmp_path / "clips", length=8)
  sheet = ("data", "inspect", clips, "--contact-sheet")
  for out in (tmp_path, file / "a.png", tmp_path / f"{'x' * 300}.png"):
    assert main.main([str(word) for word in (*sheet, out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]  # After the progress.
    assert "give another" in line and len(line) < 1000
  table = ("scaling", "table", "--json")
  for out in (tmp_path, file / "a.json", tmp_path / ("x" * 300)):
    refused(capsys, *table, out)


@pytest.mark.slow  # Builds the stage first.
def test_a_workdir_below_a_file_is_one_line(capsys, tmp_path, file):
  clips = stage_data.write_clips(tmp_path / "clips")
  train = ("train", "--config", _SMOKE, f"--config.data.path={clips}")
  assert str(file) in refused(capsys, *train, "--workdir", file / "below")


def check(door, *arguments):
  """Passes if a door accepts its input, or refuses it in one line."""
  try:
    door(*arguments)
  except errors.UserError as error:
    assert len(str(error)) < 600, error


@pytest.mark.parametrize(
  "door",
  [
    manifest.Manifest.read,
    curves.read,
    curves.losses,
    curves.started,
    measured.step_seconds,
    report.read_seconds,
    predictions.read,
    results.read,
    runs.Study.read,
  ],
)
@pytest.mark.parametrize("number", range(len(_OTHER)))
def test_files_of_other_json_are_refused(tmp_path, door, number):
  for name in ("manifest.json", "metrics.jsonl", "file.json"):
    (tmp_path / name).write_bytes(_OTHER[number])
  folders = ("curves", "manifest", "measured")
  file = door.__module__.endswith(folders)
  check(door, tmp_path if file else tmp_path / "file.json")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """A folder of clips and the content of its manifest."""
  folder = stage_data.write_clips(tmp_path_factory.mktemp("clips"), (8, 8, 3))
  return folder, (folder / "manifest.json").read_text()


def places(value, place=()):
  """Yields the place of every value within JSON."""
  yield place
  items = value.items() if isinstance(value, dict) else ()
  for key, inner in enumerate(value) if isinstance(value, list) else items:
    yield from places(inner, (*place, key))


def read_changed(clips, data):
  """Reads a manifest with one value replaced or removed, correctly signed."""
  folder, text = clips
  found = json.loads(text)
  place = data.draw(st.sampled_from([p for p in places(found) if p]))
  inner = found
  for key in place[:-1]:
    inner = inner[key]
  if data.draw(st.booleans()):
    inner[place[-1]] = data.draw(_WRONG)
  else:
    del inner[place[-1]]
  stated = {k: v for k, v in found.items() if k != "fingerprint"}
  if "fingerprint" in found and place != ("fingerprint",):
    found["fingerprint"] = manifest.config.fingerprint(stated)
  (folder / "manifest.json").write_text(json.dumps(found))
  try:
    read = manifest.Manifest.read(folder)
  except errors.UserError as error:
    assert "manifest.json" in str(error) and len(str(error)) < 600
    return
  # What was accepted can be used or is refused where it is used.
  for split in read.splits:
    check(read.sources, split)
    check(read.shards, split)
  assert read.fingerprint == found["fingerprint"]


@hypothesis.settings(max_examples=30, derandomize=True, deadline=None)
@hypothesis.given(st.data())
def test_a_manifest_with_any_wrong_value_is_refused(clips, data):
  read_changed(clips, data)


@pytest.mark.slow
@hypothesis.settings(max_examples=3000, deadline=None)
@hypothesis.given(st.data())
def test_manifests_with_many_wrong_values_are_refused(clips, data):
  read_changed(clips, data)


@hypothesis.settings(max_examples=50, derandomize=True, deadline=None)
@hypothesis.given(
  st.dictionaries(
    st.sampled_from(["step", "time", "loss", "steps_per_second", "a\nb"]),
    _WRONG,
  )
)
def test_any_line_of_metrics_is_read_or_refused(tmp_path_factory, line):
  folder = tmp_path_factory.mktemp("run")
  (folder / "metrics.jsonl").write_text(f"{json.dumps(line)}\n" * 3)
  (folder / "config.json").write_text('{"stage": "lam"}')
  check(curves.read, folder)
  check(measured.step_seconds, folder)
  curves.started(folder)
