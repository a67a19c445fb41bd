"""Tests of the figures of a classifier of clips."""

import numpy as np
import pytest
import scipy.special

from genie_jax.evals import clip_figures


def simulated(count, slope, intercept, seed=0):
  """Returns logits of a classifier that is off by a known map, and labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=count) * 2
  good = rng.random(count) < scipy.special.expit(slope * logits + intercept)
  return logits, good.astype(int)


def test_calibration_finds_the_map_and_lowers_the_error_on_other_clips():
  logits, labels = simulated(4000, 0.4, -1.0)
  found = clip_figures.calibrate(logits, labels)
  assert found.slope == pytest.approx(0.4, abs=0.06)
  assert found.intercept == pytest.approx(-1.0, abs=0.12)
  logits, labels = simulated(4000, 0.4, -1.0, seed=1)
  before, _ = clip_figures.reliability(scipy.special.expit(logits), labels)
  after, rows = clip_figures.reliability(found(logits), labels)
  assert after < 0.03 < 0.15 < before
  assert sum(row["clips"] for row in rows) == 4000


def test_few_clips_that_are_separated_do_not_make_it_certain():
  logits = np.array([3.0, 4.0, -3.0, -5.0])
  found = clip_figures.calibrate(logits, np.array([1, 1, 0, 0]))
  assert 0.6 < found(np.array([3.5]))[0] < 0.9


def test_one_class_alone_cannot_calibrate():
  found = clip_figures.calibrate(np.array([1.0, 2.0]), np.array([1, 1]))
  assert found == clip_figures.Calibration()
  assert found(np.array([0.0]))[0] == 0.5


def test_precision_and_recall_are_those_of_the_counts():
  chosen = np.array([1, 1, 1, 0, 0], bool)
  wanted = np.array([1, 1, 0, 1, 0], bool)
  found = clip_figures.precision_and_recall(
    chosen, wanted, np.array([0, 0, 1, 1, 2])
  )
  assert found["precision"]["value"] == pytest.approx(2 / 3)
  assert found["recall"]["value"] == pytest.approx(2 / 3)
  assert found["precision"]["low"] <= 2 / 3 <= found["precision"]["high"]
  none = clip_figures.precision_and_recall(
    np.zeros(5, bool), wanted, np.arange(5)
  )
  assert none["precision"] is None and none["recall"]["value"] == 0


def test_alike_clips_of_one_source_do_not_narrow_the_interval():
  rng = np.random.default_rng(0)
  wanted = rng.random(40) < 0.5
  chosen = wanted ^ (rng.random(40) < 0.2)
  repeat = lambda x: np.repeat(x, 25)
  one = clip_figures.precision_and_recall(chosen, wanted, np.arange(40))
  many = clip_figures.precision_and_recall(
    repeat(chosen), repeat(wanted), repeat(np.arange(40))
  )
  width = lambda x: x["recall"]["high"] - x["recall"]["low"]
  assert width(many) == pytest.approx(width(one), rel=0.05)


def test_the_decision_rule_keeps_only_confident_good_clips():
  probability = np.array([0.95, 0.7, 0.2, 0.99])
  labels = np.array([1, 1, 0, 0])
  found = clip_figures.figures(probability, labels, np.arange(4), 0.9)
  assert found["kept"]["clips"] == 2
  assert found["kept"]["precision"]["value"] == 0.5
  assert found["good"]["recall"]["value"] == 1
  assert found["accuracy"] == 0.75
  assert clip_figures.figures(
    probability[:0], labels[:0], np.arange(0), 0.9
  ) == {"clips": 0}


def test_baselines_find_what_a_simple_figure_tells_and_nothing_else():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, 200)
  features = {
    # Good clips move neither too little nor too much.
    "motion": np.where(
      labels == 1,
      rng.uniform(0.3, 0.6, 200),
      rng.choice([0.1, 0.9], 200),
    ),
    "brightness": rng.random(200),
    "contrast": rng.random(200),
  }
  training = np.arange(200) < 100
  found = clip_figures.baselines(
    features, labels, np.arange(200), training, ~training
  )
  assert found["motion"]["accuracy"] == 1
  assert found["brightness"]["accuracy"] < 0.7
  assert found["always good"]["recall"]["value"] == 1
  assert (
    clip_figures.baselines(
      features, labels * 0, np.arange(200), training, ~training
    )
    == {}
  )
