"""Runs tests on eight CPU devices, never on a GPU, with a compilation cache."""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Processes that tests start also use it, instead of one in the home folder.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
  "GENIE_TEST_CACHE",
  str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"),
)
# The tests' models are tiny, so compiling takes most of the time. Without
# LLVM's optimizations it takes about half as long; `make test-slow` uses them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(autouse=True)
def environment():
  """Restores the environment, which some commands change for their process."""
  before = dict(os.environ)
  yield
  for name in os.environ.keys() - before.keys():
    del os.environ[name]
  os.environ.update(before)
