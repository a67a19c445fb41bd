"""Validates the models of a world, and the players and seeds of its steps."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import core

from genie_jax.core import errors
from genie_jax.models import button_map, store, world_sizes
from genie_jax.sampling import player


def check_seed(seed: Any) -> None:
  """Raises UserError unless a seed is an unsigned 32-bit integer."""
  whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
  if not whole or not 0 <= seed < 1 << 32:
    raise errors.UserError(
      f"The seed is {seed!r}; give a whole number from 0 to {(1 << 32) - 1}."
    )


def check_players(states: Sequence[Any]) -> None:
  """Raises UserError unless all states can be stepped together."""
  for state in states:
    if not isinstance(state, player.State):
      raise errors.UserError(
        f"A player is a state that `reset` or `step` returned, not "
        f"{type(state).__name__}; give one of these."
      )
    leaves = jax.tree.leaves(state)
    if any(isinstance(leaf, core.Tracer) for leaf in leaves):
      raise errors.UserError(
        "A world cannot be stepped inside jit, vmap or scan; use the reset "
        "and step of `world.functions()` there."
      )
    if any(leaf.is_deleted() for leaf in leaves):
      raise errors.UserError(
        "This player was used up by an earlier step; continue with the one "
        "that the step returned, and `fork` a player to keep it."
      )
  if len({id(state) for state in states}) < len(states):
    raise errors.UserError(
      "The same player is given twice; `fork` it to step it twice."
    )


def check_parts(parts: Mapping[str, store.Part]) -> None:
  """Checks that models form a world.

  Raises:
    UserError: A model is missing, has sizes out of bounds, or two were trained
      for different worlds.
  """
  for name in ("tokenizer", "dynamics"):
    if name not in parts:
      raise errors.UserError(
        f"A world needs a {name}, and only {', '.join(parts) or 'nothing'} "
        "was given; add the workdir that trained it."
      )
  shared = {
    "tokenizer": ("height", "width", "channels", "token_patch", "num_codes"),
    "lam": ("height", "width", "channels", "num_latent_actions"),
  }
  for name, part in parts.items():
    world_sizes.check(f"The {name}", part.config)
  needed = parts["dynamics"].config["world"]
  for name, fields in shared.items():
    if name not in parts:
      continue
    found = dict(parts[name].config["world"])
    if name == "lam":
      found["num_latent_actions"] = button_map.num_buttons(parts[name].config)
    for field in fields:
      if found[field] != needed[field]:
        raise errors.UserError(
          f"The {name} was trained with config.world.{field}="
          f"{found[field]!r}, the dynamics with {needed[field]!r}; combine "
          "models of the same world."
        )


def check_memory(parts: Mapping[str, store.Part], devices: int = 1) -> None:
  """Checks that the caches of one player fit the machine.

  A cache's size is the product of sizes that the weights bound only one by one.

  Args:
    parts: The models of a world.
    devices: The number of devices that a world is split over.

  Raises:
    UserError: They need more than all memory.
  """
  held = 0
  for name in ("tokenizer", "dynamics"):
    module = parts[name].module
    slots = max(1, parts[name].config["world"]["num_frames"] - 1)
    cache = jax.eval_shape(
      lambda module=module, slots=slots: module.empty_cache(1, slots)
    )
    held += sum(
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache)
    )
  stats = jax.local_devices()[0].memory_stats()
  memory = (
    stats["bytes_limit"] * devices
    if stats and "bytes_limit" in stats
    else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  )
  if held > memory:
    raise errors.UserError(
      f"A player of this world needs {held / 1e9:,.1f} GB for its caches "
      f"alone, and there are {memory / 1e9:,.1f} GB; play it on a larger "
      "machine, or a world with a shorter window."
    )
