"""Playable worlds: their folders, export, download and environments.

The package itself is callable: `genie_jax.worlds()` returns the names of the
worlds that ship with genie_jax.
"""

import sys
import types


class _Worlds(types.ModuleType):
  """This package as a callable module."""

  def __call__(self) -> list[str]:
    """Returns the names that `genie_jax.load_world` accepts, sorted."""
    # Imported late, so that `import genie_jax` reads no files.
    from genie_jax.worlds import shipped

    return shipped.names()


sys.modules[__name__].__class__ = _Worlds
