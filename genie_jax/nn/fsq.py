"""Finite scalar quantisation: rounding in place of a table of codes.

FSQ (Mentzer et al., arXiv:2309.15505). Each entry of a vector is squashed into
a range with a few whole numbers in it and rounded. The codes are all the
combinations, so nothing is learnt here, no loss is needed, and no code can
die.

Shapes:
  V  codes, prod(levels)        E  entries of a vector, len(levels)
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.nn import codes as codes_lib
from genie_jax.nn import levels as levels_lib


class FSQ(codes_lib.Quantizer):
  """Rounds each entry to one of its levels.

  An entry x with L levels becomes round(tanh(x + s) * (L - 1) / 2 - d), one of
  the whole numbers from -(L // 2) to (L - 1) // 2, divided by L // 2. For odd
  L, s = d = 0. For even L, d = 1/2 moves the range by half a level, so that
  its ends are whole numbers, and s = atanh(2 d / (L - 1)) brings x = 0 back to
  0, the middle of a level. Two levels have no middle one: there s = 0, and
  x = 0 is the border between them.

  A code is the number whose digits, in the base of their level, are the
  levels from the lowest on; the first entry's counts least.

  Attributes:
    levels: How many levels each entry has.
  """

  FIELDS: ClassVar[tuple[str, ...]] = ("levels",)
  BOUNDED: ClassVar[bool] = True

  levels: tuple[int, ...]

  @classmethod
  def complete(
    cls, num_codes: int, fields: Mapping[str, Any], where: str
  ) -> dict[str, Any]:
    """Returns the levels that were given, or those of `levels.choose`."""
    given = fields.get("levels", levels_lib.choose(num_codes))
    levels = levels_lib.check(given, num_codes, f"{where}.levels")
    return {"levels": levels}

  @classmethod
  def build(cls, num_codes: int, fields: Mapping[str, Any]) -> "FSQ":
    """Returns the quantizer with the levels of `fields`."""
    del num_codes
    return cls(tuple(fields["levels"]))

  @property
  def num_codes(self) -> int:
    """V."""
    return math.prod(self.levels)

  @property
  def code_dim(self) -> int:
    """E."""
    return len(self.levels)

  @property
  def read_scale(self) -> float:
    """Initial scale of the layer that reads the vectors: 1 / their RMS."""
    squares = [
      sum((digit - n // 2) ** 2 for digit in range(n)) / n / (n // 2) ** 2
      for n in self.levels
    ]
    return (sum(squares) / len(squares)) ** -0.5

  def __call__(self, x: jax.Array) -> codes_lib.Quantized:
    """Quantises x: [..., E], any float dtype; arithmetic is float32."""
    chex.assert_axis_dimension(x, -1, self.code_dim)
    levels = np.array(self.levels)
    half, even = (levels - 1) / 2, levels % 2 == 0
    moved = np.where(even, 0.5, 0.0)
    # Not for two levels, where half = moved and the shift would be infinite.
    shift = np.arctanh(np.where(levels > 2, moved / half, 0.0))
    x = x.astype(jnp.float32) + np.float32(shift)
    x = jnp.tanh(x) * np.float32(half) - np.float32(moved)
    rounded = jax.lax.stop_gradient(jnp.round(x))
    digits = rounded.astype(jnp.int32) + self._lowest()
    return codes_lib.Quantized(
      vectors=(x + jax.lax.stop_gradient(rounded - x)) * self._step(),
      codes=(digits * self._place()).sum(-1, dtype=jnp.int32),
      inputs=x * self._step(),
      losses={},
    )

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Returns the vectors [..., E] of codes: int32 [...]."""
    levels = np.array(self.levels, np.int32)
    digits = codes[..., None] // self._place() % levels
    return (digits - self._lowest()).astype(jnp.float32) * self._step()

  def _lowest(self) -> np.ndarray:
    """Returns by how much digits exceed whole numbers around 0, [E]."""
    return np.array(self.levels, np.int32) // 2

  def _place(self) -> np.ndarray:
    """Returns what each digit counts in a code, int32 [E]."""
    return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)

  def _step(self) -> np.ndarray:
    """Returns the distance of two levels, float32 [E].

    A factor rather than a division: compilers replace divisions by a
    constant, and the vectors must be the same in every program.
    """
    return (1 / (np.array(self.levels) // 2)).astype(np.float32)
