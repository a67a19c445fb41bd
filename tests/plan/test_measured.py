"""Tests of comparing a plan with the log of a run."""

import json

import pytest

from genie_jax.core import errors
from genie_jax.plan import measured


def log(folder, rates):
  lines = [
    json.dumps({"step": n, "steps_per_second": rate})
    for n, rate in enumerate(rates)
  ]
  (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9, "st']))
  return str(folder)


def test_the_median_of_the_log_is_compared_with_the_plan(tmp_path):
  # The first line is left out, and a line without a speed, or cut short.
  seconds = measured.step_seconds(log(tmp_path, [0.1, 2.0, 4.0, None, 5.0]))
  assert seconds == [0.5, 0.25, 0.2]
  found = measured.compare({"step_seconds": 0.3, "mfu": 0.5}, seconds)
  assert found["measured_seconds"] == 0.25 and found["fastest_seconds"] == 0.2
  assert found["ratio"] == pytest.approx(1.2)
  # The run was faster than planned, so its MFU is higher.
  assert found["measured_mfu"] == pytest.approx(0.6)
  text = "\n".join(measured.lines(found))
  assert "planned / measured 1.200" in text and "measured MFU 60.0%" in text


def test_a_folder_without_a_log_and_a_short_log_are_rejected(tmp_path):
  with pytest.raises(errors.UserError, match=r"has no metrics\.jsonl"):
    measured.step_seconds(str(tmp_path))
  with pytest.raises(errors.UserError, match="1 lines with a speed"):
    measured.step_seconds(log(tmp_path, [2.0]))


def test_the_loop_writes_what_is_read(tmp_path):
  from etils import epath

  from genie_jax.train import goodput, metrics

  writer = metrics.JsonLines(epath.Path(tmp_path), 0)
  meter = metrics.Meter(4, 1e9, None, goodput.Clock(0.0))
  for number in (1, 2, 3):
    meter.step(0.0)
    writer.scalars(number, meter.read())
  writer.close()
  assert measured._METRICS == metrics.FILE
  assert len(measured.step_seconds(str(tmp_path))) == 2
