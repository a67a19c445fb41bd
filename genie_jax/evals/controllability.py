"""Measures how much a world reacts to its buttons.

Delta PSNR (Genie, section 3.1) is the PSNR of a rollout with the actions
inferred from the true clip, minus the PSNR of one with random actions. Our
convention: the prompt is one frame, x_1, and t counts the drawn frames. So
t = 4 is the fourth drawn frame, after four actions (the paper writes the
rollout's actions as a_1..t).

A code that only describes how things already move scores high against random
codes. `delta_previous` therefore compares with a rollout that repeats the code
of the last transition before the drawn frames.

Shapes:
  n  clips     A  actions     M  prompts     F  frames drawn
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from genie_jax.evals import codebook, intervals, prediction, reconstruction

DELTA_FRAME = 4
# Drawn frames of `delta_previous`. At the first one, the repeated code is that
# of the transition just before; later it lags behind the state of the game.
DELTA_PREVIOUS_FRAMES = (1, DELTA_FRAME)


def delta_psnr(
  truth: np.ndarray,
  inferred: np.ndarray,
  random: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, intervals.Interval]:
  """Returns the delta PSNR of one frame, the mean of each clip's difference.

  Args:
    truth: uint8 [n, H, W, C], the true frame t.
    inferred: uint8 [n, H, W, C], frame t of rollouts with inferred actions.
    random: uint8 [n, H, W, C], the same with random actions and the same
      noise.
    levels: [n].
    seed: Seed of the bootstrap.

  Returns:
    Name -> Interval in decibels: `delta`, and the mean PSNR over clips with
    `inferred` and with `random` actions.
  """
  first = reconstruction.psnr(reconstruction.clip_errors(truth, inferred))
  second = reconstruction.psnr(reconstruction.clip_errors(truth, random))
  mean = lambda x: intervals.ratio(x, np.ones(len(x)), levels, seed=seed)
  return {
    "delta": mean(first - second),
    "inferred": mean(first),
    "random": mean(second),
  }


def delta_previous(
  truth: np.ndarray,
  last: np.ndarray,
  drawn: Mapping[str, np.ndarray],
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, dict[str, intervals.Interval]]:
  """Compares one drawn frame with inferred, repeated and random actions.

  Args:
    truth: uint8 [n, H, W, C], the true frame t.
    last: uint8 [n, H, W, C], the last frame of the prompt.
    drawn: Name -> uint8 [n, H, W, C], frame t with the same noise: `inferred`,
      `previous` (the last action before the drawn frames, repeated), `random`;
      and `ceiling`, the tokenizer's reconstruction of the truth.
    levels: [n].
    seed: Seed of the bootstrap.

  Returns:
    `all_pixels` and `changed_pixels` (those that differ between `last` and
    `truth`; clips without any are left out), each name -> Interval in decibels:
    `previous` and `random`, the mean over clips of the PSNR with inferred
    actions minus that with these actions; and the mean PSNRs
    `psnr_inferred`, `psnr_previous`, `psnr_random`, `psnr_copied` (of `last`)
    and `psnr_ceiling`.
  """
  changed = prediction.changed_pixels(truth, last)
  shown = {**drawn, "copied": last}
  found = {}
  for scope, where in (
    ("all_pixels", np.ones_like(changed)),
    ("changed_pixels", changed),
  ):
    pixels = where.sum((1, 2))  # [n]
    used = pixels > 0
    mean = lambda x, used=used: intervals.ratio(
      np.where(used, x, 0.0), used, levels, seed=seed
    )
    psnr = {}
    for name, frames in shown.items():
      error = reconstruction.squared_error(truth, frames) * where[..., None]
      total = error.sum((1, 2, 3), dtype=np.float64)
      psnr[name] = reconstruction.psnr(
        total / np.maximum(pixels * truth.shape[-1], 1)
      )
    found[scope] = {
      name: mean(psnr["inferred"] - psnr[name])
      for name in ("previous", "random")
    } | {f"psnr_{name}": mean(values) for name, values in psnr.items()}
  return found


def effects(rollouts: np.ndarray) -> np.ndarray:
  """Returns the difference between the rollouts of each pair of buttons.

  Args:
    rollouts: uint8 [A, M, F, H, W, C]: one action held for F frames, from the
      same M prompts with the same noise.

  Returns:
    float64 [A, A], mean absolute difference of pixels between two actions'
    rollouts, in 8-bit levels (0 to 255); zeros on the diagonal.
  """
  flat = rollouts.reshape(len(rollouts), -1).astype(np.float32)
  return np.array(
    [[np.abs(a - b).mean(dtype=np.float64) for b in flat] for a in flat]
  )


def action_effects(matrix: np.ndarray) -> np.ndarray:
  """Returns each action's mean difference from all others, [A]."""
  return matrix.sum(1) / max(len(matrix) - 1, 1)


def motion(frames: np.ndarray) -> np.ndarray:
  """Returns the mean absolute change from frame to frame, in 8-bit levels.

  Args:
    frames: uint8 [n, F, H, W, C].

  Returns:
    float64 [F - 1]; values that fall to 0 show that the world freezes.
  """
  gap = np.abs(np.diff(frames.astype(np.float32), axis=1))
  return gap.mean((0, 2, 3, 4), dtype=np.float64)


def liveliness(
  frames: np.ndarray, tokens: np.ndarray, num_codes: int
) -> dict[str, Any]:
  """Measures motion and variety of clips, to compare rollouts with real clips.

  Args:
    frames: uint8 [n, F, H, W, C].
    tokens: int [n, F, h, w].
    num_codes: V.

  Returns:
    `motion`, the mean over frames; `motion_by_frame`; `token_entropy`, in bits
    of the pooled token frequencies; `token_change`, the share of tokens that
    differ from the previous frame.
  """
  by_frame = motion(frames)
  return {
    "motion": float(by_frame.mean()),
    "motion_by_frame": [float(x) for x in by_frame],
    "token_entropy": codebook.entropy(codebook.counts(tokens, num_codes)),
    "token_change": float((tokens[:, 1:] != tokens[:, :-1]).mean()),
  }


def late_motion(
  drawn: np.ndarray, real: np.ndarray, levels: np.ndarray, *, seed: int
) -> dict[str, intervals.Interval]:
  """Compares motion in the second half of rollouts with that of real clips.

  Args:
    drawn: uint8 [n, F, H, W, C], rollouts.
    real: uint8 [n, T, H, W, C], real clips of the same levels.
    levels: [n].
    seed: Seed of the bootstrap.

  Returns:
    Name -> Interval: `ratio` of the motion of rollouts to that of the clips;
    `likeness`, the ratio or its inverse, whichever is smaller: 1 if they are
    equal, 0 for a world that has frozen.
  """
  by_clip = lambda frames: np.array(
    [motion(clip[None]).mean() for clip in frames]
  )
  sums = {
    "drawn": intervals.by_level(
      by_clip(drawn[:, drawn.shape[1] // 2 :]), levels
    ),
    "real": intervals.by_level(by_clip(real), levels),
  }
  ratio = lambda s: s["drawn"] / np.maximum(s["real"], 1e-9)

  def likeness(s):
    found = ratio(s)
    return np.minimum(found, 1 / np.maximum(found, 1e-9))

  return {
    "ratio": intervals.bootstrap(ratio, sums, seed=seed),
    "likeness": intervals.bootstrap(likeness, sums, seed=seed),
  }
