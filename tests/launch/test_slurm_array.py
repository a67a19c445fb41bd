"""Tests of the array job of a scaling study, with a stand-in for srun."""

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "launch/slurm_array.sbatch"


def start(tmp_path, number, *files):
  """Runs the script; `genie` prints its arguments, one a line."""
  tools = tmp_path / ".venv" / "bin"
  tools.mkdir(parents=True, exist_ok=True)
  # srun drops its own option and runs the rest.
  for name, text in (
    ("srun", 'shift; exec "$@"'),
    ("genie", "printf '%s\\n' \"$@\"; exit 7"),
  ):
    (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
    (tools / name).chmod(0o755)
  return subprocess.run(
    [SCRIPT, *files],
    env={
      "PATH": os.environ["PATH"],
      "SLURM_SUBMIT_DIR": str(tmp_path),
      "SLURM_ARRAY_TASK_ID": str(number),
    },
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def commands(tmp_path):
  path = tmp_path / "commands.txt"
  path.write_text(
    "genie train --workdir first\ngenie train --workdir 'second one' --x=a,b\n"
  )
  return path


def test_each_task_runs_its_own_line_and_ends_with_its_code(tmp_path, commands):
  ended = start(tmp_path, 1, commands)
  assert ended.stdout.splitlines() == ["train", "--workdir", "first"]
  assert ended.returncode == 7
  ended = start(tmp_path, 2, commands)
  assert ended.stdout.splitlines() == [
    "train",
    "--workdir",
    "second one",
    "--x=a,b",
  ]


def test_a_task_without_a_line_or_a_file_is_refused(tmp_path, commands):
  ended = start(tmp_path, 3, commands)
  assert ended.returncode == 2 and "has no line 3" in ended.stderr
  for files in ((), (tmp_path / "none.txt",)):
    ended = start(tmp_path, 1, *files)
    assert ended.returncode == 2
    assert "give the file OUT/commands.txt" in ended.stderr
