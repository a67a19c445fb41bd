"""Tests of planning published runs, on a small model with the TPU compiler."""

import dataclasses
import json

import pytest

from genie_jax.cli import main
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
  }


def test_the_command_writes_rows_and_takes_them_up_again(
  capsys, monkeypatch, tmp_path
):
  names = list(published.RUNS)[:2]
  planned = []

  def planner(run):
    planned.append(run.name)
    return row_of(run, 1.0 + 0.2 * len(planned)), ""

  monkeypatch.setattr(child_process, "plan_published", planner)
  here = {"commit": "c" * 40, "clean": True, "libraries": {}}
  monkeypatch.setattr(calibrate, "program", lambda: here)
  monkeypatch.setattr(
    "genie_jax.plan.aot_compile.set_up_compiler", lambda: None
  )
  path = tmp_path / "calibration.json"
  argv = ["plan", "--json", str(path), "--calibrate"]
  assert main.main([*argv, names[0]]) == 0
  assert main.main([*argv, ",".join(names)]) == 0
  assert planned == names  # The first row was not planned twice.
  found = json.loads(path.read_text())
  assert [row["name"] for row in found["rows"]] == names
  assert found["geometric_mean"] == pytest.approx((1.2 * 1.4) ** 0.5)
  assert found["worst"] == pytest.approx(1.4)
  assert found["provenance"]["commit"] == "c" * 40
  assert "--calibrate" in found["provenance"]["command"]
  out = capsys.readouterr().out
  assert names[1] in out and "worst 1.400" in out
  stored = calibrate.stored_ratios(found)
  assert ratios.calibrated(0.5, stored)["low"] == pytest.approx(0.6)


def test_mistakes_of_the_command_are_one_line(capsys, monkeypatch, tmp_path):
  monkeypatch.setattr(
    "genie_jax.plan.aot_compile.set_up_compiler", lambda: None
  )

  def refused(*argv):
    assert main.main(["plan", *argv]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    return line

  assert "needs --config" in refused("--topology", "v5e:2x2")
  assert "is not a published run" in refused("--calibrate", "GPT-5 on v5p")
  assert "needs --calibrate all" in refused(
    "--calibrate", "MaxText 32B on v5p-128", "--save-ratios"
  )
  path = tmp_path / "old.json"
  path.write_text(json.dumps({"version": 1, "rows": []}))
  assert "another program" in refused(
    "--calibrate", "MaxText 32B on v5p-128", "--json", str(path)
  )
  # A run that does not fit is named.
  monkeypatch.setattr(
    child_process, "plan_published", lambda run: (row_of(run, None), "")
  )
  assert "1 of 1 runs" in refused("--calibrate", "MaxText 32B on v5p-128")


def test_a_row_without_a_speed_is_a_mistake_of_ours():
  with pytest.raises(ValueError, match="no published speed"):
    calibrate.published_seconds(dataclasses.replace(RUN, seconds=None))
