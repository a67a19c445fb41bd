"""FLOPs of the matrix products in a compiled program.

A multiply-add counts as two FLOPs. On a TPU, all matrix products are
convolutions. A batched product has its batch as a dilated spatial dimension;
products with the zeros that dilation inserts are not counted.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator

from genie_jax.plan.hlo import op_names, parse


def by_pass(text: str) -> dict[str, float]:
  """Returns the FLOPs of a compiled train step, on one device, by pass.

  The body of a loop counts once per iteration, and of several branches the one
  with the most FLOPs counts. Kernels that are not XLA's are not counted;
  `plan.cost.schedule` has models of those for TPUs.

  Args:
    text: From `compiled.as_text()`, of any backend.

  Returns:
    FLOPs by "forward", "backward", "recomputed", and "" outside the model.

  Raises:
    ValueError: The number of iterations of a loop with products is unknown.
  """
  module = parse.parse(text)
  return dict(_of_computation(module, module.entry, {}))


def _of_computation(
  module: parse.Module,
  computation: str,
  done: dict[str, dict[str, float]],
) -> dict[str, float]:
  """Returns the FLOPs of one execution of a computation, by pass."""
  if computation in done:
    return done[computation]
  total: dict[str, float] = collections.defaultdict(float)
  inside = lambda name: _of_computation(module, name, done)

  def add(found, times=1):
    for name, value in found.items():
      total[name] += times * value

  for x in module.computations.get(computation, ()):
    if x.opcode == "while":
      body, count = inside(x.required("body")), module.trip_count(x)
      if count is None and body:
        raise ValueError(f"The loop {x.name} has an unknown trip count.")
      add(body, count or 0)
    elif x.opcode == "conditional":
      branches = [inside(name) for name in x.branches()]
      add(max(branches, key=lambda branch: sum(branch.values())))
    elif x.opcode == "call":
      add(inside(x.required("to_apply")))
    else:
      for path, value in products(module, computation, x):
        total[op_names.classify(path)[1]] += value
  done[computation] = total
  return total


def products(
  module: parse.Module, computation: str, instruction: parse.Instruction
) -> Iterator[tuple[str, float]]:
  """Yields the matrix products of an instruction and those fused into it.

  Args:
    module: The program.
    computation: The computation that has the instruction.
    instruction: An instruction other than a loop, a branch or a call, which
      the caller must follow itself.

  Yields:
    The path of the JAX operation, and its FLOPs on one device when the
    instruction runs once.
  """
  called = instruction.attribute("calls")
  if is_product(instruction):
    yield (instruction.op_name, flops(module, computation, instruction))
  elif called and not instruction.opcode.endswith(("-done", "-update")):
    for inner in module.computations.get(called, ()):
      yield from products(module, called, inner)


def is_product(instruction: parse.Instruction) -> bool:
  """Returns whether an instruction multiplies matrices."""
  return instruction.opcode in ("dot", "convolution")


def flops(
  module: parse.Module, computation: str, product: parse.Instruction
) -> float:
  """Returns the FLOPs of one matrix product on one device.

  Args:
    module: The program.
    computation: The computation that has the product.
    product: A dot or a convolution.

  Raises:
    ValueError: A convolution has no dim_labels.
  """
  table = module.by_name(computation)
  left, right = (table[name].results[0].shape for name in product.operands[:2])
  [result] = product.results
  if product.opcode == "dot":
    depth = math.prod(
      left[d] for d in _numbers(product.attributes, "lhs_contracting_dims")
    )
    return 2.0 * math.prod(result.shape) * depth
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
  if labels is None:
    raise ValueError(f"The convolution {product.name} has no dim_labels.")
  inputs, kernel, outputs = labels.groups()
  window = _window(product.attributes)
  pairs = 1
  for i in range(len(inputs) - 2):
    field = lambda name, default, i=i: (
      window[name][i] if name in window else default
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
  # The depth of the kernel is already that of one feature group.
  return (
    2.0
    * pairs
    * right[kernel.index("i")]
    * result.shape[outputs.index("f")]
    * left[inputs.index("b")]
    / (int(groups[1]) if groups else 1)
  )


@functools.lru_cache(maxsize=4096)
def _pairs(
  inputs: int,
  kernel: int,
  outputs: int,
  stride: int,
  pad: int,
  input_dilation: int,
  kernel_dilation: int,
) -> int:
  """Counts multiplications along one axis of a convolution.

  These are the pairs of a kernel element and a result element whose product
  uses an input element, and not padding or a zero of the dilation.

  Args:
    inputs: Input elements.
    kernel: Kernel elements.
    outputs: Result elements.
    stride: Step of the window.
    pad: Padding before the first input element.
    input_dilation: Distance of input elements.
    kernel_dilation: Distance of kernel elements.
  """
  last = (inputs - 1) * input_dilation
  count = 0
  for k in range(kernel):
    start = k * kernel_dilation - pad
    count += sum(
      1
      for at in range(start, start + outputs * stride, stride)
      if 0 <= at <= last and at % input_dilation == 0
    )
  return count


def _window(attributes: str) -> dict[str, list[int]]:
  """Parses an attribute such as window={size=1x36 pad=0_0x35_35}.

  Only the padding before the input is returned. The padding after the input
  follows from the size of the result.
  """
  found = re.search(r"window=\{([^}]*)\}", attributes)
  fields = (word.partition("=") for word in (found[1] if found else "").split())
  return {
    name: [int(part.partition("_")[0]) for part in value.split("x")]
    for name, _, value in fields
  }


def _numbers(attributes: str, name: str) -> list[int]:
  """Parses an attribute such as lhs_contracting_dims={0,1}."""
  found = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
  return [int(n) for n in found[1].split(",") if n] if found else []
