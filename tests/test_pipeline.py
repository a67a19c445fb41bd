"""Tests the pipeline of `make demo` at its smallest size."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import genie_jax
from experiments.coinrun import world_figures


@pytest.mark.slow
def test_the_smoke_mode_makes_a_world_with_figures(tmp_path):
  line = [
    sys.executable,
    "-m",
    "experiments.coinrun.pipeline",
    "--mode",
    "smoke",
    "--out",
    str(tmp_path),
  ]
  first = subprocess.run(line, capture_output=True, text=True, check=False)
  assert first.returncode == 0, first.stdout + first.stderr
  metrics = json.loads((tmp_path / "metrics.json").read_text())
  assert metrics["seconds_total"] > 0
  assert "<html" in (tmp_path / "report.html").read_text().lower()
  for name in ("rollout.gif", "buttons.gif"):
    assert (tmp_path / name).read_bytes()[:3] == b"GIF"
  manifest = json.loads((tmp_path / "world/manifest.json").read_text())
  assert manifest["metrics"]["delta_psnr"] == metrics["delta_psnr"]
  world = genie_jax.load_world(tmp_path / "world")
  _, frame = world.step(world.reset(np.zeros((64, 64, 3), np.uint8)), 1)
  assert frame.shape == (64, 64, 3) and frame.dtype == np.uint8


def test_figures_of_a_world_are_found_in_its_evaluation(tmp_path, capsys):
  results = (
    pathlib.Path(world_figures.__file__).parent / "results" / "tiny.json"
  )
  out = tmp_path / "world.json"
  world_figures.main([str(results), "--seeds", "3", "--out", str(out)])
  found, metrics = json.loads(out.read_text()), json.loads(results.read_text())
  assert found["seeds"] == [3]
  assert found["details"] == metrics["details"]
  assert found["counterfactual_match"] == metrics["counterfactual_score"]
  assert found["hero_psnr"] == metrics["centre_psnr"]
  assert found["attainable_action_nmi"] > found["action_nmi"]
  # Of the demo, only these are not measured.
  missing = {name for name, value in found.items() if value is None}
  assert missing == {
    "hero_psnr_before",
    "true_actions_counterfactual_match",
    "true_actions_counterfactual_low",
    "true_actions_delta_previous_psnr",
    "kvd",
    "kvd_low",
    "kvd_high",
    "reconstruction_kvd",
    "frozen_kvd",
    "kvd_share",
    "palette_share",
  }
  assert "palette_share" in capsys.readouterr().out


def test_another_evaluation_of_the_same_world_fills_what_was_not_measured(
  tmp_path, capsys
):
  results = (
    pathlib.Path(world_figures.__file__).parent / "results" / "tiny.json"
  )
  other = json.loads(results.read_text())
  other["delta_psnr"] = -1.0  # Was measured, so it is not taken from here.
  match = {"value": 0.7, "low": 0.6, "high": 0.8}
  other["details"]["true_actions"] = {
    "counterfactuals": {"after": {"8": {"score": match}}}
  }
  also, out = tmp_path / "metrics.json", tmp_path / "world.json"
  also.write_text(json.dumps(other))
  words = [str(results), "--also", str(also), "--seeds", "0", "--out", str(out)]
  world_figures.main(words)
  found = json.loads(out.read_text())
  assert found["true_actions_counterfactual_match"] == 0.7
  assert found["delta_psnr"] == json.loads(results.read_text())["delta_psnr"]
  assert found["also"]["figures"] == [
    "true_actions_counterfactual_match",
    "true_actions_counterfactual_low",
  ]
  assert found["also"]["command"] == other["command"]
  also.write_text(json.dumps(other | {"data_fingerprint": "1" * 64}))
  with pytest.raises(SystemExit) as stopped:
    world_figures.main(words)
  assert stopped.value.code == 2
  assert "data_fingerprint" in capsys.readouterr().err


def test_the_share_of_kvd_lies_between_tokenizer_and_frozen_frames():
  rows = {"world": 3.0, "tokenizer": 1.0, "frozen": 21.0}
  metrics = {
    "details": {
      "fvd": {"rows": {row: {"kvd": {"value": x}} for row, x in rows.items()}}
    }
  }
  assert world_figures.figures(metrics)["kvd_share"] == pytest.approx(0.1)
