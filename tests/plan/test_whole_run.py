"""Tests of the plan of a run besides its steps."""

import os

import pytest

from genie_jax.core import config as config_lib
from genie_jax.plan import aot_compile, topology, whole_run
from tests.plan import tpu_compiler

ROOT = os.path.join(os.path.dirname(__file__), *[os.pardir] * 2)
SMOKE = os.path.join(ROOT, "experiments/coinrun/dynamics.py:smoke")
TOPOLOGY = topology.parse("v5e:2x2")


@pytest.mark.parametrize(
  "steps, every, count", [(10, 5, 2), (11, 5, 3), (4, 5, 1), (5, 5, 1)]
)
def test_the_loop_does_it_at_multiples_and_at_the_end(steps, every, count):
  assert whole_run.counts(steps, every) == count
  # As in `train.loop`.
  due = [n for n in range(1, steps + 1) if n == steps or n % every == 0]
  assert len(due) == count


@tpu_compiler.required
def test_evaluation_previews_and_checkpoints_are_planned(library):
  overrides = [
    "--config.steps=100",
    "--config.eval_every=30",
    "--config.eval_batches=3",
    "--config.checkpoint_every=50",
    "--config.data.batch_size=8",
    # Muon, the config's, has one moment for matrices.
    "--config.optimizer.name=adamw",
  ]
  config = config_lib.load(SMOKE, overrides)
  step = aot_compile.build(config, TOPOLOGY)
  found = whole_run.plan(step, TOPOLOGY, 0.01)
  assert found["evaluation_count"] == found["preview_count"] == 4
  assert found["checkpoint_count"] == 2
  # Parameters and two moments in float32, split over four chips, and a few
  # scalars, at the rate of the host's link.
  state = step.abstract_state
  state_bytes = 3 * aot_compile.device_bytes(state.params)
  assert found["checkpoint_seconds"] == pytest.approx(
    state_bytes / TOPOLOGY.chip.host_bandwidth, rel=0.05
  )
  assert 0 < found["evaluation_seconds"] < 1
  assert 0 < found["preview_seconds"] < 1
  besides = sum(
    found[f"{name}_seconds"] * found[f"{name}_count"]
    for name in ("evaluation", "preview", "checkpoint")
  )
  assert found["days"] == pytest.approx((besides + 1.0) / 86_400)
  assert found["share_besides_steps"] == pytest.approx(
    besides / (besides + 1.0)
  )
  text = "\n".join(whole_run.lines(found))
  assert "evaluation" in text and "     4 x" in text


def test_a_preview_that_does_not_fit_is_left_out():
  found = {
    "share_besides_steps": 0.1,
    "days": 2.0,
    **{
      f"{name}_{key}": value
      for name in ("evaluation", "preview", "checkpoint")
      for key, value in (("seconds", 1.0), ("count", 3))
    },
    "preview_seconds": None,
  }
  line = next(x for x in whole_run.lines(found) if "preview" in x)
  assert "left out" in line
