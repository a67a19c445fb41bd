"""A fixture to use the TPU compiler in the test's own process."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from genie_jax.plan import aot_compile


@pytest.fixture
def library(monkeypatch):
  """Sets up the TPU compiler, without the cache, which cannot load TPU code."""
  for name in (*aot_compile.ENVIRONMENT, "JAX_ENABLE_COMPILATION_CACHE"):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(name, "1")  # Restores the environment after the test.
  aot_compile.set_up_compiler()
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  yield
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
