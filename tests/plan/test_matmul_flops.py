"""Tests of counting a program's FLOPs, by hand and with the real compiler."""

import jax
import jax.numpy as jnp
import pytest

from genie_jax.plan import topology
from genie_jax.plan.cost import collectives, schedule
from genie_jax.plan.hlo import parse, saved_activations
from genie_jax.sharding import mesh as mesh_lib
from tests.plan import programs, tpu_compiler

PLACE = topology.parse("v5p:1x1x1")
LAYERS, ROWS, WIDTH = 6, 8192, 1024


def product(line, *operands):
  """Returns the FLOPs of one line of a program."""
  parts = [
    f"  %{name} = {kind}{{}} parameter({i})"
    for i, (name, kind) in enumerate(zip("ab", operands, strict=True))
  ]
  body = "\n".join([*parts, f"  ROOT %c = {line}"])
  text = f"HloModule m\n\nENTRY %main (a: x) -> x {{\n{body}\n}}\n"
  found = schedule.of(text, programs.ring(4))
  return found.flops.total()


@pytest.mark.parametrize(
  "line, left, right, multiplied",
  [
    # A plain product, [16, 920, 5120] by [5120, 4608].
    (
      "bf16[16,920,4608]{} convolution(%a, %b), window={size=1}, "
      "dim_labels=0bf_0io->0bf",
      "bf16[16,920,5120]",
      "bf16[1,5120,4608]",
      16 * 920 * 5120 * 4608,
    ),
    # A sum over two axes, 16 frames of 920.
    (
      "bf16[5120,4608,1]{} convolution(%a, %b), window={size=16}, "
      "dim_labels=0fb_0io->bf0",
      "bf16[16,920,5120]",
      "bf16[16,920,4608]",
      16 * 920 * 5120 * 4608,
    ),
    # Three products side by side: most of the dilated input is holes.
    (
      "bf16[3,64,32]{} convolution(%a, %b), "
      "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
      "bf16[3,64,128]",
      "bf16[3,128,32]",
      3 * 64 * 128 * 32,
    ),
    # An outer product over an axis that only one of them has.
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
  ids=("plain", "two sums", "examples", "outer", "dot"),
)
def test_products_are_counted_as_by_hand(line, left, right, multiplied):
  assert product(line, left, right) == 2 * multiplied


def compiled(remat):
  """Compiles a loop of layers with its gradient on one chip."""

  def layer(x, w):
    return jnp.tanh(x @ w), None

  if remat:
    layer = jax.checkpoint(layer, prevent_cse=False)

  def loss(weights, x):
    x, _ = jax.lax.scan(layer, x, weights)
    return jnp.square(x).sum()

  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=1, frame=1), topology.devices(PLACE)
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
  found = schedule.of(
    text,
    collectives.network(mesh.devices.flat, PLACE.dims, PLACE.wrap, PLACE.chip),
  )
  return found, saved_activations.of(parse.parse(text))


@tpu_compiler.needed
def test_a_loop_counts_each_layer_and_what_is_computed_again(library):
  one = LAYERS * 2 * ROWS * WIDTH * WIDTH
  saving, kept = compiled(remat=False)
  # The gradient of the input, which nobody asked for, is the first layer's.
  assert saving.flops["forward"] == one
  assert saving.flops["backward"] == 2 * one
  assert saving.flops["recomputed"] == 0
  again, kept_less = compiled(remat=True)
  assert again.flops["forward"] == one
  assert again.flops["backward"] == 2 * one
  assert again.flops["recomputed"] == one
  # Each layer's input and the last one's result; without remat more of each.
  stack = LAYERS * ROWS * WIDTH * 2
  assert kept_less == stack + ROWS * WIDTH * 2
  assert kept > 2 * stack
