"""Models as static arguments of compiled functions."""

from typing import TypeVar

import flax.core
import flax.linen as nn

Module = TypeVar("Module", bound=nn.Module)


def hashable(module: Module) -> Module:
  """Returns an equal module that `jax.jit` accepts as a static argument.

  A module's fields may be dicts, which have no hash. Two modules with equal
  fields are equal here too, and so share what was compiled for one of them.
  """
  fields = {
      name: flax.core.freeze(dict(field))
      for name in module.__dataclass_fields__
      if isinstance(field := getattr(module, name), dict)}
  return module.clone(**fields) if fields else module
