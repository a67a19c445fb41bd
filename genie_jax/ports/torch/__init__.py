"""Worlds in PyTorch, without JAX.

    from genie_jax.ports import torch as genie_torch
    world = genie_torch.load_world("coinrun")

Importing this package does not import PyTorch; `load_world` does.
"""

from typing import TYPE_CHECKING, Any

from genie_jax.core import errors

if TYPE_CHECKING:
  from genie_jax.ports.torch.world import World, load_world

__all__ = ["World", "load_world"]


def __getattr__(name: str) -> Any:
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  # Imported late: PyTorch is an extra, and takes seconds to import.
  try:
    from genie_jax.ports.torch import world
  except ModuleNotFoundError as error:
    if error.name != "torch":
      raise
    raise errors.UserError(
      "PyTorch is not installed; `pip install 'genie_jax[torch]'`."
    ) from error

  return getattr(world, name)
