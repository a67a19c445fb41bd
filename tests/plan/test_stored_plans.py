"""Tests that docs/plan.md and README.md show the stored plans."""

import json
import pathlib
import re
import shlex

import pytest

from genie_jax.core import config as config_lib

ROOT = pathlib.Path(__file__).parents[2]
PLANS = json.loads(
  (ROOT / "experiments/platformers/results/plans.json").read_text()
)["plans"]
ROW = re.compile(r"\| (\d+) GiB \| ([\d.]+) s \| ([\d.]+) % \| ([\d.]+) \|$")


def rows_of_the_table():
  lines = (ROOT / "docs/plan.md").read_text().splitlines()
  return [found.groups() for found in map(ROW.search, lines) if found]


def test_the_table_has_the_figures_of_the_stored_plans():
  shown = [
    (
      f"{plan['hbm_gib_per_chip']:.0f}",
      f"{plan['step_seconds']:.2f}",
      f"{100 * plan['mfu']:.1f}",
      f"{plan['days']:.1f}",
    )
    for plan in PLANS
  ]
  assert len(rows_of_the_table()) == 8
  assert rows_of_the_table() == shown[:8]


def test_readme_states_the_figures_of_the_shipped_config():
  shipped = PLANS[3]
  assert shipped["command"].endswith("--topology v5p:4x8x8")
  text = " ".join((ROOT / "README.md").read_text().split())
  step, mfu = shipped["step_seconds"], 100 * shipped["mfu"]
  days = shipped["days"]
  assert f"{step:.2f} s a step, {mfu:.1f} % MFU, {days:.1f} days" in text


def test_each_optimization_is_faster_and_the_config_reaches_60_percent_mfu():
  seconds = [plan["step_seconds"] for plan in PLANS[:4]]
  assert seconds == sorted(seconds, reverse=True)
  assert PLANS[3]["mfu_kernels_twice_as_slow"] > 0.6
  for plan in PLANS:
    assert plan["fits"] and plan["copied_whole"] == []


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan["command"][19:])
def test_every_stored_command_uses_existing_fields(plan):
  words = shlex.split(plan["command"])
  assert words[:3] == ["genie", "plan", "--config"]
  overrides = [word for word in words if word.startswith("--config.")]
  config = config_lib.load(words[3], overrides)
  sizes = config.mesh.to_dict()
  assert all(
    plan["mesh"][name] == size for name, size in sizes.items() if size != -1
  )
  assert plan["batch_size"] == config.data.batch_size
