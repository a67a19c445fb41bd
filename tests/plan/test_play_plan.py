"""Tests of `genie plan --sample` with the TPU compiler."""

import json
import os

import pytest

from genie_jax.cli import main
from genie_jax.plan import aot_compile
from tests.cli.test_main import CONFIGS, refused
from tests.plan import tpu_compiler

SMOKE = f"{CONFIGS.parent / 'platformers/dynamics.py'}:smoke"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  """Restores the environment after the test."""
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.setenv(name, os.environ.get(name, "1"))
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def plan(tmp_path, *flags):
  file = tmp_path / "plan.json"
  assert (
    main.main(
      [
        "plan",
        "--config",
        SMOKE,
        "--topology",
        "v5e:1x1",
        "--sample",
        "--json",
        str(file),
        *flags,
      ]
    )
    == 0
  )
  return json.loads(file.read_text())


@pytest.mark.slow
@tpu_compiler.required
def test_a_frame_takes_longer_with_more_refinements(tmp_path, capsys):
  few = plan(tmp_path, "--config.sampling.refinements=2")
  many = plan(
    tmp_path,
    "--config.sampling.refinements=8",
    "--slide",
    "rolling",
    "--players",
    "2",
  )
  for found in (few, many):
    assert found["fits"] and 0 < found["hbm_gib_per_chip"] < 1
    assert found["frames_per_second"] == pytest.approx(
      1 / found["seconds_per_frame"]
    )
    assert found["loops_of_unknown_length"] == []
  assert many["seconds_per_frame"] > 1.5 * few["seconds_per_frame"]
  assert many["frames_per_second_of_all_players"] == pytest.approx(
    2 * many["frames_per_second"]
  )
  assert many["model_flops_per_frame"] == pytest.approx(
    3 * few["model_flops_per_frame"]
  )
  out = capsys.readouterr().out
  assert "2 refinements of 60 tokens" in out and "rolling slide" in out


@tpu_compiler.required
def test_the_error_for_an_invalid_config_is_one_line(capsys):
  base = ("plan", "--topology", "v5e:2x2", "--sample", "--config")
  assert "does not split over 4 devices" in refused(capsys, *base, SMOKE)
  other = SMOKE.replace("dynamics", "tokenizer")
  assert "dynamics stage" in refused(capsys, *base, other)
