"""Tests of counting FLOPs, against hand counts and on compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax import sharding

from genie_jax.plan import topology
from genie_jax.plan.cost import collectives, schedule
from genie_jax.plan.hlo import parse, saved_activations
from genie_jax.sharding import mesh as mesh_lib
from tests.plan import programs, tpu_compiler

ONE_CHIP = topology.parse("v5p:1x1x1")
LAYERS, ROWS, WIDTH = 6, 8192, 1024


def count_flops(line, *operands):
  """Returns the FLOPs of a program with one instruction."""
  parts = [
    f"  %{name} = {kind}{{}} parameter({i})"
    for i, (name, kind) in enumerate(zip("ab", operands, strict=True))
  ]
  body = "\n".join([*parts, f"  ROOT %c = {line}"])
  text = f"HloModule m\n\nENTRY %main (a: x) -> x {{\n{body}\n}}\n"
  found = schedule.estimate(text, programs.ring(4))
  return sum(found.flops.values())


@pytest.mark.parametrize(
  "line, left, right, multiplied",
  [
    # A plain product of [16, 920, 5120] and [5120, 4608].
    (
      "bf16[16,920,4608]{} convolution(%a, %b), window={size=1}, "
      "dim_labels=0bf_0io->0bf",
      "bf16[16,920,5120]",
      "bf16[1,5120,4608]",
      16 * 920 * 5120 * 4608,
    ),
    # A sum over two axes: 16 frames of 920 tokens.
    (
      "bf16[5120,4608,1]{} convolution(%a, %b), window={size=16}, "
      "dim_labels=0fb_0io->bf0",
      "bf16[16,920,5120]",
      "bf16[16,920,4608]",
      16 * 920 * 5120 * 4608,
    ),
    # A batch of three products: the input is dilated with zeros.
    (
      "bf16[3,64,32]{} convolution(%a, %b), "
      "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
      "bf16[3,64,128]",
      "bf16[3,128,32]",
      3 * 64 * 128 * 32,
    ),
    # An outer product along an axis that only one operand has.
    (
      "bf16[16,920,36]{} convolution(%a, %b), "
      "window={size=36 pad=35_35 rhs_reversal=1}, dim_labels=bf0_oi0->bf0",
      "bf16[16,64,1]",
      "bf16[920,64,36]",
      16 * 64 * 920 * 36,
    ),
    (
      "f32[8,32,64]{} dot(%a, %b), lhs_batch_dims={0}, "
      "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
      "f32[8,32,128]",
      "f32[8,128,64]",
      8 * 32 * 128 * 64,
    ),
  ],
  ids=("plain", "two sums", "batch", "outer", "dot"),
)
def test_flops_of_a_product_match_the_hand_count(line, left, right, multiplied):
  assert count_flops(line, left, right) == 2 * multiplied


def compiled(remat):
  """Compiles a loop of layers with its gradient for one chip.

  Returns its estimate and its bytes of saved activations.
  """

  def layer(x, w):
    return jnp.tanh(x @ w), None

  if remat:
    layer = jax.checkpoint(layer, prevent_cse=False)

  def loss(weights, x):
    x, _ = jax.lax.scan(layer, x, weights)
    return jnp.square(x).sum()

  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=1, frame=1), topology.devices(ONE_CHIP)
  )
  layout = mesh_lib.replicated(mesh)
  types = [
    jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=layout)
    for shape in ((LAYERS, WIDTH, WIDTH), (ROWS, WIDTH))
  ]
  text = (
    jax.jit(jax.value_and_grad(loss), out_shardings=layout)
    .lower(*types)
    .compile()
    .as_text()
  )
  found = schedule.estimate(
    text,
    collectives.network(
      mesh.devices.flat, ONE_CHIP.dims, ONE_CHIP.wrap, ONE_CHIP.chip
    ),
  )
  return found, saved_activations.peak_bytes(parse.parse(text))


@tpu_compiler.required
def test_flops_of_a_loop_include_every_layer_and_recomputation(library):
  forward = LAYERS * 2 * ROWS * WIDTH * WIDTH
  saving, saved_bytes = compiled(remat=False)
  assert saving.flops["forward"] == forward
  # This includes the unused gradient of the first layer's input.
  assert saving.flops["backward"] == 2 * forward
  assert saving.flops["recomputed"] == 0
  recomputing, fewer_bytes = compiled(remat=True)
  assert recomputing.flops["forward"] == forward
  assert recomputing.flops["backward"] == 2 * forward
  assert recomputing.flops["recomputed"] == forward
  # With remat, the input of each layer and the result of the last one are
  # saved; without it, more of each layer.
  stack = LAYERS * ROWS * WIDTH * 2
  assert fewer_bytes == stack + ROWS * WIDTH * 2
  assert saved_bytes > 2 * stack


@tpu_compiler.required
def test_flops_of_a_windowed_einsum_are_those_of_its_product(library):
  """Its loop multiplies two parts at a time, and counts them in twos."""
  rows, width, out = 8192, 8192, 32768
  shape = topology.parse("v5p:2x2x2")
  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=-1, frame=1), topology.devices(shape)
  )
  spread = lambda *names: sharding.NamedSharding(
    mesh, sharding.PartitionSpec(*names)
  )
  x = jax.ShapeDtypeStruct(
    (rows, width), jnp.bfloat16, sharding=spread("tensor", None)
  )
  weights = jax.ShapeDtypeStruct(
    (width, out), jnp.bfloat16, sharding=spread(None, "tensor")
  )
  text = (
    jax.jit(jnp.matmul, out_shardings=spread(None, "tensor"))
    .lower(x, weights)
    .compile()
    .as_text()
  )
  loops = [
    (module.trip_count(loop), loop)
    for module in [parse.parse(text)]
    for instructions in module.computations.values()
    for loop in instructions
    if loop.opcode == "while"
  ]
  assert [count for count, _ in loops] == [2]  # Four parts, in twos.
  found = schedule.estimate(
    text,
    collectives.network(mesh.devices.flat, shape.dims, shape.wrap, shape.chip),
  )
  assert sum(found.flops.values()) == 2 * rows * width * out / mesh.size
