"""Measures how much a world reacts to its buttons.

Delta PSNR (Genie, section 3.1) is the PSNR of a rollout with the actions
inferred from the true clip, minus the PSNR of one with random actions. Our
convention: the prompt is one frame, x_1, and t counts the drawn frames. So
t = 4 is the fourth drawn frame, after four actions (the paper writes the
rollout's actions as a_1..t).

Shapes:
  n  clips     A  actions     M  prompts     F  frames drawn
"""

from typing import Any

import numpy as np

from genie_jax.evals import codebook, intervals, reconstruction

DELTA_FRAME = 4


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
