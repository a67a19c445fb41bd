"""Tests of planning published runs, on a small model with the TPU compiler."""

import dataclasses
import json

import pytest

from genie_jax.cli import main
from genie_jax.core import errors
from genie_jax.plan import child_process
from genie_jax.plan.calibration import calibrate, decoder, published, ratios
from tests.plan import tpu_compiler

SHAPE = decoder.Shape(
  layers=3,
  width=256,
  heads=4,
  kv_heads=2,
  head_dim=128,
  mlp_dim=512,
  vocab=1024,
)
RUN = published.Run(
  name="toy",
  source="https://example.org/speed",
  setup="https://example.org/setup",
  topology="v5e:2x2",
  shape=SHAPE,
  length=1024,
  batch_per_device=2,
  fsdp=2,
  tensor=2,
  remat=decoder.Remat(dots=True),
  kernel=decoder.Kernel(block=512, fused=False),
  seconds=0.01,
)


@pytest.mark.slow  # Compiles for minutes.
@tpu_compiler.required
def test_compiled_flops_are_those_of_the_model_and_what_it_repeats(library):
  row, text = calibrate.plan(RUN)
  tokens = 4 * 2 * 1024
  table = SHAPE.vocab * SHAPE.width
  layer = 2 * 256 * 128 * (4 + 2) + 3 * 256 * 512
  # Products with weights: one forward, two backward. The one-hot vectors of the
  # lookup need no gradient.
  products = tokens * (6 * SHAPE.layers * layer + 6 * table + 4 * table)
  # Products of the size of the scores: two forward, two again, five for the
  # gradients of keys and values, three for that of queries. Of 2 x 2 blocks of
  # 512, three are not hidden.
  scores = 4 * 2 * 4 * (3 / 4) * 1024**2
  attention = SHAPE.layers * (2 + 2 + 5 + 3) * 2 * 128 * scores
  flops = tokens / 1024 * SHAPE.flops_per_sequence(1024)
  compiled = row["compiled_flops_over_model_flops"] * flops
  assert compiled == pytest.approx(products + attention, rel=0.01)
  assert row["loops_of_unknown_length"] == row["unknown_kernels"] == []
  assert "splash_mha_fwd" in text and "splash_mha_dq" in text
  assert row["ratio"] == pytest.approx(row["planned_seconds"] / 0.01)
  assert sum(row["planned_seconds_by_part"].values()) == pytest.approx(
    row["planned_seconds"]
  )
  assert row["fits"] and row["chips"] == 4


@pytest.mark.slow  # Compiles for minutes.
@tpu_compiler.required
def test_every_remat_policy_of_the_table_compiles(library):
  policies = {run.remat for run in published.RUNS.values()}
  assert RUN.remat in policies
  seen = {}
  for remat in policies - {RUN.remat}:
    row, _ = calibrate.plan(
      dataclasses.replace(
        RUN,
        remat=remat,
        fsdp=4,
        tensor=1,
        kernel=decoder.Kernel(block=1024, fused=True),
      )
    )
    seen[remat] = row["host_gigabytes"]
  # What is offloaded is copied there and back.
  for remat, gigabytes in seen.items():
    assert (gigabytes > 0) == bool(remat.offloaded)


def row_of(run, ratio):
  seconds = calibrate.published_seconds(run)
  planned = None if ratio is None else ratio * seconds
  return {
    "name": run.name,
    "topology": run.topology,
    "published_seconds": seconds,
    "planned_seconds": planned,
    "ratio": ratio,
    "mfu": None if ratio is None else 0.5,
    "fits": ratio is not None,
    "published_mfu": 0.5,
    "compiled_flops_over_model_flops": 1.5,
  }


NAMES = list(published.RUNS)[:4]


@pytest.fixture
def planned(monkeypatch):
  """Replaces the planner; returns the names of the runs that it planned.

  Their ratios are 1.2, 1.4 and so on, in the order in which they are planned.
  """
  names = []

  def planner(run):
    names.append(run.name)
    return row_of(run, 1.0 + 0.2 * len(names)), ""

  monkeypatch.setattr(child_process, "plan_published", planner)
  here = {"commit": "c" * 40, "clean": True, "libraries": {}}
  monkeypatch.setattr(calibrate, "program", lambda: here)
  monkeypatch.setattr(
    "genie_jax.plan.aot_compile.set_up_compiler", lambda: None
  )
  return names


def test_the_command_writes_rows_and_takes_them_up_again(
  capsys, planned, tmp_path
):
  path = tmp_path / "calibration.json"
  argv = ["plan", "--json", str(path), "--calibrate"]
  assert main.main([*argv, NAMES[1]]) == 0
  assert main.main([*argv, ",".join(NAMES[:2])]) == 0
  assert planned == [NAMES[1], NAMES[0]]  # No row was planned twice.
  found = json.loads(path.read_text())
  assert [row["name"] for row in found["rows"]] == NAMES[:2]
  assert found["geometric_mean"] == pytest.approx((1.2 * 1.4) ** 0.5)
  assert found["worst"] == pytest.approx(1.4)
  assert found["rows"][0]["program"]["commit"] == "c" * 40
  assert "--calibrate" in found["command"]
  out = capsys.readouterr().out
  assert NAMES[1] in out and "worst 1.400" in out
  # A row that is not asked for stays.
  assert main.main([*argv, NAMES[2]]) == 0
  found = json.loads(path.read_text())
  assert [row["name"] for row in found["rows"]] == NAMES[:3]
  assert "of 3 in the interval" in capsys.readouterr().out


def test_a_run_without_a_plan_does_not_lose_the_others(
  capsys, monkeypatch, planned, tmp_path
):
  plan = child_process.plan_published

  def planner(run):
    if run.name == NAMES[1]:
      raise errors.UserError("The TPU compiler crashed.")
    if run.name == NAMES[2]:
      return row_of(run, None), ""
    return plan(run)

  monkeypatch.setattr(child_process, "plan_published", planner)
  monkeypatch.setattr(ratios, "PATH", tmp_path / "ratios.json")
  path = tmp_path / "calibration.json"
  argv = ["plan", "--json", str(path), "--save-ratios", "--calibrate"]
  assert main.main([*argv, "all"]) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert f"2 of {len(published.RUNS)} runs" in line
  assert f"{NAMES[1]} cannot be planned (The TPU compiler crashed)" in line
  assert f"{NAMES[2]} does not fit its chips" in line
  found = json.loads(path.read_text())
  assert [row["name"] for row in found["rows"]] == list(published.RUNS)
  failed = found["rows"][1]
  assert failed["refused"] and failed["fits"] is False
  assert failed["planned_seconds"] is None
  assert (failed["batch_size"], failed["published_batch_size"]) == (128, 192)
  stored = json.loads((tmp_path / "ratios.json").read_text())
  assert len(stored["rows"]) == len(published.RUNS) - 2
  assert stored["rows"][0]["share_of_peak"] == pytest.approx(0.75)
  # Only the run on which the compiler crashed is tried again.
  before = len(planned)
  monkeypatch.setattr(child_process, "plan_published", plan)
  assert main.main([*argv, "all"]) == 2
  assert planned[before:] == [NAMES[1]]


def test_mistakes_of_the_command_are_one_line(
  capsys, monkeypatch, planned, tmp_path
):
  def refused(*argv):
    assert main.main(["plan", *argv]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    return line

  assert "needs --config" in refused("--topology", "v5e:2x2")
  assert "is not a published run" in refused("--calibrate", "GPT-5 on v5p")
  for argv in (
    ("--calibrate", "all", "--save-ratios"),
    ("--topology", "v5e:2x2", "--config", "f", "--json", "g", "--save-ratios"),
  ):
    assert "needs --calibrate all --json" in refused(*argv)
  path = tmp_path / "old.json"
  path.write_text(json.dumps({"version": 1, "rows": []}))
  assert "of version 1" in refused("--calibrate", NAMES[0], "--json", str(path))
  assert planned == []
  monkeypatch.setattr(ratios, "PATH", tmp_path / "ratios.json")
  assert "needs 3 runs that fit" in refused(
    "--calibrate",
    NAMES[0],
    "--json",
    str(tmp_path / "new.json"),
    "--save-ratios",
  )
  assert not (tmp_path / "ratios.json").exists()


def test_a_row_without_a_speed_is_a_mistake_of_ours():
  with pytest.raises(ValueError, match="no published speed"):
    calibrate.published_seconds(dataclasses.replace(RUN, seconds=None))
