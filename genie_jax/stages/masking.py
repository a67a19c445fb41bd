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
  for name in ("clean_frame", "clean_past", "noise"):
    value = config.get(name, 0.0)  # Older configs have no noise.
    if not 0 <= value <= 1:
      raise errors.UserError(
        f"config.mask.{name}={value} is a probability; choose a number from 0 "
        "to 1."
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


def corrupt(rng: jax.Array, tokens: jax.Array, most: float) -> jax.Array:
  """Replaces some tokens of a clip by others of the same clip.

  When a world is played, the past contains its own mistakes. A model that has
  only seen the game's frames takes them for truth and adds to them; with such
  noise it learns to correct them (GameNGen, arXiv:2408.14837, adds noise to
  past frames for the same reason). Differs from the paper, which has no noise.

  Args:
    rng: Key.
    tokens: int32 [B, T, h, w].
    most: The largest share of replaced tokens; that of each clip is uniform
      in [0, most].

  Returns:
    int32 [B, T, h, w].
  """
  b = tokens.shape[0]
  flat = tokens.reshape(b, -1)
  share, place, source = jax.random.split(rng, 3)
  replaced = jax.random.uniform(place, flat.shape) < most * jax.random.uniform(
    share, (b, 1)
  )
  other = jax.random.randint(source, flat.shape, 0, flat.shape[1])
  other = jnp.take_along_axis(flat, other, axis=1)
  return jnp.where(replaced, other, flat).reshape(tokens.shape)


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
