"""The compiled programs of a world, shared by all worlds of equal shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from genie_jax.core import cache
from genie_jax.sampling import player
from genie_jax.worlds import functions as functions_lib


def keep_programs() -> None:
  """Keeps what is compiled from here on, in the user's cache.

  JAX_COMPILATION_CACHE_DIR names another folder.
  """
  settings: Any = jax.config  # Its flags are not in its type.
  if not settings.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache.default_folder()))
    # Where something was compiled before, JAX has noted that there is no cache.
    compilation_cache.reset_cache()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


encode = jax.jit(functions_lib.encode, static_argnames="module")


@jax.jit
def reset(functions, frames, latent_actions, key):
  """See `Functions.reset`."""
  return functions.reset(functions.params, frames, key, latent_actions)


@functools.partial(jax.jit, donate_argnames="state")
def step(functions, state, action):
  """See `Functions.step`; the state is used up."""
  return functions.step(functions.params, state, action)


@functools.partial(jax.jit, donate_argnames="states")
def step_many(functions, states, actions):
  """See `player.step_many`; the states are used up."""
  return player.step_many(
    functions.models, functions.params, states, actions, functions.sampling
  )


@jax.jit
def copy(state):
  """Returns a state in memory of its own."""
  return jax.tree.map(jnp.copy, state)
