"""Cost models of Pallas kernels, which the compiler does not estimate.

The time of a kernel is the largest of

  its bytes divided by the memory's bandwidth,
  its matrix FLOPs, with tiles padded to the matrix unit, divided by half of the
  peak rate,
  its vector operations divided by the vector rate.

`COST_MODELS` computes the operations of known kernels from the shapes of their
operands; a kernel's name is that of its `pallas_call`. For an unknown kernel,
each number is the larger one of the `cost_estimate` that its author gave to the
compiler and of `bound_from_shapes`; a plan lists such kernels.

Shapes:
  B  clips          T  frames          N  tokens of a frame
  H  heads          K  width of one head          C  H * K
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from genie_jax.core import chips
from genie_jax.nn import fused
from genie_jax.plan.hlo import parse

# Vector operations per score of a softmax: scale, mask, maximum, subtraction,
# exponential (counted as four), sum, division, cast.
SOFTMAX_OPERATIONS = 12
# Backward pass: two products, a sum, a subtraction, a factor, two casts.
SOFTMAX_GRAD_OPERATIONS = 8

# Vector operations per element of a norm with rotary embedding: cast, square,
# sum, root (counted as four), two factors, a rotation, a cast.
_NORM_OPERATIONS = 14


@dataclasses.dataclass(frozen=True)
class Cost:
  """The work of one kernel call on one device.

  Attributes:
    bytes: Bytes read from and written to HBM.
    flops: FLOPs of matrix products, with padded tiles.
    vector_operations: Operations on single float32 numbers.
    known: Whether `COST_MODELS` has the kernel.
  """

  bytes: float
  flops: float
  vector_operations: float
  known: bool = True

  def seconds(self, chip: chips.Chip) -> float:
    """Returns the time of the call on one device of a chip."""
    share = 1 / chip.devices
    return max(
      self.bytes / (chip.hbm_bandwidth * share),
      self.flops / (0.5 * chip.peak_flops * share),
      self.vector_operations / (chip.vector_rate * share),
    )


Arrays = Sequence[parse.Array]
# (operands, tile of the matrix unit) -> (matrix FLOPs, vector operations).
CostModel = Callable[[Arrays, int], tuple[float, float]]


def padded_flops(m: int, k: int, n: int, tile: int) -> float:
  """Returns the FLOPs of [m, k] x [k, n] with padding to the matrix unit.

  The rows are processed in groups of eight; depth and columns are padded to
  full tiles.
  """
  up = lambda size, unit: -(-size // unit) * unit
  return 2.0 * up(m, 8) * up(k, tile) * up(n, tile)


def _splash_attention(products: int, softmaxes: int, grads: int) -> CostModel:
  """Returns the cost model of JAX's splash kernel.

  The kernel computes whole blocks of scores. Those that its mask hides entirely
  are skipped, by tables that are operands of the call; without tables it
  computes all of them (attention among all tokens of a frame).

  Args:
    products: Number of matrix products of the size of the scores.
    softmaxes: Number of times that the softmax is computed.
    grads: Number of times that the gradient of the softmax is computed.
  """

  def cost(operands: Arrays, tile: int) -> tuple[float, float]:
    # The queries are the first floating-point operand of rank 3 or 4; segment
    # ids and block tables are integers.
    query = next(
      x for x in operands if x.dtype in ("bf16", "f32") and len(x.shape) >= 3
    )
    *outer, n, k = query.shape
    frames = math.prod(outer)  # Times heads.
    share = _share_of_blocks(operands)
    scores = share * frames * n * n
    return (
      share * products * frames * padded_flops(n, k, n, tile),
      scores
      * (softmaxes * SOFTMAX_OPERATIONS + grads * SOFTMAX_GRAD_OPERATIONS),
    )

  return cost


def _share_of_blocks(operands: Arrays) -> float:
  """Returns the share of its blocks that a call of the splash kernel computes.

  Its tables have one entry for each block, [heads or 1, blocks of queries,
  blocks of keys]. The text of a program does not have their content, so the
  mask is taken to be the causal one, the only one with tables that is planned
  here. A block on the diagonal is computed entirely.

  Args:
    operands: Types of the call's operands.
  """
  table = next(
    (x.shape for x in operands if x.dtype[0] in "su" and len(x.shape) == 3),
    None,
  )
  if table is None:
    return 1.0
  _, rows, columns = table
  # Block i of the queries sees keys up to the end of its own positions.
  seen = sum(-(-(i + 1) * columns // rows) for i in range(rows))
  return seen / (rows * columns)


def _fused_attention(products: int, grads: int, heads: int = 1) -> CostModel:
  """Returns the cost model of a kernel of `nn.fused`.

  Each block computes, for each of its heads, the attention among all its rows.

  Args:
    products: Number of matrix products of the size of the scores, per head.
    grads: Number of times that the gradients of softmax and norms are computed.
    heads: Number of heads that share a block.
  """

  def cost(operands: Arrays, tile: int) -> tuple[float, float]:
    b, t, n, c = operands[0].shape
    # The scales of the norms have the shape [2, K].
    k = next(x.shape[1] for x in operands if len(x.shape) == 2)
    # Only attention in time has an operand with rotation angles.
    in_time = any(
      len(x.shape) == 4
      and x.shape[0] == 2
      and x.shape[2] == fused.PLACES
      and x.dtype == "f32"
      for x in operands[1:]
    )
    blocks, rows = (
      (b * -(-n // fused.PLACES), t * fused.PLACES) if in_time else (b * t, n)
    )
    blocks *= c // k
    each = (
      heads
      * rows
      * rows
      * (SOFTMAX_OPERATIONS + grads * SOFTMAX_GRAD_OPERATIONS)
    )
    # Queries and keys are normalised and, in time, rotated; the channels of
    # other heads are set to zero.
    each += 2 * rows * k * _NORM_OPERATIONS * heads * (1 + 2 * grads)
    return (
      blocks * heads * products * padded_flops(rows, k, rows, tile),
      blocks * each,
    )

  return cost


# Pattern of a kernel's name -> its cost model. The first pattern that matches
# the full name is used.
COST_MODELS: dict[str, CostModel] = {
  r"(time|space)_attention_forward": _fused_attention(products=2, grads=0),
  r"(time|space)_attention_backward": _fused_attention(products=5, grads=1),
  **{
    rf"(time|space)_attention_{direction}_of_{heads}": _fused_attention(
      products, grads, heads
    )
    for direction, products, grads in (("forward", 2, 0), ("backward", 5, 1))
    for heads in (2, 4)
  },
  # Splash attention (jax.experimental.pallas.ops.tpu.splash_attention): the
  # forward pass; both gradients in one pass; the gradient of the queries alone.
  r"splash_m[hq]a_fwd.*": _splash_attention(products=2, softmaxes=1, grads=0),
  r"splash_m[hq]a_dkv.*": _splash_attention(products=5, softmaxes=1, grads=1),
  r"splash_m[hq]a_dq.*": _splash_attention(products=3, softmaxes=1, grads=1),
}

_AUTHORS_ESTIMATE = re.compile(
  r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"(\d+)",'
  r'"bytes_accessed":"(\d+)"'
)


def is_kernel(instruction: parse.Instruction) -> bool:
  """Returns whether an instruction runs a Pallas kernel."""
  return (
    instruction.opcode == "custom-call"
    and instruction.attribute("custom_call_target") == "tpu_custom_call"
  )


def kernel_name(instruction: parse.Instruction) -> str:
  """Returns the name of a kernel, which is that of its `pallas_call`."""
  # Outside of modules the path is "transpose(jvp(NAME))/pallas_call".
  found = re.search(r"([\w.\-]+)\)*/pallas_call", instruction.op_name)
  return found[1] if found else re.sub(r"\.\d+$", "", instruction.name)


def cost(
  instruction: parse.Instruction, operands: Arrays, chip: chips.Chip
) -> Cost:
  """Returns the work of a kernel call on one device.

  Args:
    instruction: The call.
    operands: Types of its operands.
    chip: The chip, which determines the size of the matrix unit.
  """
  results = instruction.results
  moved = sum(x.padded_bytes for x in (*operands, *results) if x.in_hbm)
  name = kernel_name(instruction)
  for pattern, cost_model in COST_MODELS.items():
    if re.fullmatch(pattern, name):
      flops, vector = cost_model(operands, chip.matrix_tile)
      return Cost(moved, flops, vector)
  stated = _AUTHORS_ESTIMATE.search(instruction.attributes)
  flops, vector, read = (
    (float(stated[1]), 4.0 * float(stated[2]), float(stated[3]))
    if stated
    else (0.0, 0.0, 0.0)
  )
  bound = bound_from_shapes(operands, results)
  return Cost(
    max(moved, read),
    max(flops, bound.flops),
    max(vector, bound.vector_operations),
    known=False,
  )


def bound_from_shapes(operands: Arrays, results: Arrays) -> Cost:
  """Returns an upper estimate of the work of a kernel from its shapes alone.

  It assumes that each element of the operands and results takes part in 1024
  multiply-adds of a matrix product and in 16 vector operations.
  """
  elements = sum(
    x.bytes and x.padded_bytes / x.bytes * math.prod(x.shape)
    for x in (*operands, *results)
  )
  return Cost(0.0, 2.0 * 1024 * elements, 16.0 * elements, known=False)
