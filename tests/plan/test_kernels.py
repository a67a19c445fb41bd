"""Tests of the cost models of kernels, against values computed by hand."""

import pytest

from genie_jax.core import chips
from genie_jax.nn import fused
from genie_jax.plan.cost import kernels
from genie_jax.plan.hlo import parse
from tests.plan import programs

V5P = chips.find("v5p")


def array(shape, dtype="bf16"):
  order = ",".join(str(i) for i in reversed(range(len(shape))))
  return parse.Array(dtype, shape, f"{order}:T(8,128)(2,1)")


def call(name, operands, results):
  """Returns the instruction of a kernel call and the types of its operands."""
  return parse.Instruction(
    name=f"{name}.3",
    opcode="custom-call",
    results=tuple(map(array, results)),
    operands=(),
    literal="",
    attributes='custom_call_target="tpu_custom_call", metadata={op_name="'
    f'jit(f)/{name}/pallas_call"}}',
  ), [x if isinstance(x, parse.Array) else array(x) for x in operands]


def test_flops_include_padding_to_full_tiles():
  assert kernels.padded_flops(16, 64, 100, 128) == 2 * 16 * 128 * 128
  assert kernels.padded_flops(9, 128, 129, 128) == 2 * 16 * 128 * 256
  assert kernels.padded_flops(8, 8, 8, 256) == 2 * 8 * 256 * 256


# Operands of `nn.fused`: arrays, scales of its norms, and in time also angles.
SHAPE = (2, 16, 920, 4608)
SCALES = array((2, 128), "f32")
ANGLES = array((2, 16, fused.PLACES, 128), "f32")


def test_attention_in_time_is_counted_by_blocks_of_places():
  found = kernels.cost(
    *call("time_attention_forward", [SHAPE] * 3 + [SCALES, ANGLES], [SHAPE]),
    V5P,
  )
  blocks = 2 * 58 * 36
  assert found.known
  assert found.flops == blocks * 2 * (2 * 256 * 128 * 256)
  assert found.vector_operations > (
    blocks * 256 * 256 * kernels.SOFTMAX_OPERATIONS
  )
  # Scales and angles are small compared to queries, keys, values and results.
  assert found.bytes == pytest.approx(4 * 2 * 2 * 16 * 920 * 4608, rel=1e-3)
  back = kernels.cost(
    *call(
      "time_attention_backward", [SHAPE] * 4 + [SCALES, ANGLES], [SHAPE] * 3
    ),
    V5P,
  )
  assert back.flops == 2.5 * found.flops
  assert back.vector_operations > found.vector_operations


def test_attention_in_space_is_counted_for_all_tokens_of_a_frame():
  found = kernels.cost(
    *call("space_attention_forward", [SHAPE] * 3 + [SCALES], [SHAPE]), V5P
  )
  # 920 keys are padded to eight tiles of 128 columns; 920 rows are a multiple
  # of eight.
  assert found.flops == 2 * 16 * 36 * 2 * (2 * 920 * 128 * 1024)


def test_causal_splash_attention_is_counted_without_the_blocks_it_skips():
  shape = (4, 64, 2048, 128)
  full = kernels.cost(
    *call("splash_mha_fwd_residuals", [shape] * 3, [shape]), V5P
  )

  def causal(rows, columns, name="splash_mha_fwd_residuals"):
    # Prefetched tables come first: what to load, and which blocks to compute.
    table = array((1, rows, columns), "s32")
    return kernels.cost(*call(name, [table] * 2 + [shape] * 3, [shape]), V5P)

  # Of 4 x 4 blocks, those on the diagonal and below it: 10 of 16.
  assert causal(4, 4).flops == 10 / 16 * full.flops
  assert causal(4, 4).vector_operations == 10 / 16 * full.vector_operations
  assert causal(4, 4).bytes == pytest.approx(full.bytes, rel=1e-3)
  # Blocks of queries twice as long as those of keys: 2 + 4 + 6 + 8 of 32.
  assert causal(4, 8).flops == 20 / 32 * full.flops
  # And half as long: 1 + 1 + 2 + 2 of 8.
  assert causal(4, 2).flops == 6 / 8 * full.flops
  # One block has to be computed entirely.
  assert causal(1, 1).flops == full.flops
  gradient = causal(4, 4, "splash_mha_dkv_no_residuals")
  assert gradient.flops == 2.5 * causal(4, 4).flops


def test_splash_attention_is_counted_for_all_scores_of_a_frame():
  shape = (32, 36, 1024, 128)
  found = kernels.cost(
    *call("splash_mha_fwd_segmented_residuals", [shape] * 3, [shape]), V5P
  )
  scores = 32 * 36 * 1024 * 1024
  assert found.known
  assert found.flops == 2 * 2 * scores * 128
  assert found.vector_operations == scores * kernels.SOFTMAX_OPERATIONS
  back = kernels.cost(
    *call("splash_mha_dkv_segmented_no_residuals", [shape] * 4, [shape] * 3),
    V5P,
  )
  assert back.flops == 5 * 2 * scores * 128


def test_the_time_of_a_kernel_is_the_largest_of_three():
  cost = kernels.Cost(
    bytes=V5P.hbm_bandwidth,
    flops=V5P.peak_flops,
    vector_operations=0.5 * V5P.vector_rate,
  )
  assert cost.seconds(V5P) == pytest.approx(2.0)  # Half of peak.
  assert kernels.Cost(3 * V5P.hbm_bandwidth, 0, 0).seconds(
    V5P
  ) == pytest.approx(3.0)
  assert kernels.Cost(0, 0, 5 * V5P.vector_rate).seconds(V5P) == pytest.approx(
    5.0
  )


def test_a_device_has_half_the_rates_of_a_chip_with_two_devices():
  v3 = chips.find("v3")
  cost = kernels.Cost(v3.hbm_bandwidth, 0, 0)
  assert cost.seconds(v3) == pytest.approx(2.0)


def test_only_pallas_calls_are_kernels():
  found, _ = call("x", [(8, 128)], [(8, 128)])
  assert kernels.is_kernel(found)
  assert kernels.kernel_name(found) == "x"
  module = parse.parse(programs.gather(5))
  assert not any(
    kernels.is_kernel(x) for part in module.computations.values() for x in part
  )
