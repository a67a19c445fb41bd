"""Next-frame prediction with the true tokens as history.

Shapes:
  n  clips, one predicted frame each
"""

from typing import Any

import numpy as np

from genie_jax.evals import intervals, reconstruction


def most_frequent(tokens: np.ndarray, num_codes: int) -> np.ndarray:
  """Returns the most frequent token of each position.

  Args:
    tokens: int [..., h, w], training tokens.
    num_codes: V.

  Returns:
    int32 [h, w].
  """
  h, w = tokens.shape[-2:]
  flat = tokens.reshape(-1, h * w)
  best = [
    np.bincount(flat[:, place], minlength=num_codes).argmax()
    for place in range(h * w)
  ]
  return np.array(best, np.int32).reshape(h, w)


def token_scores(
  drawn: np.ndarray,
  target: np.ndarray,
  last: np.ndarray,
  frequent: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, Any]:
  """Returns token accuracies of a next-frame prediction and of its baselines.

  Args:
    drawn: int [n, h, w], predicted tokens.
    target: int [n, h, w], true tokens of that frame.
    last: int [n, h, w], true tokens of the previous frame.
    frequent: int [h, w], the most frequent training token of each position.
    levels: [n].
    seed: Seed of the bootstrap.

  Returns:
    Name -> Interval: `changed_*` over positions whose token differs from the
    previous frame, `all_*` over all positions; `*_world`, `*_copy_last` (0 on
    changed positions, by definition) and `*_most_frequent`; and
    `changed_share`, the share of positions that change.
  """
  changed = target != last
  guesses = {
    "world": drawn,
    "copy_last": last,
    "most_frequent": np.broadcast_to(frequent, target.shape),
  }
  total = lambda x: x.reshape(len(x), -1).sum(1)
  everywhere = np.ones_like(changed)
  scores = {}
  for scope, where in (("changed", changed), ("all", everywhere)):
    for name, guess in guesses.items():
      right = (guess == target) & where
      scores[f"{scope}_{name}"] = intervals.ratio(
        total(right), total(where), levels, seed=seed
      )
  scores["changed_share"] = intervals.ratio(
    total(changed), total(everywhere), levels, seed=seed
  )
  return scores


def changed_pixels(truth: np.ndarray, last: np.ndarray) -> np.ndarray:
  """Returns where any channel differs from the previous frame, [..., H, W]."""
  return (truth != last).any(-1)


def pixel_scores(
  drawn: np.ndarray,
  truth: np.ndarray,
  last: np.ndarray,
  ceiling: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, Any]:
  """Returns PSNRs over the pixels that changed between two true frames.

  A pixel has changed if any of its channels differs between the true frame and
  the previous true frame. The pooled error contains all its channels.

  Args:
    drawn: uint8 [n, H, W, C], the prediction.
    truth: uint8 [n, H, W, C].
    last: uint8 [n, H, W, C], the previous true frame, a baseline.
    ceiling: uint8 [n, H, W, C], the tokenizer's reconstruction of the truth,
      an upper bound.
    levels: [n].
    seed: Seed of the bootstrap.

  Returns:
    Name -> Interval: `world`, `copy_last` and `ceiling` in decibels, `gain`
    (`world` minus `copy_last`, paired), and `changed_share` of pixels.
  """
  changed = changed_pixels(truth, last)
  total = lambda x: x.reshape(len(x), -1).sum(1, dtype=np.float64)
  sums = {"count": intervals.by_level(total(changed) * truth.shape[-1], levels)}
  for name, frames in (
    ("world", drawn),
    ("copy_last", last),
    ("ceiling", ceiling),
  ):
    error = reconstruction.squared_error(truth, frames) * changed[..., None]
    sums[name] = intervals.by_level(total(error), levels)

  def decibels(name):
    return lambda drawn_sums: reconstruction.psnr(
      drawn_sums[name] / np.maximum(drawn_sums["count"], 1)
    )

  scores = {
    name: intervals.bootstrap(decibels(name), sums, seed=seed)
    for name in ("world", "copy_last", "ceiling")
  }
  scores["gain"] = intervals.bootstrap(
    lambda s: decibels("world")(s) - decibels("copy_last")(s), sums, seed=seed
  )
  scores["changed_share"] = intervals.ratio(
    total(changed), np.full(len(truth), changed[0].size), levels, seed=seed
  )
  return scores
