"""Tests that docs/plan.md and README.md show the stored plans."""

import json
import pathlib
import re
import shlex

import pytest

from genie_jax.core import config as config_lib
from genie_jax.plan.calibration import ratios

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


def test_docs_state_the_range_of_the_shipped_config():
  plan = PLANS[3]
  seconds = plan["step_seconds"]
  share = (
    plan["mfu"] * plan["compiled_flops_per_step"] / plan["model_flops_per_step"]
  )
  found = ratios.calibrated(seconds, plan["mfu"], share, "v5p")
  text = f"{found['seconds_low']:.2f} to {found['seconds_high']:.2f} s"
  mfu = (
    f"{100 * found['mfu_low']:.0f} to {100 * found['mfu_high']:.0f} % of MFU"
  )
  docs = " ".join((ROOT / "docs/plan.md").read_text().split())
  assert f"{text}, {mfu}" in docs
  readme = " ".join((ROOT / "README.md").read_text().split())
  assert f"here {text} a step" in readme
  low, high = ratios.interval(ratio_values())
  assert f"ratios give {low:.2f} to {high:.2f}" in docs


def test_docs_show_the_stored_comparison_with_published_runs():
  docs = (ROOT / "docs/plan.md").read_text()
  found = json.loads(
    (ROOT / "experiments/scaling/results/calibration.json").read_text()
  )
  for row in found["rows"]:
    name, _, where = row["name"].removeprefix("MaxText ").partition(" on ")
    label = f"{name} on `{where}`" + ("" if row["fits"] else ", does not fit")
    planned, published = (
      row[key] // row["chips"] for key in ("batch_size", "published_batch_size")
    )
    assert (
      f"| {label} | {planned} of {published} "
      f"| {row['published_seconds']:.2f} s | {row['planned_seconds']:.2f} s "
      f"| {row['ratio']:.2f} |"
    ) in docs
  assert f"| geometric mean | | | | {found['geometric_mean']:.2f} |" in docs
  readme = " ".join((ROOT / "README.md").read_text().split())
  assert (
    f"{found['geometric_mean']:.2f} times the published ones in the mean and "
    f"{found['worst']:.2f} times at worst"
  ) in readme


def ratio_values():
  return [row["ratio"] for row in ratios.load()["rows"]]


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
