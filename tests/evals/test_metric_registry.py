"""Tests that a user's metric is computed, stored and shown like the others."""

import json

import grey_game
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.evals import metric, registry, report, run


def measure(work):
  """Mean brightness of the clips, in 8-bit levels."""
  brightness = float(work.clips.frames.mean())
  return metric.Result(
    details={"brightness": brightness, "by_clip": np.arange(2)},
    headline={"mean_brightness": brightness},
    rows=(
      metric.Row(
        "Brightness", f"{brightness:.0f} of 255", note="A <test> of rows."
      ),
    ),
  )


@pytest.fixture
def only(monkeypatch):
  """Returns a function that registers metrics in addition to cheap ones."""

  def add(**metrics):
    kept = {"codebook", "controllability", "prediction", "reconstruction"}
    values = {
      name: registry.METRICS.get(name, where="test")
      for name in registry.METRICS
      if name in kept
    }
    monkeypatch.setattr(registry.METRICS, "_values", values)
    for name, value in metrics.items():
      registry.register(name, value)

  return add


def test_a_registered_metric_is_in_metrics_and_report(only, clips, tmp_path):
  only(
    brightness=metric.Metric(measure),
    never=metric.Metric(measure, applies=lambda work: False),
  )
  results = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)
  assert results.metrics["mean_brightness"] > 0
  found = results.metrics["details"]
  assert found["brightness"]["by_clip"] == [0, 1]
  assert "never" not in found
  origin = report.Origin("grey", "genie eval", None, "2026-11-28", 10.0, {})
  report.write(tmp_path, results, origin)
  text = (tmp_path / "report.html").read_text()
  brightness = results.metrics["mean_brightness"]
  assert f'<td class="num">{brightness:.0f} of 255</td>' in text
  assert "A &lt;test&gt; of rows." in text
  stored = json.loads((tmp_path / "metrics.json").read_text())
  assert stored["mean_brightness"] == brightness


def test_two_metrics_must_not_give_the_same_headline_figure(only, clips):
  only(one=metric.Metric(measure), two=metric.Metric(measure))
  with pytest.raises(errors.UserError, match="'two' gives the headline figure"):
    run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS)


def test_a_value_that_is_not_a_metric_is_refused(only):
  only()
  with pytest.raises(errors.UserError, match=r"'odd' is of type function; it"):
    registry.register("odd", measure)
