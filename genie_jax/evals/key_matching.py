"""Matches a world's buttons with a game's keys, and scores the match.

`genie_jax.evals.counterfactuals` says what is compared and why.

Shapes:
  M  moments     A  buttons     K  keys of the game     G  groups of keys
  F  frames held     D  distinct futures
  N  numbers of frames after which rollouts are compared
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

from genie_jax.data import counterfactuals as data_lib
from genie_jax.evals import intervals

AFTER = (1, 4)  # Frames after which rollouts are compared, and the last one.
# Keys with equal futures in so many of the moments are one group: in CoinRun
# "down" and no key are equal in 0.91 of them, "left" and "left, up" in 0.23.
_SAME = 0.8

Pairs = list[tuple[int, int]]  # (index of a button, group of keys).


@dataclasses.dataclass(frozen=True)
class Hits:
  """Which futures rollouts are nearest to.

  Attributes:
    after: N numbers of frames.
    levels: int [M].
    world: float [N, M, A, G], 1 where a button's rollout is nearest to a future
      of the group; a draw between c futures counts 1 / c for each.
    ceiling: float [N, M, G], the same for the future of the group's first key
      after the tokenizer, and its own group.
    classes: int [N, M], number of different futures.
  """

  after: tuple[int, ...]
  levels: np.ndarray
  world: np.ndarray
  ceiling: np.ndarray
  classes: np.ndarray


def group_keys(moments: Sequence[data_lib.Moment]) -> list[list[int]]:
  """Groups the keys that do the same in nearly all moments.

  Returns:
    G ascending lists, by their first key.
  """
  frames = moments[0].keys.shape[1]
  labels = np.stack([moment.classes(frames) for moment in moments])  # [M, K]
  same = (labels[:, :, None] == labels[:, None]).mean(0) >= _SAME
  groups: list[list[int]] = []
  rest = set(range(len(same)))
  while rest:
    group, new = set(), {min(rest)}
    while new:
      group |= new
      new = {k for one in new for k in np.flatnonzero(same[one])} - group
    groups.append(sorted(int(key) for key in group))
    rest -= group
  return groups


def squared_errors(
  drawn: np.ndarray, futures: np.ndarray, counted: np.ndarray
) -> np.ndarray:
  """Returns the summed squared error of each pair, in counted pixels only.

  Args:
    drawn: uint8 [A, F, H, W, C].
    futures: uint8 [D, F, H, W, C].
    counted: bool [F, H, W].

  Returns:
    int64 [F, A, D].
  """
  found = np.empty((len(counted), len(drawn), len(futures)), np.int64)
  for frame, mask in enumerate(counted):
    one = drawn[:, frame][:, mask].astype(np.int32).reshape(len(drawn), -1)
    other = futures[:, frame][:, mask].astype(np.int32)
    for index, future in enumerate(other.reshape(len(futures), -1)):
      found[frame, :, index] = ((one - future) ** 2).sum(1, dtype=np.int64)
  return found


def nearest(distances: np.ndarray) -> np.ndarray:
  """Returns 1 for the nearest of each row, shared if several are.

  Args:
    distances: int [A, D].

  Returns:
    float64 [A, D]; rows add up to 1.
  """
  best = distances == distances.min(1, keepdims=True)
  return best / best.sum(1, keepdims=True)


def count_hits(
  moments: Sequence[data_lib.Moment],
  drawn: np.ndarray,
  rebuilt: Sequence[np.ndarray],
  groups: Sequence[Sequence[int]],
  *,
  reconstructed: bool = False,
) -> Hits:
  """Finds the future that is nearest to each rollout.

  Args:
    moments: M moments of F or more frames.
    drawn: uint8 [M, A, F, H, W, C], the world's frames.
    rebuilt: For each moment uint8 [D, F, H, W, C], its distinct futures after
      the tokenizer.
    groups: G lists of keys.
    reconstructed: Whether distances are to `rebuilt` and not to the true
      futures.
  """
  frames = drawn.shape[2]
  after = tuple(sorted({n for n in AFTER if n < frames} | {frames}))
  shape = (len(after), len(moments))
  world = np.zeros((*shape, drawn.shape[1], len(groups)))
  ceiling = np.zeros((*shape, len(groups)))
  classes = np.zeros(shape, np.int64)
  for m, moment in enumerate(moments):
    rows = np.unique(moment.future_of[: moment.num_keys])
    true = moment.distinct[:, :frames]
    counted = (true[rows] != true[rows[:1]]).any((0, -1))
    targets = rebuilt[m] if reconstructed else true
    far = squared_errors(drawn[m], targets, counted).cumsum(0)
    own = squared_errors(rebuilt[m], targets, counted).cumsum(0)
    for n, length in enumerate(after):
      labels = moment.classes(length)
      different = np.unique(labels)  # The lowest key of each class.
      columns = moment.future_of[different]
      member = np.array(
        [np.isin(different, labels[list(group)]) for group in groups]
      )  # [G, classes]
      world[n, m] = nearest(far[length - 1][:, columns]) @ member.T
      best = nearest(own[length - 1][:, columns]) @ member.T  # [D, G]
      firsts = moment.future_of[[group[0] for group in groups]]
      ceiling[n, m] = best[firsts, np.arange(len(groups))]
      classes[n, m] = len(different)
  return Hits(
    after,
    np.array([moment.level for moment in moments]),
    world,
    ceiling,
    classes,
  )


def match(hits: np.ndarray) -> Pairs:
  """Returns the pairs of buttons and groups with the most hits.

  Args:
    hits: [A, G], hits of each button and group. Each button gets at most one
      group and each group at most one button.
  """
  return [
    (int(button), int(group))
    for button, group in zip(
      *optimize.linear_sum_assignment(hits, maximize=True), strict=True
    )
  ]


def in_first_half(levels: np.ndarray, seed: int) -> np.ndarray:
  """Returns which observations are of a random half of the levels, bool [M]."""
  different = np.random.default_rng(seed).permutation(np.unique(levels))
  return np.isin(levels, different[: len(different) // 2])


def score(
  hits: Hits, *, seed: int, pairs: Pairs | None = None
) -> dict[str, dict[str, Any]]:
  """Scores the assignment of buttons to keys.

  Args:
    hits: From `count_hits`, of at least two levels.
    seed: Of the halves and the bootstrap.
    pairs: The key of each button, if it is known; otherwise it is chosen on
      half of the levels and scored on the other half.

  Returns:
    Number of frames, as text -> "score", "chance", "margin" (score minus
    chance) and "ceiling", each an interval over levels; "classes", the mean
    number of different futures, and "moments", those with more than one: the
    others tell nothing and are left out.
  """
  first = in_first_half(hits.levels, seed)
  scores, chances, ceilings = (np.zeros(hits.classes.shape) for _ in range(3))
  for half in (first, ~first):
    chosen = match(told(hits)[~half].sum(0)) if pairs is None else pairs
    buttons, groups = (list(side) for side in zip(*chosen, strict=True))
    found = hits.world[:, half]
    scores[:, half] = found[:, :, buttons, groups].mean(-1)
    # Each button is as likely as any other to stand in a button's place.
    chances[:, half] = found.mean(2)[:, :, groups].mean(-1)
    ceilings[:, half] = hits.ceiling[:, half][:, :, groups].mean(-1)
  report = {}
  for n, length in enumerate(hits.after):
    differ = hits.classes[n] > 1

    def mean(
      values: np.ndarray, differ: np.ndarray = differ
    ) -> intervals.Interval:
      return intervals.ratio(values * differ, differ, hits.levels, seed=seed)

    report[str(length)] = {
      "score": mean(scores[n]),
      "chance": mean(chances[n]),
      "margin": mean(scores[n] - chances[n]),
      "ceiling": mean(ceilings[n]),
      "classes": float(hits.classes[n].mean()),
      "moments": int(differ.sum()),
    }
  return report


def told(hits: Hits) -> np.ndarray:
  """Returns hits at all numbers of frames, [M, A, G], where futures differ."""
  return (hits.world * (hits.classes > 1)[..., None, None]).sum(0)
