"""Tests of the sampling benchmark at a small size."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("rollouts", (1, 4))
def test_cached_and_recomputed_frames_are_equal_for_any_number_of_players(
  tmp_path, rollouts
):
  subprocess.run(
    [
      sys.executable,
      "benchmarks/sampling.py",
      "--size",
      "smoke",
      "--rollouts",
      str(rollouts),
      "--rounds",
      "2",
      "--refinements",
      "4",
      "--memory-steps",
      "0",
      "--json",
      str(tmp_path / "F"),
    ],
    cwd=ROOT,
    check=True,
    timeout=900,
    env={
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "HOME": str(tmp_path),
    },
  )
  found = json.loads((tmp_path / "F").read_text())
  assert found["rollouts"] == rollouts
  assert found["equal_tokens"] == 1
  # Logits have a deviation near 1; float32 rounds at 1e-7.
  assert found["max_logit_difference"] < 1e-4
  assert found["cached_fps"] > 0 and found["speedup"] > 0
  assert found["recomputed_fps"] > 0
  assert set(found["latency_ms"]) == set(found["modes"])
  assert min(found["latency_ms"].values()) > 0
