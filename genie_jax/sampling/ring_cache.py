"""Rings of frames that are never started again: their numbers stay small."""

import jax

from genie_jax.models import protocols

# Float32 angles lose digits as positions grow; a ring that never starts anew
# is turned back when it gets here, every few minutes.
MAX_POSITION = 4096


def turn_back(
  position: jax.Array, cache: protocols.Cache, slots: int
) -> tuple[jax.Array, protocols.Cache]:
  """Moves a ring's count of frames back to small numbers, when it is time.

  Args:
    position: int32 scalar, that of the newest frame.
    cache: The ring.
    slots: How many frames it holds.

  Returns:
    Both, moved or as they were.
  """
  # A multiple of the slots: each frame stays in the slot of its position.
  shift = (MAX_POSITION - slots) // slots * slots
  return jax.lax.cond(
    position >= MAX_POSITION,
    lambda: (position - shift, cache.renumbered(shift)),
    lambda: (position, cache),
  )
