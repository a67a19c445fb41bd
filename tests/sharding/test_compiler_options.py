"""Tests of the compiler options by platform."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.sharding import compiler_options


def mesh(platform, count):
  devices = np.array([types.SimpleNamespace(platform=platform)] * count)
  return types.SimpleNamespace(devices=devices, size=count)


def test_each_platform_gets_its_own_options():
  names = lambda *args: set(compiler_options.options(mesh(*args)))
  assert names("tpu", 1) and all("gpu" not in x for x in names("tpu", 1))
  assert names("gpu", 8) == {"xla_gpu_enable_latency_hiding_scheduler"}
  # One GPU and CPUs have nothing to overlap.
  assert names("gpu", 1) == names("cpu", 8) == set()


def test_the_installed_compiler_knows_the_options_of_gpus():
  # Every backend but the TPU's reads the same table of options.
  lowered = jax.jit(lambda x: x + 1).lower(jnp.zeros(()))
  found = compiler_options.options(mesh("gpu", 2))
  assert lowered.compile(compiler_options=found)(jnp.ones(())) == 2
  with pytest.raises(
    jax.errors.JaxRuntimeError, match="No such compile option"
  ):
    lowered.compile(compiler_options={"xla_gpu_enable_nothing": True})
