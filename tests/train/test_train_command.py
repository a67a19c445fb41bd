"""Tests of processes, their data and compilation caches in `genie train`."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from genie_jax.cli import main, train
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.sharding import cluster, hosts, rendezvous
from genie_jax.train import loop
from tests.fixtures import stage_data
from tests.multihost import fleet

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = f"{ROOT / 'experiments' / 'coinrun' / 'tokenizer.py'}:smoke"


def refused(capsys, tmp_path, *flags):
  """Asserts exit code 2, a one-line error and no files; returns the error."""
  workdir = tmp_path / "run"
  code = main.main(
    ["train", "--config", CONFIG, "--workdir", str(workdir), *flags]
  )
  err = capsys.readouterr().err
  assert code == 2 and len(err.splitlines()) == 1, err
  assert not workdir.exists()
  return err


def test_distributed_on_needs_a_launcher(capsys, tmp_path):
  for flags in (("--distributed", "on"), ("--distributed",)):
    assert "no launcher names other processes" in refused(
      capsys, tmp_path, *flags
    )


def test_distributed_off_accepts_no_addresses(capsys, tmp_path):
  assert "--distributed off" in refused(
    capsys, tmp_path, "--distributed", "off", "--num-processes", "2"
  )


def test_invalid_flags_are_one_line_errors(capsys, tmp_path):
  assert "give all three" in refused(capsys, tmp_path, "--process-id", "1")
  assert "is not of the form HOST:PORT" in refused(
    capsys,
    tmp_path,
    "--coordinator",
    "a",
    "--num-processes",
    "2",
    "--process-id",
    "0",
  )
  assert "--profile-steps=x" in refused(
    capsys, tmp_path, "--profile-steps", "x"
  )


@pytest.mark.parametrize("text", ["5-2", "x", "0-3", "-4", "1-2-3"])
def test_an_invalid_range_of_steps_to_trace_raises_a_clear_error(text):
  with pytest.raises(errors.UserError, match="--profile-steps="):
    train._steps(text)


def test_a_range_or_a_step_is_parsed():
  assert train._steps("10-15") == (10, 15)
  assert train._steps("7") == (7, 7)
  assert train._steps("") is None


def test_help_states_the_exit_codes(capsys):
  with pytest.raises(SystemExit):
    main.main(["help", "train"])
  out = capsys.readouterr().out
  for word in ("143", "134", "--heartbeat-timeout", "--coordinator"):
    assert word in out


@pytest.fixture
def compilation_cache():
  """Restores JAX's settings of its compilation cache after a test."""
  names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_programs_are_cached_in_the_requested_folder_or_in_jaxs(
  compilation_cache, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  configured = jax.config.jax_compilation_cache_dir
  assert configured  # Set by JAX_COMPILATION_CACHE_DIR or by the caller.
  train._keep_compiled("")
  assert jax.config.jax_compilation_cache_dir == configured
  train._keep_compiled(str(tmp_path / "mine"))
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  jax.config.update("jax_compilation_cache_dir", None)
  train._keep_compiled("")
  assert jax.config.jax_compilation_cache_dir.startswith(
    str(tmp_path / "genie_jax" / "xla")
  )
  assert jax.config.jax_enable_compilation_cache
  train._keep_compiled("off")
  assert not jax.config.jax_enable_compilation_cache


def test_programs_of_several_cpu_processes_are_cached_only_if_requested(
  compilation_cache, tmp_path, monkeypatch
):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  kept = lambda: jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  train._keep_compiled("", alone=False)
  assert kept() is None
  train._keep_compiled(str(tmp_path / "mine"), alone=False)
  assert kept() == str(tmp_path / "mine")
  train._keep_compiled("", alone=False)  # As if set by the variable.
  assert kept() == str(tmp_path / "mine")
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  train._keep_compiled("", alone=False)
  assert kept().startswith(str(tmp_path / "genie_jax"))


class Left(Exception):
  """Raised instead of ending the process."""


@pytest.fixture
def among_others(compilation_cache, monkeypatch):
  """Makes this process act as process 1 of 2 that are connected."""

  def leave(code, process_id):
    assert process_id == 1
    raise Left(code)

  monkeypatch.setattr(rendezvous, "meet", lambda *words: None)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **b: None)
  monkeypatch.setattr(cluster, "exit_now", leave)


def ends(capsys, tmp_path):
  """Trains as process 1 of 2; returns the exit code and the error line."""
  with pytest.raises(Left) as left:
    main.main(
      [
        "train",
        "--config",
        CONFIG,
        "--workdir",
        str(tmp_path / "run"),
        "--coordinator",
        "127.0.0.1:1",
        "--num-processes",
        "2",
        "--process-id",
        "1",
      ]
    )
  err = capsys.readouterr().err
  said = [line for line in err.splitlines() if line.startswith("genie train:")]
  assert "Traceback" not in err and len(said) == 1, err
  return left.value.args[0], said[0]


def test_a_failed_join_is_a_one_line_error_with_a_restartable_exit_code(
  among_others, capsys, tmp_path, monkeypatch
):
  def fail(*words, **names):
    raise jax.errors.JaxRuntimeError("UNAVAILABLE: no\nservice")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  code, said = ends(capsys, tmp_path)
  assert code == 1
  assert "process 1 of 2 through 127.0.0.1:1 (UNAVAILABLE: no service)" in said


def test_an_error_of_the_machine_is_one_line_and_stops_all_processes(
  among_others, capsys, tmp_path, monkeypatch
):
  def fail(config):
    raise OSError(5, "Input/output error", "shard-3")

  monkeypatch.setattr(train, "_build", fail)
  code, said = ends(capsys, tmp_path)
  assert code == 1 and "shard-3" in said


DATA = (
  "--config",
  f"{ROOT / 'experiments/coinrun/dynamics.py'}:smoke",
  "--config.data.path=tokens",
)


def write_tokens(folder):
  return stage_data.write_tokens(
    folder / "tokens", (64, 64, 3), grid=(4, 4), num_codes=64
  )


def other_tokens(folder):
  """Writes tokens of the same form with another origin in the manifest."""
  written = write_tokens(folder)
  found = manifest.Manifest.read(written)
  made_by = {**found.made_by, "seed": 1}
  dataclasses.replace(found, made_by=made_by).write(written)
  return written


def test_data_that_differs_from_another_hosts_is_refused_before_training(
  capsys, tmp_path, monkeypatch
):
  read = manifest.Manifest.read
  own = read(write_tokens(tmp_path)).fingerprint
  other = read(other_tokens(tmp_path / "b")).fingerprint
  assert own != other
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(loop, "train", lambda *a, **b: pytest.fail("trained"))
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    hosts.multihost_utils,
    "process_allgather",
    lambda x: np.stack([x, x if x.dtype == bool else int(other[:7], 16)]),
  )
  code = main.main(["train", *DATA, "--workdir", str(tmp_path / "run")])
  line = capsys.readouterr().err.splitlines()[-1]
  assert code == 2 and not (tmp_path / "run").exists()
  assert f"{int(own[:7], 16)} on process 0, but {int(other[:7], 16)}" in line
  assert own[:12] in line and "give every host the same data" in line


@pytest.mark.slow
def test_hosts_with_different_data_at_one_path_all_end_with_code_2(tmp_path):
  places = [tmp_path / "a", tmp_path / "b"]
  for place, write in zip(places, (write_tokens, other_tokens), strict=True):
    place.mkdir()
    write(place)
  with fleet.running(
    tmp_path / "logs",
    2,
    *DATA,
    "--workdir",
    str(tmp_path / "run"),
    devices=1,
    folders=places,
  ) as both:
    assert both.codes() == [2, 2], both.text(0) + both.text(1)
  for n in (0, 1):
    assert "The fingerprint of the data in tokens is" in both.text(n)
    assert "Traceback" not in both.text(n)
  assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_has_an_exit_code_of_its_own(
  capsys, tmp_path
):
  words = ["train", *DATA[:2], "--workdir", str(tmp_path / "run")]
  words += [f"--config.data.path={write_tokens(tmp_path)}"]
  words += ["--config.start=random", "--config.optimizer.peak_lr=1e30"]
  words += ["--config.data.batch_size=8"]
  assert main.main(words) == 3
  (line,) = [
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith("genie train:")
  ]
  assert "a restart would end in the same way" in line
