"""Quantizers in PyTorch, by their names in a world's config.json.

A quantizer is a class with

  TENSORS                              names of its tensors, in PART/codes/
  __init__(fields, tensors, num_codes)
  encode(x) -> int64 [...]             x: float [..., E]
  lookup(codes) -> float32 [..., E]    codes: int64 [...]

`fields` is the group `quantizer` of config.json, and `code_dim` and `unit_norm`
of the group `model`. `register` adds a quantizer of another package.
"""

from collections.abc import Mapping
from typing import Any

import torch

from genie_jax.core import registry
from genie_jax.nn import levels as levels_lib

Tensors = Mapping[str, torch.Tensor]

_DEFAULT = "vq"
_METHODS = {"encode": "(x) -> codes", "lookup": "(codes) -> vectors"}


class Codebook:
  """Vector quantisation with a table of vectors (nearest neighbour)."""

  TENSORS = ("codebook",)

  def __init__(
    self, fields: Mapping[str, Any], tensors: Tensors, num_codes: int
  ):
    """Initializes the table from `tensors`."""
    del num_codes
    self._unit_norm = fields["unit_norm"]
    self._table = self._unit(tensors["codebook"])

  def encode(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the nearest codes, int64 [...], of vectors [..., E]."""
    affinity = self._unit(x.float()) @ self._table.T
    return (affinity - 0.5 * self._table.square().sum(-1)).argmax(-1)

  def lookup(self, codes: torch.Tensor) -> torch.Tensor:
    """Returns the vectors [..., E] of codes: int64 [...]."""
    return self._table[codes]

  def _unit(self, x: torch.Tensor) -> torch.Tensor:
    if not self._unit_norm:
      return x
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-12)


class FSQ:
  """Finite scalar quantisation: rounds each entry to one of its levels."""

  TENSORS = ()

  def __init__(
    self, fields: Mapping[str, Any], tensors: Tensors, num_codes: int
  ):
    """Initializes the levels from `fields`; there are no tensors."""
    del tensors
    self._levels = levels_lib.check(
      fields.get("levels"), num_codes, "quantizer.levels"
    )

  def encode(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the codes, int64 [...], of vectors [..., E]."""
    levels = self._of(x, torch.float64, self._levels)
    even, half = levels % 2 == 0, (levels - 1) / 2
    moved = torch.where(even, 0.5, 0.0)
    shift = torch.atanh(torch.where(levels > 2, moved / half, 0.0))
    bounded = torch.tanh(x.float() + shift.float()) * half.float()
    digits = (bounded - moved.float()).round().long() + self._lowest(x)
    return (digits * self._place(x)).sum(-1)

  def lookup(self, codes: torch.Tensor) -> torch.Tensor:
    """Returns the vectors [..., E] of codes: int64 [...]."""
    levels = self._of(codes, torch.int64, self._levels)
    digits = codes[..., None] // self._place(codes) % levels
    step = self._of(codes, torch.float32, [1 / (n // 2) for n in self._levels])
    return (digits - self._lowest(codes)).float() * step

  def _lowest(self, like: torch.Tensor) -> torch.Tensor:
    return self._of(like, torch.int64, [n // 2 for n in self._levels])

  def _place(self, like: torch.Tensor) -> torch.Tensor:
    place = [1]
    for count in self._levels[:-1]:
      place.append(place[-1] * count)
    return self._of(like, torch.int64, place)

  def _of(self, like: torch.Tensor, dtype: torch.dtype, values: Any) -> Any:
    return torch.tensor(values, dtype=dtype, device=like.device)


def _check(name: str, value: Any) -> None:
  registry.check_methods("quantizer", name, value, _METHODS)


_REGISTRY: registry.Registry[Any] = registry.Registry(
  "quantizer in PyTorch", "genie_jax.ports.torch.quantizers.register", _check
)
register = _REGISTRY.register

register(_DEFAULT, Codebook)
register("fsq", FSQ)


def of(group: Mapping[str, Any] | None) -> Any:
  """Returns the class of a part's quantizer.

  Args:
    group: The part's `quantizer` in config.json; None for a codebook.

  Raises:
    UserError: It is not registered in PyTorch.
  """
  if group is None:
    return _REGISTRY.get(_DEFAULT, where="quantizer.name")
  return _REGISTRY.get(group.get("name"), where="quantizer.name")


def build(
  group: Mapping[str, Any] | None,
  model: Mapping[str, Any],
  tensors: Tensors,
  num_codes: int,
) -> Any:
  """Builds a part's quantizer.

  Args:
    group: As in `of`.
    model: The part's `model` in config.json.
    tensors: The tensors in PART/codes/, by name.
    num_codes: V.
  """
  fields = {
    "code_dim": model["code_dim"],
    "unit_norm": model.get("unit_norm", True),
    **(group or {}),
  }
  return of(group)(fields, tensors, num_codes)
