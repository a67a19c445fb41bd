"""Parses the text of a compiled program (optimized, scheduled HLO).

The result has the computations with their instructions in scheduled order. Of
an instruction, types, opcode and operands are parsed; its attributes remain
text.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
  "pred": 8,
  "s2": 2,
  "u2": 2,
  "s4": 4,
  "u4": 4,
  "s8": 8,
  "u8": 8,
  "s16": 16,
  "u16": 16,
  "bf16": 16,
  "f16": 16,
  "s32": 32,
  "u32": 32,
  "f32": 32,
  "s64": 64,
  "u64": 64,
  "f64": 64,
  "c64": 64,
  "c128": 128,
  "token": 0,
  "opaque": 0,
  "f8e4m3fn": 8,
  "f8e5m2": 8,
  "f8e4m3b11fnuz": 8,
  "f8e4m3": 8,
  "f8e3m4": 8,
  "f4e2m1fn": 4,
  "f8e8m0fnu": 8,
}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_NAME = re.compile(r"  (ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"([\w\-]+)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """The type of an array.

  Attributes:
    dtype: XLA's name of the element type, for example "bf16".
    shape: Its dimensions.
    layout: Dimensions from the fastest-varying one, then tiles and memory
      space, for example "1,0:T(8,128)(2,1)S(1)".
  """

  dtype: str
  shape: tuple[int, ...]
  layout: str = ""

  @property
  def bytes(self) -> float:
    """Bytes of the elements, without padding."""
    return math.prod(self.shape) * _BITS[self.dtype] / 8

  @property
  def padded_bytes(self) -> float:
    """Bytes in memory, with the last dimensions padded to full tiles."""
    order, _, rest = self.layout.partition(":")
    tile = re.match(r"T\(([\d,]+)\)", rest)
    if not tile or not order:
      return self.bytes
    sizes = [self.shape[int(i)] for i in order.split(",")]  # Fastest first.
    for i, unit in enumerate(reversed(tile[1].split(","))):
      if i < len(sizes):
        sizes[i] = -(-sizes[i] // int(unit)) * int(unit)
    return math.prod(sizes) * _BITS[self.dtype] / 8

  @property
  def in_hbm(self) -> bool:
    """Whether it is in HBM; layouts of other memories have an S(number)."""
    return not re.search(r"S\([1-9]", self.layout)

  @property
  def in_host_memory(self) -> bool:
    """Whether it is in the host's memory."""
    return self.layout.endswith("S(5)")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction of a computation.

  Attributes:
    name: Its name, without the percent sign.
    opcode: For example "fusion".
    results: Type of the result; the types of the elements for a tuple.
    operands: Names of the operands.
    literal: The text between the parentheses (the value of a constant).
    attributes: The text after the parentheses.
  """

  name: str
  opcode: str
  results: tuple[Array, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate of its cycles, None if there is none."""
    found = _CYCLES.search(self.attributes)
    return int(found[1]) if found else None

  @functools.cached_property
  def op_name(self) -> str:
    """Path of the JAX operation that it comes from, "" if unknown."""
    found = _OP_NAME.search(self.attributes)
    return found[1] if found else ""

  def attribute(self, name: str) -> str | None:
    """Returns the word after `name=` without a percent sign, None if absent."""
    found = re.search(rf"\b{name}=\"?%?([\w.\-]+)", self.attributes)
    return found[1] if found else None

  def required(self, name: str) -> str:
    """Returns an attribute that the opcode always has, such as "body".

    Raises:
      ValueError: The attribute is absent.
    """
    found = self.attribute(name)
    if found is None:
      raise ValueError(f"The instruction {self.name} has no {name}=.")
    return found

  def branches(self) -> list[str]:
    """Returns the computations that a conditional chooses from."""
    found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
    if found:
      return re.findall(r"%?([\w.\-]+)", found[1])
    return [
      self.required("true_computation"),
      self.required("false_computation"),
    ]

  @property
  def result_bytes(self) -> float:
    """Bytes of all elements of the result, without padding."""
    return sum(array.bytes for array in self.results)


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program.

  Attributes:
    computations: Name -> instructions in scheduled order.
    entry: Name of the computation that runs first.
  """

  computations: dict[str, tuple[Instruction, ...]]
  entry: str

  @functools.cached_property
  def _tables(self) -> dict[str, dict[str, Instruction]]:
    return {}

  def by_name(self, computation: str) -> dict[str, Instruction]:
    """Returns the instructions of a computation by name."""
    if computation not in self._tables:
      self._tables[computation] = {
        x.name: x for x in self.computations[computation]
      }
    return self._tables[computation]

  def operands(self, computation: str, instruction: Instruction) -> list[Array]:
    """Returns the types of an instruction's operands.

    Args:
      computation: The computation that has the instruction.
      instruction: The instruction.
    """
    table = self.by_name(computation)
    return [
      array
      for name in instruction.operands
      if name in table
      for array in table[name].results
    ]

  def with_called(self, computation: str) -> Iterator[Instruction]:
    """Yields the instructions of a computation and of those that it calls."""
    todo, seen = [computation], set()
    while todo:
      name = todo.pop()
      if name in seen or name not in self.computations:
        continue
      seen.add(name)
      for instruction in self.computations[name]:
        yield instruction
        called = instruction.attribute("calls") or instruction.attribute(
          "to_apply"
        )
        if called:
          todo.append(called)

  def trip_count(self, loop: Instruction) -> int | None:
    """Returns the number of iterations of a `while`, None if unknown.

    TPU programs do not state trip counts. The condition of their loops is
    "counter < constant", where the counter starts at 0 and is increased by a
    constant: by 1 in `scan`, by 2 in loops of windowed einsums, which compute
    two parts at a time. If the increment cannot be read, it is taken to be 1.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known[1])
    condition = loop.attribute("condition")
    if condition is None or condition not in self.computations:
      return None
    limits = [
      int(x.literal)
      for x in self.with_called(condition)
      if x.opcode == "constant"
      and _is_whole(x.results)
      and re.fullmatch(r"-?\d+", x.literal)
    ]
    if not limits:
      return None
    return -(-max(limits) // self._increment(loop, condition))

  def _increment(self, loop: Instruction, condition: str) -> int:
    """Returns by how much a loop's counter is increased; 1 if unknown."""
    counters = {
      x.attribute("index")
      for x in self.computations[condition]
      if x.opcode == "get-tuple-element" and _is_whole(x.results)
    }
    body = self.computations.get(loop.attribute("body") or "", ())
    if len(counters) != 1 or not body or body[-1].opcode != "tuple":
      return 1
    [counter] = counters
    assert counter is not None  # get-tuple-element always has an index.
    after = self._scalar(loop.required("body"), body[-1].operands[int(counter)])
    if after is None or after[0] != counter or after[1] < 1:
      return 1
    return after[1]

  def _scalar(
    self,
    computation: str,
    name: str,
    arguments: tuple["_Scalar | None", ...] | None = None,
  ) -> "_Scalar | None":
    """Returns a whole number as an element of a loop's tuple plus a constant.

    Args:
      computation: The body of a loop, or a computation that it calls.
      name: An instruction of it.
      arguments: Values of the parameters of a called computation; None in the
        body itself.

    Returns:
      (index of the element, constant), or (None, constant) for a constant; None
      for anything else.
    """
    x = self.by_name(computation).get(name)
    if x is None or not _is_whole(x.results):
      return None
    inner = lambda operand: self._scalar(computation, operand, arguments)
    if x.opcode == "constant" and re.fullmatch(r"-?\d+", x.literal):
      return None, int(x.literal)
    if x.opcode == "parameter" and arguments is not None:
      number = int(x.literal)
      return arguments[number] if number < len(arguments) else None
    if x.opcode == "get-tuple-element" and arguments is None:
      return x.required("index"), 0
    if x.opcode in ("copy", "bitcast"):
      return inner(x.operands[0])
    if x.opcode == "add":
      first, second = (inner(operand) for operand in x.operands)
      if first and second and None in (first[0], second[0]):
        return first[0] or second[0], first[1] + second[1]
    if x.opcode == "fusion" and (called := x.attribute("calls")):
      values = tuple(inner(operand) for operand in x.operands)
      return self._scalar(called, self.computations[called][-1].name, values)
    return None


# Index of an element of a loop's tuple, or None, and what is added to it.
_Scalar = tuple[str | None, int]


def _is_whole(results: tuple[Array, ...]) -> bool:
  """Returns whether a result is one whole number."""
  return (
    len(results) == 1
    and results[0].shape == ()
    and re.fullmatch(r"[su](32|64)", results[0].dtype) is not None
  )


def parse_arrays(text: str) -> tuple[Array, ...]:
  """Parses the type of an array, or of a tuple of arrays."""
  return tuple(
    Array(
      found[1], tuple(int(d) for d in found[2].split(",") if d), found[3] or ""
    )
    for found in _ARRAY.finditer(text)
    if found[1] in _BITS
  )


def parse(text: str) -> Module:
  """Parses the text of a program, from `compiled.as_text()`.

  Raises:
    ValueError: The text has no entry computation.
  """
  computations: dict[str, list[Instruction]] = {}
  entry: str | None = None
  current: list[Instruction] | None = None
  for line in _logical_lines(text):
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header[2], [])
        entry = header[2] if header[1] else entry
    elif line == "}":
      current = None
    else:
      instruction = _instruction(line)
      if instruction:
        current.append(instruction)
  if entry is None:
    raise ValueError("The program's text has no ENTRY computation.")
  return Module({k: tuple(v) for k, v in computations.items()}, entry)


def _logical_lines(text: str) -> Iterator[str]:
  """Yields lines, joined with the lines that continue their attributes.

  The attributes of kernels contain JSON of several lines.
  """
  joined: str | None = None
  for line in text.splitlines():
    if joined is not None and line and line[0] in '"}' and line != "}":
      joined += line
      continue
    if joined is not None:
      yield joined
    joined = line
  if joined is not None:
    yield joined


def _instruction(line: str) -> Instruction | None:
  """Parses a line of a computation, None if it is not an instruction."""
  head = _NAME.match(line)
  if not head:
    return None
  start = head.end()
  end = _closing(line, start) if line[start] == "(" else line.find(" ", start)
  opcode = _OPCODE.search(line, end)
  if not opcode:
    return None
  close = _closing(line, opcode.end() - 1)
  inner = line[opcode.end() : close - 1]
  return Instruction(
    name=head[2],
    opcode=opcode[1],
    results=parse_arrays(line[start:end]),
    operands=tuple(_OPERAND.findall(inner)),
    literal=inner,
    attributes=line[close:],
  )


def _closing(text: str, start: int) -> int:
  """Returns the position after the parenthesis that closes text[start]."""
  depth = 0
  for position in range(start, len(text)):
    if text[position] == "(":
      depth += 1
    elif text[position] == ")":
      depth -= 1
      if not depth:
        return position + 1
  return len(text)
