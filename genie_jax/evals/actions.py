"""Agreement of latent actions with the player's true actions.

Shapes:
  A  latent actions     K  true actions, aliases merged     L  levels
  n  transitions
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from genie_jax.evals import intervals

_NUM_SHUFFLES = 40  # With 50 resamples each, 2000 draws in all.


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Agreement of latent with true actions.

  Attributes:
    nmi: Normalised mutual information, 0 (independent) to 1.
    shuffled_nmi: The same with true actions shuffled within each level, which
      is the value expected by chance.
    purity: Share of transitions whose true action is the most frequent one of
      their latent action.
    majority: Share of the most frequent true action, which is the purity if
      there is only one latent action.
    table: int64 [A, K], transitions by latent and true action.
    true_actions: Labels of the K columns.
  """

  nmi: intervals.Interval
  shuffled_nmi: intervals.Interval
  purity: intervals.Interval
  majority: float
  table: np.ndarray
  true_actions: tuple[int, ...]


def merge(actions: np.ndarray, aliases: Mapping[int, int]) -> np.ndarray:
  """Replaces each alias by the action with the same effect."""
  merged = np.array(actions)
  for action, same in aliases.items():
    merged[actions == action] = same
  return merged


def key_labels(meanings: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
  """Numbers what keys mean, for each question about them.

  Args:
    meanings: Question -> value of each key, `made_by["keys"]` of the manifest
      of clips that were collected with `--states`.

  Returns:
    Question -> int [number of keys], labels from 0 without gaps.
  """
  return {
    question: np.unique(np.asarray(values), return_inverse=True)[1]
    for question, values in meanings.items()
  }


def tables(
  latent: np.ndarray,
  true: np.ndarray,
  levels: np.ndarray,
  num_latent: int,
  num_true: int,
) -> np.ndarray:
  """Counts transitions of each level by latent and true action.

  Args:
    latent: int [n].
    true: int [n], in [0, num_true).
    levels: int [n], in [0, L), each of them present.
    num_latent: A.
    num_true: K.

  Returns:
    int64 [L, A, K].
  """
  shape = (int(levels.max()) + 1, num_latent, num_true)
  flat = np.ravel_multi_index((levels, latent, true), shape)
  return np.bincount(flat, minlength=np.prod(shape)).reshape(shape)


def nmi(table: np.ndarray) -> np.ndarray:
  """Returns the mutual information divided by the mean of both entropies.

  Equals scikit-learn's `normalized_mutual_info_score`, but is 0 if both sides
  are constant, because the code then says nothing about the action.

  Args:
    table: [..., A, K] counts.

  Returns:
    [...].
  """
  joint = table / np.maximum(table.sum((-2, -1), keepdims=True), 1e-12)
  rows, columns = joint.sum(-1), joint.sum(-2)
  information = (
    _entropy(rows)
    + _entropy(columns)
    - _entropy(joint.reshape(*joint.shape[:-2], -1))
  )
  mean = (_entropy(rows) + _entropy(columns)) / 2
  return np.where(mean > 1e-12, information / np.maximum(mean, 1e-12), 0.0)


def _entropy(share: np.ndarray) -> np.ndarray:
  """Returns the entropy in nats over the last axis."""
  return -(share * np.log(np.where(share > 0, share, 1))).sum(-1)


def purity(table: np.ndarray) -> np.ndarray:
  """Returns the share of transitions in the largest cell of their row.

  Args:
    table: [..., A, K] counts.

  Returns:
    [...].
  """
  return table.max(-1).sum(-1) / np.maximum(table.sum((-2, -1)), 1e-12)


def agreement(
  latent: np.ndarray,
  true: np.ndarray,
  levels: np.ndarray,
  num_latent: int,
  *,
  aliases: Mapping[int, int],
  seed: int,
) -> Agreement:
  """Measures the agreement of latent with true actions.

  Args:
    latent: int [n], in [0, num_latent).
    true: int [n], the action that was taken; aliases need not be merged.
    levels: [n], the level of each transition.
    num_latent: A.
    aliases: True action -> the one with the same effect.
    seed: Seed of the bootstrap and of the shuffles.
  """
  labels, true = np.unique(merge(true, aliases), return_inverse=True)
  _, levels = np.unique(levels, return_inverse=True)
  count = lambda x: tables(latent, x, levels, num_latent, len(labels))
  by_level = count(true)
  rng = np.random.default_rng(seed)
  by_row = np.argsort(levels, kind="stable")
  values, draws = [], []
  for number in range(_NUM_SHUFFLES):
    # Sorting by level, then by a random number, shuffles within levels.
    order = np.lexsort((rng.random(len(true)), levels))
    shuffled = np.empty_like(true)
    shuffled[by_row] = true[order]
    chance = count(shuffled)
    values.append(nmi(chance.sum(0)))
    resampled = nmi(
      intervals.resample(
        {"table": chance},
        seed + 1 + number,
        intervals.NUM_RESAMPLES // _NUM_SHUFFLES,
      )["table"]
    )
    draws.append(resampled - (resampled.mean() - values[-1]))
  whole = by_level.sum(0)
  return Agreement(
    nmi=intervals.bootstrap(
      lambda sums: nmi(sums["table"]),
      {"table": by_level},
      seed=seed,
      unbiased=True,
    ),
    shuffled_nmi=intervals.Interval(
      float(np.mean(values)), *intervals.percentiles(np.concatenate(draws))
    ),
    purity=intervals.bootstrap(
      lambda sums: purity(sums["table"]), {"table": by_level}, seed=seed
    ),
    majority=float(whole.sum(0).max() / whole.sum()),
    table=whole,
    true_actions=tuple(int(label) for label in labels),
  )
