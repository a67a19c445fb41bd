"""Genie-style world models in JAX: from game videos to a playable world.

Importing this package loads no accelerator library; its sub-packages do.
"""

__version__ = "0.1.0"
