"""Tests of `genie plan` for training, with the TPU compiler."""

import dataclasses
import json
import os
import subprocess
import sys

import ml_collections
import pytest

from genie_jax.cli import main
from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.plan import aot_compile, child_process, topology, training
from genie_jax.plan.cost import collectives, schedule
from tests.cli.test_main import CONFIGS, refused
from tests.fixtures import toy_stage
from tests.plan import tpu_compiler

SMOKE = f"{CONFIGS / 'dynamics.py'}:smoke"
TOPOLOGY = topology.parse("v5e:2x2")
KEYS = {
  "fits",
  "hbm_gib_per_chip",
  "hbm_limit_gib",
  "params",
  "params_per_chip",
  "model_flops_per_step",
  "compiled_flops_per_step",
  "compiled_flops_by_pass",
  "hbm_gib_by_use",
  "step_seconds",
  "step_seconds_compute",
  "step_seconds_kernels",
  "step_seconds_exposed_comm",
  "mfu",
  "mfu_kernels_twice_as_slow",
  "tokens_per_day",
  "days",
  "chip_hours",
  "mesh",
  "remat",
  "compile_seconds",
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """Restores the environment after the test."""
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(name, "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def compiled(stage):
  """Compiles a toy stage; returns the compiled step and its estimate."""
  step = aot_compile.build_from_stage(
    stage, toy_stage.config(data__batch_size=65536), TOPOLOGY
  )
  found = aot_compile.compile_step(step)
  network = collectives.network(
    step.mesh.devices.flat, TOPOLOGY.dims, TOPOLOGY.wrap, TOPOLOGY.chip
  )
  return found, schedule.estimate(found.text, network)


def with_longer_loss(stage):
  """Returns the stage with a loss that is also computed for -inputs."""

  def loss(params, extra, batch, rng, step):
    outcome = stage.loss(params, extra, batch, rng, step)
    other = stage.loss(
      params, extra, {**batch, "inputs": -batch["inputs"]}, rng, step
    )
    fit = outcome.losses["fit"]
    total = fit.total + 0.5 * other.losses["fit"].total
    return outcome.replace(
      losses={**outcome.losses, "fit": fit.replace(total=total)}
    )

  return dataclasses.replace(stage, loss=loss)


@pytest.mark.slow  # Compiles for a long time.
@tpu_compiler.required
def test_memory_and_time_increase_with_the_model_and_the_loss(library):
  narrow, fast = compiled(toy_stage.make_stage(hidden=256))
  wide, slow = compiled(toy_stage.make_stage(hidden=1024))
  assert wide.memory.peak > 1.5 * narrow.memory.peak
  assert wide.memory.params == pytest.approx(4 * narrow.memory.params, rel=0.1)
  assert slow.compute > 1.5 * fast.compute
  more, later = compiled(with_longer_loss(toy_stage.make_stage(hidden=256)))
  assert more.memory.params == narrow.memory.params
  assert more.memory.temporaries > 1.2 * narrow.memory.temporaries
  assert later.compute > 1.2 * fast.compute


@tpu_compiler.required
def test_the_planned_step_is_the_step_of_training(library, monkeypatch):
  made = []
  real = aot_compile.step_lib.make_train_step
  monkeypatch.setattr(
    aot_compile.step_lib,
    "make_train_step",
    lambda *args: made.append(real(*args)) or made[-1],
  )
  step = aot_compile.build_from_stage(
    toy_stage.make_stage(), toy_stage.config(), TOPOLOGY
  )
  assert made == [step.function]
  from genie_jax.train import loop

  assert loop.step_lib is aot_compile.step_lib


@tpu_compiler.required
def test_a_plan_is_printed_and_written_as_json(tmp_path):
  path = tmp_path / "plan.json"
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "genie_jax.cli.plan",
      "--config",
      SMOKE,
      "--topology",
      "v5e:2x2",
      "--json",
      str(path),
      "--price",
      "2",
      "--breakdown",
      "--config.steps=100",
    ],
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
    env={k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"},
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stderr == ""  # libtpu logs nothing.
  report = json.loads(path.read_text())
  assert report.keys() >= KEYS
  assert report["fits"] and report["mesh"]["fsdp"] == 4
  assert report["hbm_limit_gib"] == 15.75
  assert (
    0
    < report["step_seconds"]
    == pytest.approx(
      report["step_seconds_compute"]
      + report["step_seconds_kernels"]
      + report["step_seconds_exposed_comm"]
    )
  )
  assert report["mfu"] == pytest.approx(
    report["model_flops_per_step"] / (report["step_seconds"] * 4 * 197e12)
  )
  assert report["days"] == pytest.approx(report["step_seconds"] * 100 / 86400)
  assert report["cost"] == pytest.approx(2 * report["chip_hours"])
  assert report["loops_of_unknown_length"] == []
  assert report["collectives"]
  assert set(report["hbm_gib_by_use"]) == {
    "parameters",
    "optimizer",
    "other_arguments",
    "activations",
    "temporaries",
    "program",
  }
  flops = report["compiled_flops_by_pass"]
  assert report["compiled_flops_per_step"] == pytest.approx(sum(flops.values()))
  # The matrix products of Muon are counted separately; without remat nothing is
  # recomputed.
  assert (flops["forward"] + flops["backward"]) / report[
    "model_flops_per_step"
  ] == pytest.approx(1, abs=0.03)
  assert flops["recomputed"] == 0 < flops["optimizer and other"]
  assert report["params"] / 4 <= report["params_per_chip"] < report["params"]
  for word in (
    "MFU",
    "hidden comm",
    "optimizer",
    "if every kernel takes",
    "activations",
    "compiled FLOPs",
    "M per chip",
  ):
    assert word in done.stdout


@pytest.mark.slow  # Compiles for a long time.
@tpu_compiler.required
def test_a_plan_of_two_slices_has_traffic_between_them(library):
  two = topology.parse("v5e:2x2", slices=2)
  report, text = training.plan(
    config_lib.load(
      SMOKE, ["--config.mesh.data=2", "--config.data.batch_size=8"]
    ),
    two,
  )
  assert text and report["fits"]
  assert (report["slices"], report["chips"]) == (2, 8)
  assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "frame": 1}
  between = {
    kind: row
    for kind, row in report["collectives"].items()
    if kind.startswith("between slices")
  }
  assert "between slices: all-reduce" in between
  # At least a device's shard of the gradients, and at most all of them in both
  # directions.
  sent = sum(row["bytes"] for row in between.values())
  assert 4 * report["params_per_chip"] <= sent <= 2 * 4 * report["params"]
  assert sum(row["seconds"] for row in between.values()) == pytest.approx(
    sent / two.chip.dcn_bandwidth
  )


@tpu_compiler.required
@pytest.mark.slow
def test_a_plan_that_does_not_fit_suggests_a_change_that_does(tmp_path, capsys):
  path = tmp_path / "plan.json"
  err = refused_plan(
    capsys,
    "--topology",
    "v5e:2x2",
    "--json",
    str(path),
    "--fixes",
    "1",
    "--config.data.batch_size=262144",
    "--config.model.transformer.remat=full",
  )
  report = json.loads(path.read_text())
  assert not report["fits"]
  over = report["hbm_gib_per_chip"] - report["hbm_limit_gib"]
  assert over > 0 and f"{over:.2f} GiB more" in err
  assert "accumulate=2" in err
  assert len(report["changes_tried"]) == 1


def refused_plan(capsys, *argv):
  code = main.main(["plan", "--config", SMOKE, *argv])
  assert code == 2
  return capsys.readouterr().err


def test_the_error_for_invalid_arguments_is_one_line(capsys):
  line = lambda *argv: refused(capsys, "plan", "--config", SMOKE, *argv)
  assert "v2, v3, v4, v5e, v5p, v6e, v7x" in line("--topology", "v9:4x4")
  assert "largest v5e" in line("--topology", "v5e:64x64")
  assert "--slices=0" in line("--topology", "v5e:2x2", "--slices", "0")
  assert "NAME=VALUE" in line("--topology", "v5e:2x2", "--option", "x")
  assert "--topology" in line()
  assert "did you mean" in line("--scaling-table", "812M")


@pytest.mark.parametrize(
  "flag, value",
  [
    ("players", "0"),
    ("price", "-1"),
    ("limit", "0"),
    ("fixes", "-1"),
    ("slices", "0"),
  ],
)
def test_a_number_out_of_range_is_rejected(capsys, monkeypatch, flag, value):
  monkeypatch.setattr(
    aot_compile, "set_up_compiler", lambda: pytest.fail("too late")
  )
  err = refused(
    capsys,
    "plan",
    "--config",
    SMOKE,
    "--topology",
    "v5e:2x2",
    "--sample",
    f"--{flag}",
    value,
  )
  assert f"--{flag}={value}" in err and "or more" in err


def test_the_scaling_table_has_every_row_and_the_error_lists_failed_ones(
  capsys, monkeypatch, tmp_path
):
  def planner(config, slice_, price, options):
    del price, options
    if config.model.transformer.num_layers == 18:  # 41M
      raise errors.UserError("A dimension does not split.")
    facts = {
      "model_flops_per_step": 1e15,
      "steps": 10,
      "mesh": {},
      "remat": "full",
      "accumulate": 1,
      "copied_whole": [],
    }
    if slice_.name == "v2:8x8":
      return facts | training.out_of_memory_report(
        aot_compile.OutOfMemory(10 * 2**30, None, 3.0), slice_
      ), ""
    return facts | {
      "fits": True,
      "hbm_gib_per_chip": 1.0,
      "hbm_limit_gib": 2.0,
      "step_seconds": 1.0,
      "mfu": 0.5,
      "calibrated": {"seconds_low": 0.75, "seconds_high": 1.25},
      "days": 7.0,
      "cost": 1000.0,
      "compile_seconds": 1.0,
    }, ""

  monkeypatch.setattr(child_process, "plan_training", planner)
  monkeypatch.setattr(aot_compile, "set_up_compiler", lambda: None)
  path = tmp_path / "table.json"
  argv = (
    "plan",
    "--config",
    str(CONFIGS.parent / "scaling/dynamics.py"),
    "--json",
    str(path),
    "--scaling-table",
  )
  code = main.main([*argv, "41M,96M,811M"])
  out, err = capsys.readouterr()
  err = err.splitlines()[-1]  # After the progress bar.
  assert code == 2 and "2 of 3 rows" in err and "811M" not in err
  assert "41M cannot be planned (A dimension does not split)" in err
  assert "96M does not fit the 14.96 GiB of a chip of v2:8x8" in err
  assert "needs 20.0" in err
  for size in ("41M", "96M", "811M"):
    assert f"\n{size}" in out
  found = json.loads(path.read_text())
  assert [row["fits"] for row in found] == [False, False, True]
  planned = found[2]
  assert (planned["chips"], planned["cost"]) == (128, 1000.0)
  # Days and cost follow the seconds of a step: 0.75 to 1.25 s instead of 1 s.
  assert planned["days_low"] == pytest.approx(7 * 0.75)
  assert planned["cost_high"] == pytest.approx(1250)
  assert "5.25 to 8.75" in out and "750 to 1,250" in out
  assert found[0].keys() == found[2].keys() | {"refused"}
  assert main.main([*argv, "811M"]) == 0
  capsys.readouterr()
  # An error in an override is reported before anything is compiled.
  assert "peak_lr" in refused(
    capsys, *argv, "all", "--config.optimizer.peek_lr=1"
  )


@tpu_compiler.required
def test_a_mesh_with_a_wrong_product_or_uneven_split_is_rejected(library):
  def error(override):
    with pytest.raises(errors.UserError) as raised:
      training.plan(config_lib.load(SMOKE, [override]), TOPOLOGY)
    return str(raised.value)

  assert "multiplies to 3 devices" in error("--config.mesh.fsdp=3")
  assert "is not divisible" in error("--config.data.batch_size=6")


def test_the_error_for_a_missing_compiler_says_what_to_install(
  capsys, monkeypatch, tmp_path
):
  monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "none.so"))
  err = refused(capsys, "plan", "--config", SMOKE, "--topology", "v5e:2x2")
  assert "none.so is not a file" in err and "libtpu==" in err
  monkeypatch.delenv("TPU_LIBRARY_PATH")
  monkeypatch.setattr(
    aot_compile.importlib.util, "find_spec", lambda name: None
  )
  monkeypatch.setattr(aot_compile.sys, "prefix", str(tmp_path))
  err = refused(capsys, "plan", "--config", SMOKE, "--topology", "v5e:2x2")
  assert str(tmp_path / "libtpu") in err
  assert aot_compile.library_requirement() in err
  # After installing it as the message says, it is found.
  library = tmp_path / "libtpu/libtpu/libtpu.so"
  library.parent.mkdir(parents=True)
  library.touch()
  aot_compile.set_up_compiler()
  assert aot_compile.os.environ["TPU_LIBRARY_PATH"] == str(library)


def test_the_compilers_messages_about_memory_are_parsed():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (23.30G) exceeds available HBM "
    "(15.75G)."
  )
  assert aot_compile._too_large(message) == (23.30 * 2**30, 15.75 * 2**30)
  message = "Used 98.94G of 95.74G hbm. Exceeded hbm capacity by 3.20G."
  assert aot_compile._too_large(message) == (98.94 * 2**30, 95.74 * 2**30)
  assert aot_compile._too_large("RESOURCE_EXHAUSTED: vmem") == (None, None)


def test_a_plan_that_does_not_fit_has_the_same_keys():
  report = training.out_of_memory_report(
    aot_compile.OutOfMemory(20 * 2**30, 15.5 * 2**30, 3.0),
    topology.parse("v3:2x2"),
  )
  # A chip has two devices.
  assert report["hbm_gib_per_chip"] == 40.0
  assert report["hbm_limit_gib"] == 31.0
  assert not report["fits"] and report["step_seconds"] is None
  missing = KEYS - report.keys()
  assert missing == {
    "params",
    "params_per_chip",
    "model_flops_per_step",
    "mesh",
    "remat",
  }


def test_a_crash_of_the_compiler_is_reported(monkeypatch):
  monkeypatch.setattr(child_process, "_plan_training", _crash)
  with pytest.raises(errors.UserError, match="crashed"):
    child_process.plan_training(ml_collections.ConfigDict(), TOPOLOGY)


def _crash(*args):
  del args
  os.abort()


def test_the_required_libtpu_is_that_of_the_installed_jax():
  assert aot_compile.library_requirement().startswith("libtpu==0.0.")
  assert issubclass(errors.UserError, ValueError)
