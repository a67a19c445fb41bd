"""The TPU compiler in a test's own process."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from genie_jax.plan import aot_compile


@pytest.fixture
def library(monkeypatch):
  """Makes ready for compiling here; the cache cannot read such programs."""
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(name, "1")  # Leaves the environment as it was.
  aot_compile.prepare()
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
