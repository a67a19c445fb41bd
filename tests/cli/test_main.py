"""Tests of exit codes, and that errors are one line."""

import errno
import json
import os
import pathlib

import pytest
from absl import logging

from genie_jax.cli import main, scaling
from genie_jax.core import errors
from tests.fixtures import stage_data

CONFIGS = pathlib.Path(__file__).parents[2] / "experiments" / "coinrun"
SMOKE = f"{CONFIGS / 'tokenizer.py'}:smoke"


def call(capsys, *argv):
  """Runs `genie`; returns its exit code and its standard error."""
  code = main.main([str(word) for word in argv])
  err = capsys.readouterr().err
  assert "Traceback" not in err
  return code, err


def refused(capsys, *argv):
  """Asserts code 2 and one line of standard error, which is returned."""
  code, err = call(capsys, *argv)
  assert code == 2 and len(err.splitlines()) == 1, err
  return err


def test_an_unknown_command_is_one_line(capsys):
  assert "trian" in refused(capsys, "trian", "--config", SMOKE)
  refused(capsys, "data", "coinrn")
  refused(capsys)


def test_an_unknown_flag_is_one_line_with_the_nearest(capsys):
  err = refused(
    capsys, "train", "--config", SMOKE, "--workdir", "w", "--wrokdir", "x"
  )
  assert err.startswith("genie train: Unknown argument '--wrokdir'")
  assert "did you mean '--workdir'" in err


def test_a_missing_flag_and_a_value_that_is_not_a_number_are_one_line(capsys):
  assert "--workdir" in refused(capsys, "train", "--config", SMOKE)
  assert "--stride" in refused(
    capsys,
    "tokenize",
    "--tokenizer",
    "a",
    "--clips",
    "b",
    "--out",
    "c",
    "--stride",
    "many",
  )


def test_an_unknown_config_field_is_one_line_with_the_nearest(capsys, tmp_path):
  err = refused(
    capsys,
    "train",
    "--config",
    SMOKE,
    "--workdir",
    tmp_path / "w",
    "--config.optimizer.peek_lr=1",
  )
  assert "did you mean 'optimizer.peak_lr'" in err
  assert not (tmp_path / "w").exists()


def test_overrides_need_a_value_and_a_command_with_a_config(capsys):
  err = refused(
    capsys, "train", "--config", SMOKE, "--workdir", "w", "--config.seed"
  )
  assert "--config.seed has no value" in err
  err = refused(capsys, "scaling", "table", "--config.seed=1")
  assert "genie scaling takes no config" in err


def test_an_override_and_its_value_may_be_two_arguments():
  assert main._overrides(["--config.a.b", "1", "--config.c=2"]) == [
    "--config.a.b=1",
    "--config.c=2",
  ]


def test_an_unknown_mode_or_config_file_is_one_line(capsys, tmp_path):
  err = refused(
    capsys,
    "train",
    "--config",
    f"{CONFIGS / 'lam.py'}:huge",
    "--workdir",
    tmp_path / "w",
  )
  assert "Unknown mode 'huge'" in err and "'smoke'" in err
  err = refused(
    capsys, "train", "--config", tmp_path / "no.py", "--workdir", "w"
  )
  assert "no.py is not a file" in err


def test_missing_folders_are_one_line(capsys, tmp_path):
  gone = tmp_path / "gone"
  train = ("train", "--config", SMOKE, "--workdir", tmp_path / "w")
  assert "config.data.path is empty" in refused(capsys, *train)
  assert f"{gone}" in refused(capsys, *train, f"--config.data.path={gone}")
  for argv in (
    ("data", "inspect", gone),
    ("sample", "--world", gone, "--actions", "0", "--out", gone / "a.gif"),
    ("tokenize", "--tokenizer", gone, "--clips", gone, "--out", gone / "t"),
    ("export", "--workdir", gone, "--out", gone / "w"),
    ("eval", "--world", gone, "--clips", gone, "--out", gone / "o"),
  ):
    assert f"{gone}" in refused(capsys, *argv), argv
  assert not gone.exists()


def test_data_of_another_world_is_one_line_with_both_values(capsys, tmp_path):
  clips = stage_data.write_clips(tmp_path / "clips", (8, 16, 3))
  err = refused(
    capsys,
    "train",
    "--config",
    SMOKE,
    "--workdir",
    tmp_path / "w",
    f"--config.data.path={clips}",
  )
  assert "[8, 16, 3]" in err and "[64, 64, 3]" in err
  tokens = stage_data.write_tokens(
    tmp_path / "tokens", (64, 64, 3), grid=(8, 8), num_codes=64
  )
  err = refused(
    capsys,
    "train",
    "--config",
    f"{CONFIGS / 'dynamics.py'}:smoke",
    "--workdir",
    tmp_path / "w",
    f"--config.data.path={tokens}",
  )
  assert "[8, 8]" in err and "[4, 4]" in err
  # Clips where tokens are needed.
  refused(
    capsys,
    "train",
    "--config",
    f"{CONFIGS / 'dynamics.py'}:smoke",
    "--workdir",
    tmp_path / "w",
    f"--config.data.path={clips}",
  )


def test_a_failure_of_the_machine_is_one_line_and_code_1(capsys, monkeypatch):
  def full(args):
    del args
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x")

  monkeypatch.setattr(scaling, "run", full)
  code, err = call(capsys, "scaling", "table")
  assert code == 1 and len(err.splitlines()) == 1
  assert err.startswith("genie scaling: ") and "No space left" in err


def test_a_message_of_several_lines_is_folded_into_one(capsys, monkeypatch):
  def fail(args):
    del args
    raise OSError("one\n  two\nthree")

  monkeypatch.setattr(scaling, "run", fail)
  assert call(capsys, "scaling", "table") == (
    1,
    "genie scaling: one two three\n",
  )


@pytest.mark.parametrize("kind", [errors.UserError, OSError, logging.warning])
def test_no_message_controls_the_terminal(capsys, monkeypatch, kind):
  def fail(args):
    del args
    raise_or_log = kind("\x1b]0;owned\x07 \x9b1m \u202e é")
    if isinstance(raise_or_log, Exception):
      raise raise_or_log
    return 0

  monkeypatch.setattr(scaling, "run", fail)
  err = call(capsys, "scaling", "table")[1]
  assert "\\x1b]0;owned\\x07 \\x9b1m \\u202e é" in err
  assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
  "bug",
  [
    KeyError("x"),
    TypeError(),
    ValueError("v"),
    AssertionError(),
    RuntimeError("r"),
  ],
)
def test_a_bug_keeps_its_traceback(bug, monkeypatch):
  def fail(args):
    del args
    raise bug

  monkeypatch.setattr(scaling, "run", fail)
  with pytest.raises(type(bug)):
    main.main(["scaling", "table"])


def test_ctrl_c_ends_with_the_code_of_the_shell(capsys, monkeypatch):
  def stop(args):
    del args
    raise KeyboardInterrupt

  monkeypatch.setattr(scaling, "run", stop)
  code, err = call(capsys, "scaling", "table")
  assert code == 130 and len(err.splitlines()) == 1


@pytest.mark.parametrize(
  "argv", [["help", "scaling"], ["scaling", "--help"], ["help"], ["--version"]]
)
def test_help_and_version_end_with_code_0(argv, capsys):
  with pytest.raises(SystemExit) as end:
    main.main(argv)
  assert end.value.code == 0
  out = capsys.readouterr().out
  assert "genie" in out


def test_the_scaling_table_is_printed_and_written(capsys, tmp_path):
  path = tmp_path / "table.json"
  assert main.main(["scaling", "table", "--json", str(path)]) == 0
  out = capsys.readouterr().out
  for row in json.loads(path.read_text()):
    line = next(x for x in out.splitlines() if x.startswith(row["name"]))
    assert f"{row['ratio']:.3f}" in line
  assert str(path) in out
