"""Finite scalar quantisation: rounding in place of a table of codes.

FSQ (Mentzer et al., arXiv:2309.15505). Each entry of a vector is squashed into
a range that contains a few whole numbers, and rounded. Each combination of
rounded entries is a code, so the quantizer has no parameters, needs no loss,
and has no codes that could stop being used.

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

  A code is a number in a mixed radix: digit i is the index of entry i's level,
  counted from the lowest level, in base levels[i]. The first entry is the
  least significant digit.

  Attributes:
    levels: The number of levels of each entry.
  """

  FIELDS: ClassVar[tuple[str, ...]] = ("levels",)
  BOUNDED: ClassVar[bool] = True

  levels: tuple[int, ...]

  @classmethod
  def complete(
    cls, num_codes: int, fields: Mapping[str, Any], where: str
  ) -> dict[str, Any]:
    """Returns the given levels, or those of `levels.choose`."""
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
    # No shift for two levels, where half = moved and it would be infinite.
    shift = np.arctanh(np.where(levels > 2, moved / half, 0.0))
    x = x.astype(jnp.float32) + np.float32(shift)
    x = jnp.tanh(x) * np.float32(half) - np.float32(moved)
    rounded = jax.lax.stop_gradient(jnp.round(x))
    digits = rounded.astype(jnp.int32) + self._offsets()
    return codes_lib.Quantized(
      vectors=(x + jax.lax.stop_gradient(rounded - x)) * self._spacing(),
      codes=(digits * self._place_values()).sum(-1, dtype=jnp.int32),
      inputs=x * self._spacing(),
      losses={},
    )

  def lookup(self, codes: jax.Array) -> jax.Array:
    """Returns the vectors [..., E] of codes: int32 [...]."""
    levels = np.array(self.levels, np.int32)
    digits = codes[..., None] // self._place_values() % levels
    return (digits - self._offsets()).astype(jnp.float32) * self._spacing()

  def _offsets(self) -> np.ndarray:
    """Returns digit minus rounded value for each entry, int32 [E]."""
    return np.array(self.levels, np.int32) // 2

  def _place_values(self) -> np.ndarray:
    """Returns the place value of each digit in a code, int32 [E]."""
    return np.cumprod([1, *self.levels[:-1]]).astype(np.int32)

  def _spacing(self) -> np.ndarray:
    """Returns the distance between adjacent levels of each entry, float32 [E].

    Callers multiply by it rather than divide by its inverse: compilers may
    replace a division by a constant with a multiplication, and the vectors
    must be the same in every program.
    """
    return (1 / (np.array(self.levels) // 2)).astype(np.float32)
