"""Tests of the flags of `genie train` about processes and caches."""

import pathlib

import jax
import pytest

from genie_jax.cli import main
from genie_jax.cli import train as train_command

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT / 'experiments' / 'coinrun' / 'tokenizer.py'}:smoke"


def refused(capsys, tmp_path, *flags):
  """Asserts code 2 and one line before anything is written; returns it."""
  workdir = tmp_path / "run"
  code = main.main(
      ["train", "--config", CONFIG, "--workdir", str(workdir), *flags])
  err = capsys.readouterr().err
  assert code == 2 and len(err.splitlines()) == 1, err
  assert not workdir.exists()
  return err


def test_distributed_on_needs_a_launcher(capsys, tmp_path):
  for flags in (("--distributed", "on"), ("--distributed",)):
    assert "no launcher names other processes" in refused(
        capsys, tmp_path, *flags)


def test_distributed_off_takes_no_addresses(capsys, tmp_path):
  assert "--distributed off" in refused(
      capsys, tmp_path, "--distributed", "off", "--num-processes", "2")


def test_flags_that_do_not_fit_are_one_line(capsys, tmp_path):
  assert "give all three" in refused(capsys, tmp_path, "--process-id", "1")
  assert "is no HOST:PORT" in refused(
      capsys, tmp_path, "--coordinator", "a", "--num-processes", "2",
      "--process-id", "0")
  assert "--profile-steps=x" in refused(
      capsys, tmp_path, "--profile-steps", "x")


def test_help_states_the_exit_codes(capsys):
  with pytest.raises(SystemExit):
    main.main(["help", "train"])
  out = capsys.readouterr().out
  for word in ("143", "134", "--heartbeat-timeout", "--coordinator"):
    assert word in out


@pytest.fixture
def compilation_cache():
  """Puts JAX's settings of its cache back."""
  names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_kept_where_asked_else_where_jax_was_told(
    compilation_cache, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  told = jax.config.jax_compilation_cache_dir
  assert told  # as JAX_COMPILATION_CACHE_DIR or the caller has it
  train_command._keep_compiled("")
  assert jax.config.jax_compilation_cache_dir == told
  train_command._keep_compiled(str(tmp_path / "mine"))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  jax.config.update("jax_compilation_cache_dir", None)
  train_command._keep_compiled("")
  assert jax.config.jax_compilation_cache_dir.startswith(
      str(tmp_path / "genie_jax" / "xla"))
  assert jax.config.jax_enable_compilation_cache
  train_command._keep_compiled("off")
  assert not jax.config.jax_enable_compilation_cache
