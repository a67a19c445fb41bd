"""Tests of runs that consist of several commands."""

import json
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

import genie_jax
from genie_jax.core import steps


@pytest.fixture
def commands(monkeypatch):
  """Replaces processes; returns the list of commands that were started."""
  started, codes = [], {}

  def call(words):
    started.append(list(words))
    return codes.get(words[0], 0)

  monkeypatch.setattr(steps, "_call", call)
  return types.SimpleNamespace(started=started, codes=codes)


def test_steps_run_in_order_and_print_their_commands(
  commands, tmp_path, capsys
):
  planned = [
    steps.Step("first", ["data", "a b"]),
    steps.Step("second", lambda: ["train", str(len(commands.started))]),
  ]
  seconds = steps.run(planned, tmp_path / "seconds.json")
  # The second step's arguments were asked for after the first had ended.
  assert commands.started == [["data", "a b"], ["train", "1"]]
  assert list(seconds) == ["first", "second"]
  out = capsys.readouterr().out
  assert "$ genie data 'a b'\n" in out
  assert "[2/2] second\n" in out


def test_a_failed_step_ends_the_run_and_says_how_to_resume(commands, tmp_path):
  commands.codes["train"] = 137
  planned = [
    steps.Step("one", ["train"]),
    steps.Step("two", ["export"]),
  ]
  with pytest.raises(steps.StepFailed, match="'one' ended with code 137"):
    steps.run(planned, tmp_path / "seconds.json")
  assert commands.started == [["train"]]
  assert "one" in json.loads((tmp_path / "seconds.json").read_text())


def test_seconds_of_interrupted_runs_are_added_up(commands, tmp_path):
  clock = tmp_path / "seconds.json"
  clock.write_text('{"one": 100.0}')
  seconds = steps.run([steps.Step("one", ["data"])], clock)
  assert seconds["one"] >= 100.0
  assert json.loads(clock.read_text()) == seconds


def test_a_command_that_is_stopped_may_finish_its_work(tmp_path):
  # The command writes a file after it was stopped, as a checkpoint.
  (tmp_path / "command.py").write_text(
    "import pathlib, signal, sys, time\n"
    "def stop(number, frame):\n"
    "  time.sleep(0.5)\n"
    "  pathlib.Path('saved').touch()\n"
    "  sys.exit(9)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "pathlib.Path('ready').touch()\n"
    "time.sleep(60)\n"
  )
  run = (
    "import pathlib, sys\n"
    "from genie_jax.core import steps\n"
    "steps._GENIE = (sys.executable, 'command.py')\n"
    "try: steps.run([steps.Step('one', [])], pathlib.Path('s.json'))\n"
    "except steps.StepFailed as error: sys.exit(error.code)\n"
  )
  root = str(pathlib.Path(genie_jax.__file__).parent.parent)
  process = subprocess.Popen(
    [sys.executable, "-c", run],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": root},
  )
  while not (tmp_path / "ready").exists():
    assert process.poll() is None
    time.sleep(0.05)
  process.terminate()
  assert process.wait() == 9
  assert (tmp_path / "saved").exists()
  assert "one" in json.loads((tmp_path / "s.json").read_text())


def test_the_time_left_follows_the_pace_of_the_steps_before():
  step = steps.Step("two", [], 600.0)
  heading = lambda spent, expected: steps._heading(
    1, 3, step, 1200.0, spent, expected
  )
  assert heading(0.0, 0.0) == "[2/3] two, about 20 minutes left"
  assert heading(200.0, 100.0) == "[2/3] two, about 40 minutes left"
  # An earlier run had finished the first step.
  assert heading(1.0, 100.0) == "[2/3] two, about 10 minutes left"
