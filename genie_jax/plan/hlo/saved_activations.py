"""Bytes that the forward pass keeps for the backward pass, from the program.

A value is kept when an instruction of the forward pass gives it and one of the
backward pass takes it; which pass an instruction belongs to stands in its
path. Layers are a loop: what it stacks (a leading dimension of layers) is a
result of the forward loop that goes into the backward one. Elements that a
loop only hands through belong to whoever made them, and a cast or a gather of
a single argument (weights) is no activation. A program has an order, so values
count from their making to their last use, and the largest sum is what counts.
"""

import collections
import re
from collections.abc import Iterator

from genie_jax.plan.hlo import op_names, parse

# Instructions that give what they take, under another name or elsewhere.
_SAME = frozenset(
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

# A value: who made it, and which part of its result it is.
_Value = tuple[str, int]


def of(module: parse.Module) -> float:
  """Returns the most bytes of HBM on one device that are kept at any time."""
  return _Search(module).most(module.entry)


class _Search:
  """Looks through computations; remembers those that it has seen."""

  def __init__(self, module: parse.Module):
    self._module = module
    self._found: dict[str, float] = {}

  def most(self, name: str) -> float:
    """Returns the most bytes in one computation and the loops in it."""
    if name not in self._found:
      self._found[name] = self._most(name)
    return self._found[name]

  def _most(self, name: str) -> float:
    instructions = self._module.computations[name]
    made = {x.name: i for i, x in enumerate(instructions)}
    last: dict[_Value, int] = {}
    for i, x in enumerate(instructions):
      if x.opcode not in _SAME and self._pass(x) in ("backward", "recomputed"):
        for value in self._taken(name, x):
          last[value] = i
    changes = [0.0] * (len(instructions) + 1)
    table = self._module.table(name)
    for (maker, part), end in last.items():
      if self._pass(table[maker]) == "forward" and not self._of_one_argument(
        name, maker
      ):
        array = table[maker].results[part]
        if array.in_main_memory:
          changes[made[maker]] += array.padded_bytes
          changes[end + 1] -= array.padded_bytes
    largest = alive = 0.0
    for i, x in enumerate(instructions):
      alive += changes[i]
      inside = max((self.most(inner) for inner in _run(x)), default=0.0)
      largest = max(largest, alive + inside)
    return largest

  def _pass(self, x: parse.Instruction) -> str:
    """Returns "forward", "backward", "recomputed" or "" for neither."""
    if x.opcode != "while" or x.op_name:
      return op_names.of(x.op_name)[1]
    # A loop that the compiler has rewritten has lost its path.
    inside = collections.Counter(
      op_names.of(y.op_name)[1]
      for y in self._module.computations[x.attribute("body")]
    )
    del inside[""]
    return inside.most_common(1)[0][0] if inside else ""

  def _taken(self, where: str, x: parse.Instruction) -> Iterator[_Value]:
    """Yields the values that an instruction takes, at their makers."""
    for name in x.operands:
      operand = self._module.table(where).get(name)
      if operand is not None:
        parts = range(len(operand.results))
        yield from (self._maker(where, name, part) for part in parts)

  def _maker(self, where: str, name: str, part: int) -> _Value:
    """Returns who made a value that may have come through others."""
    table = self._module.table(where)
    while True:
      x = table[name]
      if x.opcode == "get-tuple-element":
        name, part = x.operands[0], int(x.attribute("index"))
      elif x.opcode == "tuple":
        # Each of its operands is one array here: programs nest no tuples.
        name, part = x.operands[part], 0
      elif x.opcode == "while" and self._hands_through(x, part):
        name = x.operands[0]
      elif x.opcode in _SAME and x.operands and x.operands[0] in table:
        name, part = x.operands[0], 0
      else:
        return name, part

  def _hands_through(self, loop: parse.Instruction, part: int) -> bool:
    """Returns whether a loop's body gives a part as it took it."""
    body = loop.attribute("body")
    instructions = self._module.computations[body]
    name, found = self._maker(body, instructions[-1].name, part)
    return self._module.table(body)[name].opcode == "parameter" and (
      found == part
    )

  def _of_one_argument(self, where: str, name: str) -> bool:
    """Returns whether a value is made of one argument by casts and moves."""
    table = self._module.table(where)
    while table[name].opcode != "parameter":
      makers = {
        maker
        for maker, _ in self._taken(where, table[name])
        if table[maker].opcode not in ("constant", "iota")
      }
      if table[name].opcode == "while" or len(makers) != 1:
        return False
      name = makers.pop()
    return True


def _run(x: parse.Instruction) -> list[str]:
  """Returns the computations that an instruction runs in turns."""
  if x.opcode == "while":
    return [x.attribute("body")]
  if x.opcode == "call":
    return [x.attribute("to_apply")]
  if x.opcode == "conditional":
    return re.findall(r"%([\w.\-]+)", x.attributes.partition("metadata")[0])
  return []
