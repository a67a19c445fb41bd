"""Stores the compiled programs of worlds for later processes."""

from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from genie_jax.core import cache


def enable() -> None:
  """Keeps what JAX compiles from here on in a folder, for later processes.

  The folder is the one that JAX was given (JAX_COMPILATION_CACHE_DIR), else
  `cache.default_folder`.
  """
  cache.use_checksums()
  settings: Any = jax.config  # Its flags are not in its type.
  if not settings.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(cache.default_folder()))
    # If something was compiled earlier, JAX has cached that there is no cache.
    compilation_cache.reset_cache()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
