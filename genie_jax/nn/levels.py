"""The levels of a finite scalar quantizer, in plain Python.

A vector has len(levels) entries, and entry i takes levels[i] values, so there
are prod(levels) codes. Shared by the models in JAX and in PyTorch.
"""

import functools
import math
from typing import Any

from genie_jax.core import errors

# The paper (arXiv:2309.15505, section 4) found that fewer levels per entry
# reduce quality, and uses at least 5.
LEAST = 5
_LARGEST = 1 << 20


def choose(num_codes: int) -> tuple[int, ...]:
  """Returns the levels to use where a config has none.

  It chooses as many entries as possible, each with at least LEAST levels; of
  several such choices, the one whose largest number is smallest. Levels are
  sorted from largest to smallest. 1024 codes give (16, 8, 8), and 64 give
  (8, 8). Where no such product exists, as for 6 codes, there is one entry:
  (6,).

  Args:
    num_codes: The product of the levels.
  """

  @functools.cache
  def best(rest: int, least: int) -> tuple[int, ...]:
    found = (rest,)
    for factor in range(least, math.isqrt(rest) + 1):
      if rest % factor == 0:
        found = max(
          found,
          (factor, *best(rest // factor, factor)),
          key=lambda levels: (len(levels), -levels[-1]),
        )
    return found

  return best(num_codes, LEAST)[::-1]


def check(levels: Any, num_codes: int, where: str) -> tuple[int, ...]:
  """Checks levels and returns them as a tuple.

  Args:
    levels: The given value.
    num_codes: The product that the levels must have.
    where: Name of the field, for messages.

  Raises:
    UserError: They are not whole numbers above 1, or their product differs.
  """
  if num_codes < 2:
    raise errors.UserError(
      f"{where}: finite scalar quantisation needs at least 2 codes, and the "
      f"model has {num_codes}; use more codes, or another quantizer."
    )
  advice = f"use {where}={choose(num_codes)}, the default, or leave it empty."
  whole = isinstance(levels, list | tuple) and all(
    type(level) is int and 1 < level <= _LARGEST for level in levels
  )
  if not whole or not levels:
    raise errors.UserError(
      f"{where}={levels!r:.60} must be whole numbers from 2 to {_LARGEST}; "
      f"{advice}"
    )
  # The product of a longer list exceeds any number of codes.
  product = math.prod(levels[:64])
  if product != num_codes or len(levels) > 64:
    raise errors.UserError(
      f"{where}={tuple(levels)!r:.60} multiplies to {product}, but the model "
      f"has {num_codes} codes; {advice}"
    )
  return tuple(levels)
