"""Rollouts that measure the effect of a world's buttons.

Shapes:
  n  clips     T  frames of a clip     A  buttons     M  prompts
  F  frames drawn
"""

from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.evals import controllability, evaluated_world, intervals

# Added to the ids of clips whose noise must differ from that of other clips.
_OTHER_NOISE = 1_000_000


def delta(
  subject: evaluated_world.Subject,
  prompts: np.ndarray,
  frames: np.ndarray,
  buttons: np.ndarray,
  choices: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, intervals.Interval]:
  """Measures delta PSNR with two rollouts of each clip with the same noise.

  Args:
    subject: The world.
    prompts: int32 [n, 1, h, w], tokens of the first frames.
    frames: uint8 [n, T, H, W, C], the truth.
    buttons: int32 [n, T-1], the buttons of the true clips.
    choices: The buttons from which random ones are drawn.
    levels: [n].
    seed: Of the noise, the random buttons and the bootstrap.

  Raises:
    UserError: Clips are too short.
  """
  t = controllability.DELTA_FRAME
  if frames.shape[1] <= t:
    raise errors.UserError(
      f"Delta PSNR at t = {t} needs clips of {t + 1} frames, but the world "
      f"has config.world.num_frames={frames.shape[1]}; train a world with more."
    )
  random = np.random.default_rng(seed).choice(choices, (len(frames), t))
  ids = np.arange(len(frames), dtype=np.int32)
  inferred, randomly = (
    subject.decode(
      subject.rollout(prompts, pressed.astype(np.int32), ids, seed)
    )[:, t]
    for pressed in (buttons[:, :t], random)
  )
  return controllability.delta_psnr(
    frames[:, t], inferred, randomly, levels, seed=seed
  )


def delta_previous(
  subject: evaluated_world.Subject,
  tokens: np.ndarray,
  frames: np.ndarray,
  rebuilt: np.ndarray,
  buttons: np.ndarray,
  choices: np.ndarray,
  levels: np.ndarray,
  *,
  seed: int,
) -> dict[str, Any]:
  """Compares inferred buttons with the one before, repeated, and random ones.

  The prompt is about half of the clip: the world sees how things move, so what
  inferred buttons add must be about the present transition.

  Args:
    subject: The world.
    tokens: int32 [n, T, h, w], the clips' tokens; T at least 5.
    frames: uint8 [n, T, H, W, C], the truth.
    rebuilt: uint8 [n, T, H, W, C], the clips decoded from their tokens.
    buttons: int32 [n, T-1], the buttons of the true clips.
    choices: The buttons from which random ones are drawn.
    levels: [n].
    seed: Of the noise, the random buttons and the bootstrap.

  Returns:
    `prompt_frames`, P; and `frames`, number t of the drawn frame as text ->
    figures of `controllability.delta_previous`. A t that does not fit in the
    clip after a prompt of two frames is left out.
  """
  length = frames.shape[1]
  furthest = max(controllability.DELTA_PREVIOUS_FRAMES)
  prompt = max(2, min(length // 2, length - furthest))
  count = min(furthest, length - prompt)
  past, present = np.split(buttons[:, : prompt - 1 + count], [prompt - 1], 1)
  pressed = {
    "inferred": present,
    "previous": np.repeat(past[:, -1:], count, 1),
    "random": np.random.default_rng(seed + 2).choice(choices, present.shape),
  }
  ids = np.arange(len(frames), dtype=np.int32)
  drawn = {}
  for name, chosen in pressed.items():
    drawn[name] = subject.decode(
      subject.rollout(
        tokens[:, :prompt],
        np.concatenate([past, chosen], 1).astype(np.int32),
        ids,
        seed,
      )
    )
  drawn["ceiling"] = rebuilt
  return {
    "prompt_frames": prompt,
    "frames": {
      str(t): controllability.delta_previous(
        frames[:, prompt - 1 + t],
        frames[:, prompt - 1],
        {name: shown[:, prompt - 1 + t] for name, shown in drawn.items()},
        levels,
        seed=seed,
      )
      for t in controllability.DELTA_PREVIOUS_FRAMES
      if t <= count
    },
  }


def hold(
  subject: evaluated_world.Subject,
  prompts: np.ndarray,
  choices: np.ndarray,
  followed: np.ndarray,
  *,
  seed: int,
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
  """Holds each button from the same prompts with the same noise.

  Args:
    subject: The world.
    prompts: int32 [M, 1, h, w].
    choices: The A buttons that have different effects.
    followed: int32 [n, F], buttons of the true clips of the first n prompts.
      They are played in the same call, which adds little time.
    seed: Of the noise.

  Returns:
    Figures: `buttons`; `effect_matrix` [A, A] and `effects` [A] in 8-bit
    levels; `mean_effect`; and `noise_effect`, the difference between two
    rollouts of the first button that differ only in noise. Then the rollouts,
    uint8 [A, M, 1 + F, H, W, C], the prompt first; and those of the true
    clips' buttons, uint8 [n, 1 + F, H, W, C].
  """
  count, (extra, length) = len(prompts), followed.shape
  pressed = np.repeat(np.append(choices, choices[0]), count)  # [(A + 1) * M]
  pressed = np.repeat(pressed[:, None], length, 1)
  ids = np.tile(np.arange(count), len(choices) + 1)
  ids[-count:] += _OTHER_NOISE
  tokens = subject.rollout(
    np.concatenate(
      [np.tile(prompts, (len(choices) + 1, 1, 1, 1)), prompts[:extra]]
    ),
    np.concatenate([pressed, followed]).astype(np.int32),
    np.concatenate([ids, np.arange(extra)]).astype(np.int32),
    seed,
  )
  frames = subject.decode(tokens)
  true_clips = frames[len(frames) - extra :]
  frames = frames[: len(pressed)].reshape(
    len(choices) + 1, count, *frames.shape[1:]
  )
  # The prompt is the same for all; only drawn frames count.
  matrix = controllability.effects(frames[:-1, :, 1:])
  effects = controllability.action_effects(matrix)
  noise = controllability.effects(frames[[0, -1], :, 1:])[0, 1]
  return (
    {
      "buttons": [int(button) for button in choices],
      "effect_matrix": matrix,
      "effects": effects,
      "mean_effect": float(effects.mean()),
      "noise_effect": float(noise),
    },
    frames[:-1],
    true_clips,
  )


def free(
  subject: evaluated_world.Subject,
  prompts: np.ndarray,
  choices: np.ndarray,
  *,
  seed: int,
) -> tuple[dict[str, Any], np.ndarray]:
  """Plays random buttons for 1.5 times the length of the window.

  Args:
    subject: The world.
    prompts: int32 [n, 1, h, w].
    choices: The buttons from which random ones are drawn.
    seed: Of the buttons and the noise.

  Returns:
    Figures of `controllability.liveliness` for the rollouts, and their frames,
    uint8 [n, 1 + F, H, W, C].
  """
  length = subject.num_frames + subject.num_frames // 2
  pressed = np.random.default_rng(seed + 1).choice(
    choices, (len(prompts), length)
  )
  tokens = subject.rollout(
    prompts,
    pressed.astype(np.int32),
    np.arange(len(prompts), dtype=np.int32),
    seed + 1,
  )
  frames = subject.decode(tokens)
  return controllability.liveliness(frames, tokens, subject.num_codes), frames
