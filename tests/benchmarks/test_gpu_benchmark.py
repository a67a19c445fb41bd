"""Tests of the benchmark for one GPU, rehearsed at toy size on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def run(tmp_path, *words):
  path = tmp_path / "F"
  done = subprocess.run(
    [sys.executable, "benchmarks/gpu.py", "--size", "smoke", "--json", path]
    + list(words),
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    env={
      "PYTHONPATH": str(ROOT),
      "JAX_PLATFORMS": "cpu",
      "HOME": str(tmp_path),
      "PATH": os.environ["PATH"],
      "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    },
  )
  assert done.returncode == 0, done.stderr
  return json.loads(path.read_text()), done.stdout


def test_rates_and_attention_are_measured_at_toy_size(tmp_path):
  found, out = run(tmp_path, "--only", "rates", "--only", "attention")
  assert found["size"] == "smoke" and found["commit"]
  sections = found["sections"]
  assert list(sections) == ["rates", "attention"]
  for section in sections.values():
    assert section["device"] == "cpu" and section["not_measured"] is None
  rates = sections["rates"]["figures"]
  assert rates["product of 256"]["flops_per_second"] > 0
  # The peak of a CPU is not known, so there is no share of it.
  assert rates["product of 256"]["share_of_peak"] is None
  attention = sections["attention"]["figures"]
  assert set(attention) == {"smoke", "padded"}
  for figures in attention.values():
    # On a CPU both are plain attention.
    assert not figures["fused"]
    assert max(figures["largest_differences"].values()) == 0
  assert "attention: padded" in out


def test_a_section_without_time_is_named_and_loses_nothing(tmp_path):
  found, out = run(
    tmp_path, "--only", "stages", "--only", "layer", "--seconds", "3"
  )
  stages = found["sections"]["stages"]
  assert stages["not_measured"] == "the rest: stopped after 3 s"
  assert found["sections"]["layer"]["not_measured"].startswith("no time left")
  assert "layer not measured: no time left of --seconds 3" in out


@pytest.mark.slow
def test_every_section_is_measured_at_toy_size(tmp_path):
  found, _ = run(tmp_path, "--seconds", "800")
  sections = found["sections"]
  stages = sections["stages"]["figures"]
  assert len(stages) == 12
  for figures in stages.values():
    assert figures["step_seconds"] > 0 and figures["program_gib"] > 0
    assert figures["mfu"] is None and figures["planned_seconds"] is None
  assert len(sections["layer"]["figures"]) == 4
  sampling = sections["sampling"]
  assert {x["rollouts"] for x in sampling["figures"].values()} == {1, 2}
  # The page needs a browser, which this machine may lack.
  play = sections["play"]
  assert play["figures"] or play["not_measured"]
