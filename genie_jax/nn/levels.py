"""The levels of a finite scalar quantizer, in plain Python.

A vector has one entry for each number of `levels`, and an entry takes as many
values as its number says, so there are prod(levels) codes. Shared by the
models in JAX and in PyTorch.
"""

import functools
import math
from typing import Any

from genie_jax.core import errors

# Fewer values an entry cost quality in the paper (arXiv:2309.15505, section
# 4), which uses at least so many.
LEAST = 5
_LARGEST = 1 << 20


def choose(num_codes: int) -> tuple[int, ...]:
  """Returns the levels that are taken where a config states none.

  As many entries as possible, each with at least LEAST levels; of several
  such choices the one whose largest number is smallest; largest first. 1024
  codes give (16, 8, 8), 64 give (8, 8), and 6 give (6,): where there is no
  such product, one entry takes all.

  Args:
    num_codes: What the levels multiply to.
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
  """Returns levels as a tuple, if they are such.

  Args:
    levels: What was given.
    num_codes: What they must multiply to.
    where: The field, for messages.

  Raises:
    UserError: They are not whole numbers above 1, or have another product.
  """
  if num_codes < 2:
    raise errors.UserError(
      f"{where}: finite scalar quantisation needs at least 2 codes, and the "
      f"model has {num_codes}; give it more, or use another quantizer."
    )
  advice = f"use {where}={choose(num_codes)}, or leave it empty for that."
  whole = isinstance(levels, list | tuple) and all(
    type(level) is int and 1 < level <= _LARGEST for level in levels
  )
  if not whole or not levels:
    raise errors.UserError(
      f"{where}={levels!r:.60} must be whole numbers from 2 to {_LARGEST}; "
      f"{advice}"
    )
  # Longer lists multiply to more than any number of codes.
  product = math.prod(levels[:64])
  if product != num_codes or len(levels) > 64:
    raise errors.UserError(
      f"{where}={tuple(levels)!r:.60} multiplies to {product}, but the model "
      f"has {num_codes} codes; {advice}"
    )
  return tuple(levels)
