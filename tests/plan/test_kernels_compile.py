"""Tests that the Pallas kernels compile with the TPU compiler."""

import functools

import jax
import jax.numpy as jnp
import pytest

from genie_jax.nn import fused, splash
from genie_jax.plan import topology
from genie_jax.plan.cost import collectives, schedule
from genie_jax.sharding import mesh as mesh_lib
from tests.plan import tpu_compiler

ONE_CHIP = topology.parse("v5p:1x1x1")
TOKENS = 920  # Per frame, in the 10.1B model.


def _splash(query, key, value):
  return splash.attend(query, key, value).astype(jnp.float32).sum()


def _fused(num_heads, in_time, query, key, value, scales, angles):
  options = fused.Options(num_heads=num_heads, in_time=in_time)
  return (
    fused.attend(options, query, key, value, scales, angles)
    .astype(jnp.float32)
    .sum()
  )


def _shapes(frames, tokens, heads, width):
  """Returns shapes and dtypes of the operands of the fused kernel."""
  part = ((1, frames, tokens, heads * width), jnp.bfloat16)
  return [part] * 3 + [
    ((2, width), jnp.float32),
    ((2, frames, fused.PLACES, width), jnp.float32),
  ]


CASES = {
  "splash": (
    _splash,
    [((1, 2, TOKENS, 2, 128), jnp.bfloat16)] * 3,
    {"splash_mha_fwd", "splash_mha_dkv"},
  ),
  "space": (
    functools.partial(_fused, 2, False),
    _shapes(2, TOKENS, 2, 128),
    {"space_attention_forward", "space_attention_backward"},
  ),
  "time": (
    functools.partial(_fused, 2, True),
    _shapes(16, TOKENS, 2, 128),
    {"time_attention_forward", "time_attention_backward"},
  ),
  "narrow space": (
    functools.partial(_fused, 2, False),
    _shapes(2, TOKENS, 2, 64),
    {"space_attention_forward_of_2", "space_attention_backward_of_2"},
  ),
  "narrow time": (
    functools.partial(_fused, 2, True),
    _shapes(16, TOKENS, 2, 64),
    {"time_attention_forward_of_2", "time_attention_backward_of_2"},
  ),
}


@tpu_compiler.required
@pytest.mark.parametrize("name", CASES)
def test_each_kernel_and_its_gradient_compile_and_have_a_cost(library, name):
  function, shapes, kernels = CASES[name]
  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=1, frame=1), topology.devices(ONE_CHIP)
  )
  layout = mesh_lib.replicated(mesh)
  types = [jax.ShapeDtypeStruct(*x, sharding=layout) for x in shapes]

  def step(*arrays):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return jax.value_and_grad(function, argnums=(0, 1, 2))(*arrays)

  compiled = jax.jit(step, out_shardings=layout).lower(*types).compile()
  found = schedule.estimate(
    compiled.as_text(),
    collectives.network(
      mesh.devices.flat, ONE_CHIP.dims, ONE_CHIP.wrap, ONE_CHIP.chip
    ),
  )
  assert found.unknown_kernels == set()
  for kernel in kernels:
    [seconds] = [
      value
      for found_name, value in found.kernel_seconds.items()
      if found_name.split("_segmented")[0] == kernel
    ]
    assert seconds > 1e-7, kernel
  assert len(found.kernel_seconds) == len(kernels)
  assert found.flops["forward"] > 0 < found.flops["backward"]
