"""What a hand-written kernel costs, as the compiler estimates none.

A kernel takes the largest of

  its bytes over the memory's bandwidth,
  its matrix FLOPs, tiles padded to the matrix unit, over half of peak,
  its vector operations over the vector rate,

and never nothing. `COSTS` says how many of each from the shapes that a kernel
takes and gives; a kernel's name is that of its `pallas_call`. One that is not
listed is counted by what its author told the compiler (`cost_estimate`), and
by `unknown` if that is more; a plan names it.

Shapes:
  B  clips          T  frames          N  tokens of a frame
  H  heads          K  width of one head          C  H * K
  R  rows that one block of a kernel multiplies with each other
"""

import dataclasses
import re
from collections.abc import Callable, Sequence

from genie_jax.core import chips
from genie_jax.nn import fused
from genie_jax.plan.hlo import parse

# Softmax of one score: scale, mask, maximum, subtract, exponential, sum,
# divide, cast; the exponential counted as four.
SOFTMAX_OPERATIONS = 12
# Its backward pass: two products, a sum, a subtraction, a factor, two casts.
SOFTMAX_GRAD_OPERATIONS = 8

# Cast, square, sum, root (counted as four), two factors, a rotation, a cast.
_NORM_OPERATIONS = 14


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one call of a kernel does on one device.

  Attributes:
    bytes: Read from and written to HBM.
    flops: Of matrix products, with padded tiles.
    vector_operations: On single float32 numbers.
    known: Whether `COSTS` has the kernel.
  """

  bytes: float
  flops: float
  vector_operations: float
  known: bool = True

  def seconds(self, chip: chips.Chip) -> float:
    """Returns how long one device of a chip works on it."""
    share = 1 / chip.devices
    return max(
      self.bytes / (chip.hbm_bandwidth * share),
      self.flops / (0.5 * chip.peak_flops * share),
      self.vector_operations / (chip.vector_rate * share),
    )


Shapes = Sequence[parse.Array]


def product(m: int, k: int, n: int, tile: int) -> float:
  """Returns FLOPs of [m, k] x [k, n], as a matrix unit of `tile` does them.

  Rows stream through in groups of eight; depth and columns fill whole tiles.
  """
  up = lambda size, unit: -(-size // unit) * unit
  return 2.0 * up(m, 8) * up(k, tile) * up(n, tile)


def _whole_frames(count: float, products: int, softmaxes: int, grads: int):
  """Cost of attention of every token of a frame to every other.

  Args:
    count: Factor on the number of frames and heads (1).
    products: Matrix products of scores' size.
    softmaxes: Times that the softmax is computed.
    grads: Times that its gradient is.
  """

  def cost(operands: Shapes, results: Shapes, tile: int):
    del results
    # Queries are the first operand of rank 3 or 4 with a head's width last;
    # segment ids and block tables are integers.
    query = next(
      x for x in operands if x.dtype in ("bf16", "f32") and len(x.shape) >= 3
    )
    *outer, n, k = query.shape
    frames = count
    for size in outer:
      frames *= size
    scores = frames * n * n
    return (
      products * frames * product(n, k, n, tile),
      scores
      * (softmaxes * SOFTMAX_OPERATIONS + grads * SOFTMAX_GRAD_OPERATIONS),
    )

  return cost


def _fused(products: int, grads: int, heads: int = 1):
  """Cost of `nn.fused`: all rows of a block meet each other, for each head.

  Args:
    products: Matrix products of scores' size, for each head.
    grads: Times that the gradients of softmax and norms are computed.
    heads: How many share a block.
  """

  def cost(operands: Shapes, results: Shapes, tile: int):
    del results
    b, t, n, c = operands[0].shape
    k = next(x.shape[1] for x in operands if len(x.shape) == 2)  # Of scales.
    in_time = any(
      len(x.shape) == 4
      and x.shape[0] == 2
      and x.shape[2] == (fused.PLACES)
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
    # Queries and keys are normalised and, in time, turned; the channels of
    # other heads are set to zero.
    each += 2 * rows * k * _NORM_OPERATIONS * heads * (1 + 2 * grads)
    return (
      blocks * heads * products * product(rows, k, rows, tile),
      blocks * each,
    )

  return cost


# Pattern of a kernel's name -> (operands, results, tile) to (FLOPs, vector
# operations). The first that matches the whole name counts.
COSTS: dict[str, Callable[[Shapes, Shapes, int], tuple[float, float]]] = {
  r"(time|space)_attention_forward": _fused(products=2, grads=0),
  r"(time|space)_attention_backward": _fused(products=5, grads=1),
  **{
    rf"(time|space)_attention_{way}_of_{heads}": _fused(products, grads, heads)
    for way, products, grads in (("forward", 2, 0), ("backward", 5, 1))
    for heads in (2, 4)
  },
  # Splash attention (jax.experimental.pallas.ops.tpu.splash_attention): the
  # forward pass; both gradients in one pass; each by itself.
  r"splash_m[hq]a_fwd.*": _whole_frames(1, products=2, softmaxes=1, grads=0),
  r"splash_m[hq]a_dkv.*": _whole_frames(1, products=5, softmaxes=1, grads=1),
  r"splash_m[hq]a_dq.*": _whole_frames(1, products=3, softmaxes=1, grads=1),
}

_STATED = re.compile(
  r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"(\d+)",'
  r'"bytes_accessed":"(\d+)"'
)


def is_kernel(instruction: parse.Instruction) -> bool:
  """Returns whether an instruction runs a Pallas kernel."""
  return (
    instruction.opcode == "custom-call"
    and instruction.attribute("custom_call_target") == "tpu_custom_call"
  )


def name(instruction: parse.Instruction) -> str:
  """Returns a kernel's name, as its `pallas_call` has it."""
  # Outside of any module it stands in "transpose(jvp(name))/pallas_call".
  found = re.search(r"([\w.\-]+)\)*/pallas_call", instruction.op_name)
  return found[1] if found else re.sub(r"\.\d+$", "", instruction.name)


def cost(
  instruction: parse.Instruction,
  operands: Shapes,
  chip: chips.Chip,
) -> Cost:
  """Returns what a kernel does on one device.

  Args:
    instruction: The call.
    operands: Types of what it takes.
    chip: Gives the size of the matrix unit.
  """
  results = instruction.results
  moved = sum(x.padded_bytes for x in (*operands, *results) if x.in_main_memory)
  for pattern, function in COSTS.items():
    if re.fullmatch(pattern, name(instruction)):
      flops, vector = function(operands, results, chip.matrix_tile)
      return Cost(moved, flops, vector)
  stated = _STATED.search(instruction.attributes)
  flops, vector, read = (
    (float(stated[1]), 4.0 * float(stated[2]), float(stated[3]))
    if stated
    else (0.0, 0.0, 0.0)
  )
  bound = unknown(operands, results)
  return Cost(
    max(moved, read),
    max(flops, bound.flops),
    max(vector, bound.vector_operations),
    known=False,
  )


def unknown(operands: Shapes, results: Shapes) -> Cost:
  """Bounds a kernel of which nothing but shapes is known.

  Every number that it takes or gives meets a row of 1024 others in a matrix
  product, and is touched by 16 vector operations.
  """
  numbers = sum(
    x.bytes and x.padded_bytes / x.bytes * _size(x)
    for x in (*operands, *results)
  )
  return Cost(0.0, 2.0 * 1024 * numbers, 16.0 * numbers, known=False)


def _size(array: parse.Array) -> int:
  size = 1
  for dim in array.shape:
    size *= dim
  return size
