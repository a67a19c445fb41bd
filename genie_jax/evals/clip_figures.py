"""Calibration, precision and recall of a classifier of clips.

Clips of one source are alike, so intervals resample sources, and a trivial rule
is a figure as well: without it a good number may mean that the data are easy.

Shapes:
  n  rated clips
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
from sklearn import tree

from genie_jax.evals import intervals

_BINS = 10
_MOST_SLOPE = 20.0
# Trees that know one simple figure of a clip, or all of them.
FEATURES = ("motion", "brightness", "contrast")
_TREE_DEPTH = 3


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Platt scaling: P(good) = sigmoid(slope * logit + intercept).

  Attributes:
    slope: At least 0.
    intercept: Any number.
    clips: Rated clips that it was fitted to; 0 for none, which leaves the
      classifier's own probabilities.
  """

  slope: float = 1.0
  intercept: float = 0.0
  clips: int = 0

  def __call__(self, logits: np.ndarray) -> np.ndarray:
    """Returns float64 probabilities of the same shape."""
    return scipy.special.expit(self.slope * logits + self.intercept)


def calibrate(logits: np.ndarray, labels: np.ndarray) -> Calibration:
  """Fits Platt scaling (Platt, 1999) to held-out clips.

  The targets are Platt's (1 + count) / (2 + count), so that few clips that the
  classifier separates do not make it certain of everything.

  Args:
    logits: float [n].
    labels: [n], 1 for good and 0 for bad.

  Returns:
    The calibration; the classifier's own if the clips are of one class only.
  """
  good = labels.astype(bool)
  if good.all() or not good.any():
    return Calibration()
  high = (good.sum() + 1) / (good.sum() + 2)
  low = 1 / ((~good).sum() + 2)
  targets = np.where(good, high, low)

  def cost(values: np.ndarray) -> float:
    scaled = values[0] * logits + values[1]
    return float((np.logaddexp(0, scaled) - targets * scaled).sum())

  found = scipy.optimize.minimize(
    cost, [1.0, 0.0], bounds=[(0, _MOST_SLOPE), (-_MOST_SLOPE, _MOST_SLOPE)]
  )
  slope, intercept = (float(value) for value in found.x)
  return Calibration(slope, intercept, len(labels))


def reliability(
  probability: np.ndarray, labels: np.ndarray
) -> tuple[float, list[dict[str, float]]]:
  """Returns the expected calibration error, and what it is the sum of.

  Args:
    probability: float [n], of being good.
    labels: [n], 1 for good.

  Returns:
    The mean over clips of |share of good clips - mean probability| of the
    clip's bin, and the bins of equal width that have clips.
  """
  place = np.minimum((probability * _BINS).astype(int), _BINS - 1)
  rows = []
  for number in range(_BINS):
    inside = place == number
    if inside.any():
      rows.append(
        {
          "from": number / _BINS,
          "clips": int(inside.sum()),
          "probability": float(probability[inside].mean()),
          "good": float(labels[inside].mean()),
        }
      )
  error = sum(
    row["clips"] * abs(row["good"] - row["probability"]) for row in rows
  )
  return error / len(labels), rows


def precision_and_recall(
  chosen: np.ndarray, wanted: np.ndarray, sources: np.ndarray
) -> dict[str, Any]:
  """Returns precision and recall with 95 % intervals over sources.

  Args:
    chosen: bool [n], what a rule says.
    wanted: bool [n], what is true.
    sources: [n], the clips' sources.

  Returns:
    {"precision", "recall"}, each {"value", "low", "high"}; None where a rule
    chooses nothing, or nothing is wanted.
  """
  sums = {
    "right": intervals.by_level((chosen & wanted).astype(float), sources),
    "chosen": intervals.by_level(chosen.astype(float), sources),
    "wanted": intervals.by_level(wanted.astype(float), sources),
  }

  def share(of: str) -> dict[str, float] | None:
    if not sums[of].sum():
      return None
    # A draw of sources without any such clip says nothing; it counts as 1.
    statistic = lambda drawn: np.where(
      drawn[of] > 0, drawn["right"] / np.maximum(drawn[of], 1e-9), 1.0
    )
    return intervals.bootstrap(statistic, sums, seed=0).to_dict()

  return {"precision": share("chosen"), "recall": share("wanted")}


def figures(
  probability: np.ndarray,
  labels: np.ndarray,
  sources: np.ndarray,
  confidence: float,
) -> dict[str, Any]:
  """Returns the figures of one set of rated clips.

  Args:
    probability: float [n], of being good.
    labels: [n], 1 for good and 0 for bad.
    sources: [n].
    confidence: The decision rule's.

  Returns:
    Counts; precision and recall of good and of bad clips at a probability of
    one half; those of the kept clips under the decision rule; accuracy and the
    expected calibration error. {"clips": 0} for no clips.
  """
  if not len(labels):
    return {"clips": 0}
  good = labels.astype(bool)
  said = probability >= 0.5
  kept = probability >= confidence
  error, bins = reliability(probability, labels)
  return {
    "clips": len(labels),
    "good_clips": int(good.sum()),
    "bad_clips": int((~good).sum()),
    "sources": len(np.unique(sources)),
    "accuracy": float((said == good).mean()),
    "good": precision_and_recall(said, good, sources),
    "bad": precision_and_recall(~said, ~good, sources),
    "kept": {
      "confidence": confidence,
      "clips": int(kept.sum()),
      **precision_and_recall(kept, good, sources),
    },
    "calibration_error": error,
    "reliability": bins,
  }


def baselines(
  features: Mapping[str, np.ndarray],
  labels: np.ndarray,
  sources: np.ndarray,
  training: np.ndarray,
  testing: np.ndarray,
) -> dict[str, Any]:
  """Returns precision and recall of rules that look at almost nothing.

  Args:
    features: Name -> float [n], of FEATURES.
    labels: [n], 1 for good and 0 for bad.
    sources: [n].
    training: bool [n], the clips that the rules are fitted to.
    testing: bool [n], the clips on which they are measured.

  Returns:
    Rule -> {"accuracy", "precision", "recall"} of good clips; {} if there is
    nothing to fit or to measure. "always good" knows nothing, the others are
    decision trees of depth 3 on the features that they name.
  """
  good = labels.astype(bool)
  if not testing.any() or len(np.unique(labels[training])) < 2:
    return {}
  rules: dict[str, Sequence[str]] = {name: (name,) for name in FEATURES}
  rules[" and ".join(FEATURES)] = FEATURES
  said: dict[str, np.ndarray] = {
    "always good": np.ones(int(testing.sum()), bool)
  }
  for name, of in rules.items():
    columns = np.stack([features[each] for each in of], axis=1)
    fitted = tree.DecisionTreeClassifier(
      max_depth=_TREE_DEPTH, class_weight="balanced", random_state=0
    ).fit(columns[training], good[training])
    said[name] = fitted.predict(columns[testing]).astype(bool)
  return {
    name: {
      "accuracy": float((each == good[testing]).mean()),
      **precision_and_recall(each, good[testing], sources[testing]),
    }
    for name, each in said.items()
  }
