"""The compiled programs of a world, shared by all worlds of equal shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from genie_jax.core import cache
from genie_jax.sampling import player
from genie_jax.weights import int8


def keep_programs() -> None:
  """Keeps what is compiled from here on, in the user's cache.

  JAX_COMPILATION_CACHE_DIR names another folder.
  """
  settings: Any = jax.config  # Its flags are not in its type.
  if not settings.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache.default_folder()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@functools.partial(jax.jit, static_argnames="module")
def encode(module: Any, params: Any, frames: jax.Array) -> jax.Array:
  """Returns what a tokenizer or a LAM makes of uint8 frames [B, T, H, W, C]."""
  return module.apply(
    {"params": int8.dequantize(params)},
    frames.astype(jnp.float32) / 255,
    method="encode",
  )


@functools.partial(jax.jit, static_argnames="models")
def reset(models, params, tokens, latent_actions, key):
  """See `player.reset`."""
  return player.reset(models, params, tokens, latent_actions, key)


@functools.partial(jax.jit, static_argnames="models", donate_argnames="state")
def step(models, params, state, action, sampling):
  """See `player.step`; the state is used up."""
  return player.step(models, params, state, action, sampling)


@functools.partial(jax.jit, static_argnames="models", donate_argnames="states")
def step_many(models, params, states, actions, sampling):
  """See `player.step_many`; the states are used up."""
  return player.step_many(models, params, states, actions, sampling)


@jax.jit
def copy(state):
  """Returns a state in memory of its own."""
  return jax.tree.map(jnp.copy, state)
