"""Playable worlds: their folder, export, download and environments.

The package itself can be called: `genie_jax.worlds()` returns the names of the
worlds that ship.
"""

import sys
import types


class _Worlds(types.ModuleType):
  """This package, callable."""

  def __call__(self) -> list[str]:
    """Returns the names of the worlds that ship, for `genie_jax.load_world`."""
    # Late: `import genie_jax` reads no files.
    from genie_jax.worlds import shipped

    return shipped.names()


sys.modules[__name__].__class__ = _Worlds
