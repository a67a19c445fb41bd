"""FLOPs of the matrix products of a compiled program.

A multiply-add counts as two. On a TPU all products are convolutions; one with
several examples carries them as a dilated dimension, most pairs of which are
holes and count nothing.
"""

import functools
import math
import re
from collections.abc import Iterator

from genie_jax.plan.hlo import parse


def of(
  module: parse.Module, computation: str, instruction: parse.Instruction
) -> Iterator[tuple[str, float]]:
  """Yields the products of an instruction, and of what is fused into it.

  Args:
    module: The program.
    computation: Where the instruction stands.
    instruction: No loop, branch or call: those run what they call by turns.

  Yields:
    The path of the JAX operation, and FLOPs of one run on one device.
  """
  called = instruction.attribute("calls")
  if is_product(instruction):
    yield (instruction.op_name, flops(module, computation, instruction))
  elif called and not instruction.opcode.endswith(("-done", "-update")):
    for inner in module.computations.get(called, ()):
      yield from of(module, called, inner)


def is_product(instruction: parse.Instruction) -> bool:
  """Returns whether an instruction multiplies matrices."""
  return instruction.opcode in ("dot", "convolution")


def flops(
  module: parse.Module, computation: str, product: parse.Instruction
) -> float:
  """Returns the FLOPs of one product on one device.

  Args:
    module: The program.
    computation: Where the product stands.
    product: A dot or a convolution.
  """
  table = module.table(computation)
  left, right = (table[name].results[0].shape for name in product.operands[:2])
  [result] = product.results
  if product.opcode == "dot":
    depth = math.prod(
      left[d] for d in _numbers(product.attributes, "lhs_contracting_dims")
    )
    return 2.0 * math.prod(result.shape) * depth
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
  inputs, kernel, outputs = labels.groups()
  window = _window(product.attributes)
  pairs = 1
  for i in range(len(inputs) - 2):
    field = lambda name, default, i=i: (
      window[name][i] if (name in window) else default
    )
    pairs *= _pairs(
      left[inputs.index(str(i))],
      right[kernel.index(str(i))],
      result.shape[outputs.index(str(i))],
      field("stride", 1),
      field("pad", 0),
      field("lhs_dilate", 1),
      field("rhs_dilate", 1),
    )
  groups = re.search(r"batch_group_count=(\d+)", product.attributes)
  # The kernel's own depth is already that of one group of features.
  return (
    2.0
    * pairs
    * right[kernel.index("i")]
    * result.shape[outputs.index("f")]
    * left[inputs.index("b")]
    / (int(groups[1]) if groups else 1)
  )


@functools.lru_cache(maxsize=4096)
def _pairs(inputs, kernel, outputs, stride, before, spread, step) -> int:
  """Returns how many pairs of kernel and result meet an input in one axis."""
  last = (inputs - 1) * spread
  count = 0
  for k in range(kernel):
    start = k * step - before
    count += sum(
      1
      for at in range(start, start + outputs * stride, stride)
      if 0 <= at <= last and at % spread == 0
    )
  return count


def _window(attributes: str) -> dict[str, list[int]]:
  """Reads window={size=1x36 pad=0_0x35_35}; of the pad, what stands before.

  What stands after is in the size of the result.
  """
  found = re.search(r"window=\{([^}]*)\}", attributes)
  fields = (word.partition("=") for word in (found[1] if found else "").split())
  return {
    name: [int(part.partition("_")[0]) for part in value.split("x")]
    for name, _, value in fields
  }


def _numbers(attributes: str, name: str) -> list[int]:
  found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
  return [int(n) for n in found[1].split(",") if n] if found else []
