"""Tests of the alarms: each rings on its fault and on nothing else."""

import json
import pathlib

import numpy as np
import pytest

from genie_jax.train import alarms
from tests.train import test_loop

# The stages of `make demo`, 1 December 2026.
LOGS = sorted((pathlib.Path(__file__).parent / "healthy").glob("*.jsonl"))
# A healthy run of 60 lines.
_RANDOM = np.random.default_rng(0)
HEALTHY = [
  {
    "step": 25 * n,
    "loss_sum": float(25 * (1 + 4 / n) * _RANDOM.uniform(0.95, 1.05)),
    "loss_count": 25,
    "clipped_steps": 24,
    "code_usage": 0.5 + 0.4 * min(n / 20, 1),
    "code_perplexity": 3.0,
  }
  for n in range(1, 61)
]


def ring(lines, watcher=None):
  """Returns (number of the line, name) of each alarm."""
  watcher = watcher or alarms.Alarms()
  return [
    (number, name)
    for number, line in enumerate(lines)
    for name in watcher.watch(line)
  ]


def changed(first, last, **fields):
  """Returns the healthy lines with fields changed from `first` to `last`."""
  return [
    dict(line, **(fields if first <= number < last else {}))
    for number, line in enumerate(HEALTHY)
  ]


def test_a_healthy_run_is_silent():
  assert ring(HEALTHY) == []


@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.stem)
def test_the_logs_of_the_demo_are_silent(path):
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(lines) > 10 and ring(lines) == []
  # The same log with one fault is not.
  training = [line for line in lines if "loss" in line]
  training[-1]["loss_sum"] *= 10
  assert ring(training) == [(len(training) - 1, "loss_spike")]


@pytest.mark.parametrize(
  "fields, name, delay",
  [
    ({"loss_sum": 50.0}, "loss_spike", 0),
    ({"code_usage": 0.4}, "few_codes", 9),
    ({"code_usage": 0.1}, "few_codes", 9),
    ({"code_perplexity": 1.1}, "one_code", 9),
    ({"clipped_steps": 25}, "always_clipped", 19),
  ],
)
def test_each_alarm_rings_once_for_its_fault(fields, name, delay):
  assert ring(changed(30, 55, **fields)) == [(30 + delay, name)]


def test_an_alarm_rings_again_after_its_condition_has_ended():
  lines = [
    dict(line, loss_sum=500.0) if number in (30, 31, 40) else line
    for number, line in enumerate(HEALTHY)
  ]
  assert ring(lines) == [(30, "loss_spike"), (40, "loss_spike")]


def test_what_is_shorter_than_ten_lines_is_no_alarm():
  assert ring(changed(30, 39, code_usage=0.1, code_perplexity=1.0)) == []


def test_a_resumed_run_continues_its_alarms():
  lines = changed(30, 60, code_perplexity=1.0)
  earlier = [json.dumps(line) for line in lines[:35]]
  watcher = alarms.Alarms([*earlier, '{"step": 875, "eval/fit": 1.0}'])
  assert ring(lines[35:], watcher) == [(39 - 35, "one_code")]


def test_an_alarm_is_in_the_log_and_in_the_metrics(tmp_path, caplog):
  test_loop.train(tmp_path, steps=21, optimizer__clip_norm=1e-6, eval_every=100)
  found = test_loop.lines(tmp_path)
  rings = [line["step"] for line in found if "alarm/always_clipped" in line]
  assert rings == [20]
  assert "Step 20: every gradient of the last lines was clipped" in caplog.text
