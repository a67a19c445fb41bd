"""Tests of the scaling table on the paper's chips, without compiling."""

import math
import pathlib

import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.plan import topology
from genie_jax.scaling import paper, table

FILE = pathlib.Path(__file__).parents[2] / "experiments/scaling/dynamics.py"


def test_rows_have_the_papers_chips_and_days():
  found = {
    run.size: (
      topology.parse(run.topology).num_chips,
      run.topology[:2],
      run.days,
    )
    for run in paper.RUNS.values()
    if run.days
  }
  assert found == {
    "41M": (64, "v2", 3),
    "96M": (64, "v2", 6),
    "192M": (64, "v2", 9),
    "404M": (64, "v2", 18),
    "811M": (128, "v3", 7),
    "1.6B": (128, "v3", 12),
    "2.7B": (256, "v3", 16),
  }
  assert topology.parse(paper.RUNS["10.1B"].topology).num_chips == 256


@pytest.mark.parametrize("name", paper.RUNS)
def test_layouts_use_all_devices_and_a_quarter_of_the_memory(name):
  run = paper.RUNS[name]
  slice_ = topology.parse(run.topology)
  config = paper.lay_out(config_lib.load(f"{FILE}:{name}"), run)
  mesh = dict(config.mesh)
  fixed = math.prod(size for size in mesh.values() if size > 0)
  assert slice_.num_devices % fixed == 0
  data = slice_.num_devices // fixed
  groups = data * mesh["fsdp"]
  assert table.find(name).batch_size == groups * config.optimizer.accumulate
  state = 16 * table.find(name).paper_parameters / mesh["fsdp"]
  assert state <= slice_.chip.hbm_gib * 2**30 / slice_.chip.devices / 4


def test_rows_are_found_by_name_or_all():
  assert [x.size for x in paper.find("all")] == list(paper.RUNS)
  assert [x.size for x in paper.find("811M,41M")] == ["811M", "41M"]
  with pytest.raises(errors.UserError, match="did you mean '811M'"):
    paper.find("812M")


def test_ratios_divide_our_values_by_the_papers():
  report = dict.fromkeys(
    (
      "fits",
      "hbm_gib_per_chip",
      "hbm_limit_gib",
      "step_seconds",
      "mfu",
      "mesh",
      "remat",
      "accumulate",
      "copied_whole",
      "compile_seconds",
    ),
    1.0,
  ) | {
    "days": 1.5,
    "steps": 100,
    "model_flops_per_step": 4.1e18,
    "step_seconds": 2.0,
    "calibrated": {"seconds_low": 1.5, "seconds_high": 2.5},
    "cost": None,
  }
  row = paper.row(paper.RUNS["41M"], report)
  assert row["ratio"] == 0.5 and row["chips"] == 64
  # Days follow the seconds of a step: 1.5 and 2.5 s instead of 2 s.
  assert row["days_low"] == pytest.approx(1.125)
  assert row["days_high"] == pytest.approx(1.875)
  assert row["cost_low"] is row["cost_high"] is None
  assert row["flops_ratio"] == pytest.approx(2.0)  # The paper has 2.05e20.
  assert paper.row(paper.RUNS["10.1B"], report)["ratio"] is None
  without_days = paper.row(paper.RUNS["41M"], report | {"days": None})
  assert without_days["ratio"] is without_days["days_low"] is None
  uncalibrated = paper.row(
    paper.RUNS["41M"], report | {"calibrated": None, "cost": 12_345.0}
  )
  assert uncalibrated["days_high"] is uncalibrated["cost_low"] is None
  with_cost = paper.row(paper.RUNS["10.1B"], report | {"cost": 4_000_000.0})
  assert with_cost["cost_low"] == pytest.approx(3e6)
  rows = [row, without_days, uncalibrated, with_cost]
  lines = paper.render(rows).splitlines()
  assert len(lines) == 12 and max(map(len, lines)) <= 80
  assert "1.12 to 1.88" in lines[-4] and "12,345" in lines[-2]
  assert "3,000,000 to 5,000,000" in lines[-1]
