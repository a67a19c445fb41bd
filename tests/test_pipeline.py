"""Tests the pipeline of `make demo` at its smallest size."""

import json
import subprocess
import sys

import numpy as np
import pytest

import genie_jax


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
