"""Memory of the activations that a program saves for the backward pass.

A value is saved if an instruction of the forward pass computes it and one of
the backward pass uses it. The path of an instruction tells its pass. The layers
are a loop: the forward loop stacks the saved values of all layers in arrays
with a leading dimension of layers, which the backward loop reads. An element
that a loop passes through unchanged counts for the instruction that computed
it. A cast or a gather of a single argument of the program (a weight) is not an
activation. As instructions are scheduled in order, each value is counted from
its computation to its last use, and the result is the largest sum at any time.
"""

import collections
import re
from collections.abc import Iterator

from genie_jax.plan.hlo import op_names, parse

# Instructions whose result is their operand under another name or location.
_ALIASES = frozenset(
  {
    "get-tuple-element",
    "tuple",
    "bitcast",
    "copy",
    "copy-start",
    "copy-done",
    "opt-barrier",
    "reshape",
  }
)

# A value: the name of an instruction, and an index of an element of its result.
_Value = tuple[str, int]


def peak_bytes(module: parse.Module) -> float:
  """Returns the most bytes of saved activations in one device's HBM."""
  return _Search(module).peak_bytes(module.entry)


class _Search:
  """Searches computations for saved values, each computation once."""

  def __init__(self, module: parse.Module):
    self._module = module
    self._found: dict[str, float] = {}

  def peak_bytes(self, computation: str) -> float:
    """Returns the most bytes saved in a computation and the loops in it."""
    if computation not in self._found:
      self._found[computation] = self._peak_bytes(computation)
    return self._found[computation]

  def _peak_bytes(self, computation: str) -> float:
    instructions = self._module.computations[computation]
    position = {x.name: i for i, x in enumerate(instructions)}
    last_use: dict[_Value, int] = {}
    for i, x in enumerate(instructions):
      if x.opcode in _ALIASES:
        continue
      if self._pass(x) in ("backward", "recomputed"):
        for value in self._used_values(computation, x):
          last_use[value] = i
    changes = [0.0] * (len(instructions) + 1)
    table = self._module.by_name(computation)
    for (source, element), end in last_use.items():
      if self._pass(table[source]) == "forward" and not self._is_argument(
        computation, source
      ):
        array = table[source].results[element]
        if array.in_hbm:
          changes[position[source]] += array.padded_bytes
          changes[end + 1] -= array.padded_bytes
    largest = alive = 0.0
    for i, x in enumerate(instructions):
      alive += changes[i]
      inside = max((self.peak_bytes(name) for name in _called(x)), default=0.0)
      largest = max(largest, alive + inside)
    return largest

  def _pass(self, x: parse.Instruction) -> str:
    """Returns "forward", "backward", "recomputed" or "" for none of them."""
    if x.opcode != "while" or x.op_name:
      return op_names.classify(x.op_name)[1]
    # A loop that the compiler has rewritten has no path, so its body is used.
    inside = collections.Counter(
      op_names.classify(y.op_name)[1]
      for y in self._module.computations[x.required("body")]
    )
    del inside[""]
    return inside.most_common(1)[0][0] if inside else ""

  def _used_values(
    self, computation: str, x: parse.Instruction
  ) -> Iterator[_Value]:
    """Yields the values that an instruction uses, at their sources."""
    for name in x.operands:
      operand = self._module.by_name(computation).get(name)
      if operand is not None:
        for element in range(len(operand.results)):
          yield self._source(computation, name, element)

  def _source(self, computation: str, name: str, element: int) -> _Value:
    """Returns the instruction and element that computed a value.

    Follows aliases, and loops that pass the value through unchanged.
    """
    table = self._module.by_name(computation)
    while True:
      x = table[name]
      if x.opcode == "get-tuple-element":
        name, element = x.operands[0], int(x.required("index"))
      elif x.opcode == "tuple":
        # Compiled programs have no nested tuples, so an operand is one array.
        name, element = x.operands[element], 0
      elif x.opcode == "while" and self._passes_through(x, element):
        name = x.operands[0]
      elif x.opcode in _ALIASES and x.operands and x.operands[0] in table:
        name, element = x.operands[0], 0
      else:
        return name, element

  def _passes_through(self, loop: parse.Instruction, element: int) -> bool:
    """Returns whether the body of a loop returns an element unchanged."""
    body = loop.required("body")
    instructions = self._module.computations[body]
    name, found = self._source(body, instructions[-1].name, element)
    return self._module.by_name(body)[name].opcode == "parameter" and (
      found == element
    )

  def _is_argument(self, computation: str, name: str) -> bool:
    """Returns whether a value is one argument, only cast or moved."""
    table = self._module.by_name(computation)
    while table[name].opcode != "parameter":
      sources = {
        source
        for source, _ in self._used_values(computation, table[name])
        if table[source].opcode not in ("constant", "iota")
      }
      if table[name].opcode == "while" or len(sources) != 1:
        return False
      name = sources.pop()
    return True


def _called(x: parse.Instruction) -> list[str]:
  """Returns the computations that a loop, call or branch runs."""
  if x.opcode == "while":
    return [x.required("body")]
  if x.opcode == "call":
    return [x.required("to_apply")]
  if x.opcode == "conditional":
    return re.findall(r"%([\w.\-]+)", x.attributes.partition("metadata")[0])
  return []
