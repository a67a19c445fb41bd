"""Tests of plans with the real TPU compiler, on a small model."""

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
PLACE = topology.parse("v5e:2x2")
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
  """Leaves the environment as it was."""
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(name, "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def compiled(stage):
  """Compiles a toy stage and returns it with its estimate."""
  step = aot_compile.assemble(
    stage, toy_stage.config(data__batch_size=65536), PLACE
  )
  found = aot_compile.compile_step(step)
  network = collectives.network(
    step.mesh.devices.flat, PLACE.dims, PLACE.wrap, PLACE.chip
  )
  return found, schedule.of(found.text, network)


def with_longer_loss(stage):
  """Returns the stage with a loss that also judges the negated inputs."""

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


@tpu_compiler.needed
def test_memory_and_seconds_move_with_the_model_and_the_loss(library):
  narrow, fast = compiled(toy_stage.make_stage(hidden=256))
  wide, slow = compiled(toy_stage.make_stage(hidden=1024))
  assert wide.memory.peak > 1.5 * narrow.memory.peak
  assert wide.memory.params == pytest.approx(4 * narrow.memory.params, rel=0.1)
  assert slow.compute > 1.5 * fast.compute
  more, later = compiled(with_longer_loss(toy_stage.make_stage(hidden=256)))
  assert more.memory.params == narrow.memory.params
  assert more.memory.temporaries > 1.2 * narrow.memory.temporaries
  assert later.compute > 1.2 * fast.compute


@tpu_compiler.needed
def test_the_compiled_function_is_the_one_that_training_calls(
  library, monkeypatch
):
  made = []
  real = aot_compile.step_lib.make_train_step
  monkeypatch.setattr(
    aot_compile.step_lib,
    "make_train_step",
    lambda *words: made.append(real(*words)) or made[-1],
  )
  step = aot_compile.assemble(toy_stage.make_stage(), toy_stage.config(), PLACE)
  assert made == [step.function]
  from genie_jax.train import loop

  assert loop.step_lib is aot_compile.step_lib


@tpu_compiler.needed
def test_a_plan_of_a_config_is_printed_and_written(tmp_path):
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
  assert done.stderr == ""  # Nothing of the TPU library's chatter.
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
  # Products of the model, and those of Muon; this one computes nothing again.
  assert (flops["forward"] + flops["backward"]) / report[
    "model_flops_per_step"
  ] == pytest.approx(1, abs=0.03)
  assert flops["recomputed"] == 0 < flops["optimizer and other"]
  assert report["params"] / 4 <= report["params_per_chip"] < report["params"]
  for word in (
    "MFU",
    "hidden comm",
    "optimizer",
    "twice as slow",
    "activations",
    "compiled FLOPs",
    "M a chip",
  ):
    assert word in done.stdout


@tpu_compiler.needed
def test_a_plan_of_two_slices_has_traffic_between_them(library):
  two = topology.parse("v5e:2x2", slices=2)
  report, text = training.make(
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
  # No less than a device's part of the gradients, and no more than all of
  # them there and back.
  sent = sum(row["bytes"] for row in between.values())
  assert 4 * report["params_per_chip"] <= sent <= 2 * 4 * report["params"]
  slow = two.chip.dcn_bandwidth
  assert sum(row["seconds"] for row in between.values()) == pytest.approx(
    sent / slow
  )


@tpu_compiler.needed
@pytest.mark.slow
def test_a_plan_that_does_not_fit_says_what_would(tmp_path, capsys):
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


def test_bad_topologies_and_meshes_are_one_line(capsys):
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
    ("price", "nan"),
    ("limit", "0"),
    ("fixes", "-1"),
    ("slices", "0"),
  ],
)
def test_a_number_that_no_plan_can_have_is_one_line(
  capsys, monkeypatch, flag, value
):
  monkeypatch.setattr(aot_compile, "prepare", lambda: pytest.fail("too late"))
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


def test_a_table_plans_every_row_and_names_those_without_a_plan(
  capsys, monkeypatch, tmp_path
):
  def make(config, place, price, options):
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
    if place.name == "v2:8x8":
      return facts | training.too_large(
        aot_compile.OutOfMemory(10 * 2**30, None, 3.0), place
      ), ""
    return facts | {
      "fits": True,
      "hbm_gib_per_chip": 1.0,
      "hbm_limit_gib": 2.0,
      "step_seconds": 1.0,
      "mfu": 0.5,
      "days": 7.0,
      "compile_seconds": 1.0,
    }, ""

  monkeypatch.setattr(child_process, "make", make)
  monkeypatch.setattr(aot_compile, "prepare", lambda: None)
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
  err = err.splitlines()[-1]  # Behind the progress bar.
  assert code == 2 and "2 of 3 rows" in err and "811M" not in err
  assert "41M is refused (A dimension does not split)" in err
  assert "96M does not fit the 14.96 GiB of a chip of v2:8x8" in err
  assert "needs 20.0" in err
  for size in ("41M", "96M", "811M"):
    assert f"\n{size}" in out
  found = json.loads(path.read_text())
  assert [row["fits"] for row in found] == [False, False, True]
  assert found[0].keys() == found[2].keys() | {"refused"}
  assert main.main([*argv, "811M"]) == 0
  capsys.readouterr()
  # A slip in an override is one line, before anything is compiled.
  assert "peak_lr" in refused(
    capsys, *argv, "all", "--config.optimizer.peek_lr=1"
  )


@tpu_compiler.needed
def test_a_mesh_that_does_not_multiply_or_divide_is_refused(library):
  def refuse(override):
    with pytest.raises(errors.UserError) as raised:
      training.make(config_lib.load(SMOKE, [override]), PLACE)
    return str(raised.value)

  assert "multiplies to 3 devices" in refuse("--config.mesh.fsdp=3")
  assert "does not split" in refuse("--config.data.batch_size=6")


def test_a_missing_compiler_is_one_line_with_what_to_install(
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
  # Installed as the message says, it is found.
  library = tmp_path / "libtpu/libtpu/libtpu.so"
  library.parent.mkdir(parents=True)
  library.touch()
  aot_compile.prepare()
  assert aot_compile.os.environ["TPU_LIBRARY_PATH"] == str(library)


def test_what_the_compiler_says_of_memory_is_read():
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
    "required for HLO temporaries (23.30G) exceeds available HBM "
    "(15.75G)."
  )
  assert aot_compile._too_large(message) == (23.30 * 2**30, 15.75 * 2**30)
  message = "Used 98.94G of 95.74G hbm. Exceeded hbm capacity by 3.20G."
  assert aot_compile._too_large(message) == (98.94 * 2**30, 95.74 * 2**30)
  assert aot_compile._too_large("RESOURCE_EXHAUSTED: vmem") == (None, None)


def test_a_plan_that_does_not_fit_is_still_whole():
  place = topology.parse("v3:2x2")
  step = {"topology": place.name}
  report = step | training.too_large(
    aot_compile.OutOfMemory(20 * 2**30, 15.5 * 2**30, 3.0), place
  )
  # Two devices a chip.
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


def test_a_crash_of_the_compiler_is_one_line(monkeypatch):
  monkeypatch.setattr(child_process, "_make", _crash)
  with pytest.raises(errors.UserError, match="crashed"):
    child_process.make(ml_collections.ConfigDict(), PLACE)


def _crash(*words):
  del words
  os.abort()


def test_the_library_belongs_to_the_installed_jax():
  assert aot_compile.library_requirement().startswith("libtpu==0.0.")
  assert issubclass(errors.UserError, ValueError)
