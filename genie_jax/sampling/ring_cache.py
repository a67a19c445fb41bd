"""Rebases the positions of ring-buffer caches, so that they stay small."""

import jax

from genie_jax.models import protocols

# Float32 angles lose precision as positions grow. A cache that is never
# recomputed is rebased when it reaches this position, every few minutes.
MAX_POSITION = 4096


def rebase(
  position: jax.Array, cache: protocols.Cache, slots: int
) -> tuple[jax.Array, protocols.Cache]:
  """Reduces the positions of a cache once they reach MAX_POSITION.

  Args:
    position: int32 scalar, position of the newest frame.
    cache: The ring-buffer cache.
    slots: Its number of slots.

  Returns:
    Position and cache, rebased or unchanged.
  """
  # A multiple of the slots, so that each frame stays in slot position % slots.
  shift = (MAX_POSITION - slots) // slots * slots
  return jax.lax.cond(
    position >= MAX_POSITION,
    lambda: (position - shift, cache.renumbered(shift)),
    lambda: (position, cache),
  )
