"""Frame samplers in PyTorch, by the names of their JAX counterparts.

A world's config.json names its frame sampler. If the sampler comes from another
package, that package must register a PyTorch counterpart under the same name.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from genie_jax.core import errors, registry
from genie_jax.ports.torch import maskgit

DEFAULT = "maskgit"
_KIND = "frame sampler in PyTorch"

# `score(tokens int64 [h, w], hidden bool [h, w]) -> logits [h, w, V]`.
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class FrameSampler(Protocol):
  """Draws the frames of one player, with all randomness as an input."""

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> "FrameSampler":
    """Returns the sampler of the `sampling` group of config.json.

    Args:
      fields: The group without its `name`.

    Raises:
      UserError: A field is unknown or out of range.
    """
    ...

  def noise(
    self, grid: tuple[int, int], num_codes: int, device: torch.device
  ) -> Any:
    """Draws the noise of one frame from torch's global generator."""
    ...

  def draw(
    self, score: Score, grid: tuple[int, int], noise: Any
  ) -> torch.Tensor:
    """Returns one frame's tokens, int64 [h, w].

    Args:
      score: Scores a frame, given the tokens that are not hidden.
      grid: (h, w).
      noise: From `noise`, or of the same structure.
    """
    ...


_METHODS = {
  "from_config": "(fields), a classmethod",
  "noise": "(grid, num_codes, device)",
  "draw": "(score, grid, noise)",
}

REGISTRY: registry.Registry[type[FrameSampler]] = registry.Registry(
  _KIND,
  "genie_jax.ports.torch.samplers.register(name, class)",
  lambda name, value: registry.check_methods(_KIND, name, value, _METHODS),
)


def register(name: str, sampler: type[FrameSampler]) -> type[FrameSampler]:
  """Registers the PyTorch counterpart of a JAX sampler, and returns it.

  Raises:
    UserError: The name is taken, or the class lacks a method of
      `FrameSampler`.
  """
  return REGISTRY.register(name, sampler)


register(DEFAULT, maskgit.MaskGIT)


def make(fields: Mapping[str, Any]) -> FrameSampler:
  """Checks the `sampling` group of config.json and returns its sampler.

  Raises:
    UserError: The sampler has no counterpart here, or a field is unknown or
      out of range.
  """
  fields = dict(fields)
  name = fields.pop("name", DEFAULT)
  if name not in REGISTRY:
    registry.load_plugins()
  if name not in REGISTRY:
    raise errors.UserError(
      f"sampling.name={name!r:.60}: this frame sampler has no counterpart in "
      "PyTorch; register one with "
      f"{REGISTRY.where} under this name, or play the world in JAX."
    )
  return REGISTRY.get(name, where="sampling.name").from_config(fields)
