"""Chooses the tokens that the dynamics model must predict in a training clip.

Shapes:
  B, T, h, w  clips, frames and token grid
"""

from typing import Any

import jax
import jax.numpy as jnp

from genie_jax.core import errors

_PER = ("clip", "frame")
_RATES = ("uniform", "cosine")


def check(config: Any) -> None:
  """Raises UserError if a field of `config.mask` is invalid."""
  for name, known in (("per", _PER), ("rate", _RATES)):
    if config[name] not in known:
      raise errors.UserError(
        f"config.mask.{name}={config[name]!r} is unknown"
        f"{errors.closest(str(config[name]), known)}; use one of "
        f"{', '.join(known)}."
      )
  if not 0 <= config.low < config.high <= 1:
    raise errors.UserError(
      f"config.mask: low={config.low} and high={config.high} must satisfy "
      "0 <= low < high <= 1."
    )
  for name in ("clean_frame", "clean_past"):
    if not 0 <= config[name] <= 1:
      raise errors.UserError(
        f"config.mask.{name}={config[name]} is a probability; choose a "
        "number from 0 to 1."
      )


def draw(
  rng: jax.Array, shape: tuple[int, ...], config: Any
) -> tuple[jax.Array, jax.Array]:
  """Draws hidden tokens.

  The paper hides tokens at one rate per clip, uniform in [0.5, 1] (section
  2.1), which is `per="clip", rate="uniform", low=0.5, high=1`. A model trained
  this way never sees a past without hidden tokens, nor the low rates of the
  last third of the cosine schedule; both occur when it is played. The other
  fields add them to training.

  Args:
    rng: Key.
    shape: (B, T, h, w).
    config: The group `config.mask`:
      `per`: "clip" or "frame", what shares one rate.
      `rate`: "uniform" in [low, high], or "cosine", the rate of a uniformly
        drawn refinement step, scaled into [low, high].
      `clean_frame`: Probability that no token of a frame is hidden.
      `clean_past`: Probability that in a clip one frame is hidden at a cosine
        rate, all frames before it are shown, and only its tokens are in the
        loss.

  Returns:
    hidden: bool [B, T, h, w]; the first frame is never hidden.
    judged: bool [B, T, h, w], the hidden tokens that are in the loss.
  """
  b, t = shape[:2]
  keys = jax.random.split(rng, 6)
  draws = (b, 1) if config.per == "clip" else (b, t)
  uniform = jax.random.uniform(keys[0], draws)
  if config.rate == "cosine":
    uniform = jnp.cos(0.5 * jnp.pi * uniform)
  rate = config.low + (config.high - config.low) * uniform
  clean = jax.random.bernoulli(keys[1], config.clean_frame, (b, t))
  rate = jnp.where(clean, 0.0, rate)

  frame = jnp.arange(t)[None]
  target = jax.random.randint(keys[2], (b, 1), 1, t)
  cosine = jnp.cos(0.5 * jnp.pi * jax.random.uniform(keys[3], (b, 1)))
  one = jnp.where(frame == target, cosine, jnp.where(frame < target, 0.0, 1.0))
  alone = jax.random.bernoulli(keys[4], config.clean_past, (b, 1))
  rate = jnp.where(alone, one, rate)  # [B, T]

  noise = jax.random.uniform(keys[5], shape)
  hidden = (noise < rate[..., None, None]) & (frame > 0)[..., None, None]
  judged = hidden & (~alone | (frame == target))[..., None, None]
  return hidden, judged


def next_frame(
  rng: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
  """Hides one whole frame of each clip, and shows all frames before it.

  This is the input of the first refinement when a frame is played.

  Args:
    rng: Key for drawing the frame.
    shape: (B, T, h, w).

  Returns:
    hidden, judged: bool [B, T, h, w]; frames after the target are hidden but
    not judged.
  """
  b, t = shape[:2]
  target = jax.random.randint(rng, (b, 1), 1, t)
  frame = jnp.arange(t)[None]
  widen = lambda x: jnp.broadcast_to(x[..., None, None], shape)
  return widen(frame >= target), widen(frame == target)
