"""Frame samplers in PyTorch, by the names that those of JAX have.

A world's config.json names the sampler of its frames; a world that another
package's sampler draws plays here once that package has registered the
PyTorch counterpart under the same name.
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
  """Draws the frames of one player, all randomness given from outside."""

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> "FrameSampler":
    """Returns the sampler of config.json's `sampling` without its `name`.

    Raises:
      UserError: A field is unknown or out of range.
    """
    ...

  def noise(
    self, grid: tuple[int, int], num_codes: int, device: torch.device
  ) -> Any:
    """Draws all that is random in one frame from torch's generator."""
    ...

  def draw(
    self, score: Score, grid: tuple[int, int], noise: Any
  ) -> torch.Tensor:
    """Returns one frame's tokens, int64 [h, w].

    Args:
      score: Scores a frame of which the tokens that are not hidden are known.
      grid: (h, w).
      noise: From `noise`, or of the same form.
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
  """Adds the PyTorch counterpart of a JAX sampler of this name; returns it.

  Raises:
    UserError: The name is taken, or the class lacks a method of
      `FrameSampler`.
  """
  return REGISTRY.register(name, sampler)


register(DEFAULT, maskgit.MaskGIT)


def make(fields: Mapping[str, Any]) -> FrameSampler:
  """Returns the sampler of config.json's `sampling`, checked.

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
      f"sampling.name={name!r:.60}: this world's frames are drawn by a sampler "
      "that has no counterpart in PyTorch; register one with "
      f"{REGISTRY.where} under this name, or play the world in JAX."
    )
  return REGISTRY.get(name, where="sampling.name").from_config(fields)
