"""Caches as rings: frame t lies in slot t modulo the number of slots.

Shapes:
  Y  layers      T  frames      H  heads      K  width of a head
"""

import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.nn import attention, st_transformer

# Float32 angles lose digits as positions grow; a ring that never starts anew
# is turned back when it gets here, every few minutes.
MAX_POSITION = 4096


def ring(own: tuple[jax.Array, jax.Array], slots: int) -> st_transformer.Cache:
  """Returns a cache of the frames at positions 0 to T - 1.

  Args:
    own: Keys and values [Y, B, T, N, H, K].
    slots: How many frames it holds; the last ones where there are more.
  """
  count = own[0].shape[2]
  positions = np.arange(max(0, count - slots), count)
  at = np.full((slots,), -1)
  at[positions % slots] = positions
  put = lambda x: jnp.where(
    (at >= 0)[:, None, None, None], x[:, :, np.maximum(at, 0)], 0
  )
  return st_transformer.Cache(
    put(own[0]), put(own[1]), jnp.asarray(at, jnp.int32)
  )


def turn_back(
  position: jax.Array, cache: st_transformer.Cache
) -> tuple[jax.Array, st_transformer.Cache]:
  """Moves a ring's count of frames back to small numbers, when it is time.

  Scores depend on distances alone, so all positions may move together if the
  keys are turned by as much.

  Args:
    position: int32 scalar, that of the newest frame.
    cache: The ring.

  Returns:
    Both, moved or as they were.
  """
  slots = cache.positions.shape[0]
  # A multiple of the slots: each frame stays in the slot of its position.
  shift = (MAX_POSITION - slots) // slots * slots

  def turn():
    rotate = lambda key: attention.rotate(key, jnp.full((slots,), -shift))
    return (
      position - shift,
      cache.replace(
        key=jax.vmap(rotate)(cache.key), positions=cache.positions - shift
      ),
    )

  return jax.lax.cond(position >= MAX_POSITION, turn, lambda: (position, cache))
