"""Reads values from a pickle without running it.

Unpickling can call any function, so a file from elsewhere must not be
unpickled. This reader carries out only the instructions that build dicts,
lists, tuples, text, bytes, numbers and numpy arrays, and refuses all others.
It takes what Python 2.3 to 3.14 and numpy 1 and 2 write.
"""

import pickletools
import re
from typing import Any

import numpy as np

_MARK = object()
_RECONSTRUCT, _SCALAR, _FROM_BUFFER = "_reconstruct", "scalar", "_frombuffer"
_GLOBALS = {
  (f"numpy.{core}.{module}", name): name
  for core in ("core", "_core")
  for module, name in (
    ("multiarray", _RECONSTRUCT),
    ("multiarray", _SCALAR),
    ("numeric", _FROM_BUFFER),
  )
}
_GLOBALS |= {
  ("numpy", "dtype"): "dtype",
  ("numpy", "ndarray"): "ndarray",
  # How protocols before 5 write bytes and bytearrays.
  ("_codecs", "encode"): "encode",
}
_GLOBALS |= {
  (builtins, name): name
  for builtins in ("builtins", "__builtin__")
  for name in ("bytes", "bytearray")
}
# Bools, signed and unsigned integers, floats: "i8", "u1", "f4", "b1".
_NUMBER = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_OBJECT = "O8"
# Instructions whose argument is the value.
_VALUES = (
  *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"),
  *("FLOAT", "BINFLOAT", "STRING", "SHORT_BINSTRING", "BINSTRING"),
  *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
  *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Global:
  """A name that the pickle refers to; never the thing itself."""

  def __init__(self, name: str):
    self.name = name


class _Type:
  """A numpy dtype that a pickle describes."""

  def __init__(self, code: str):
    self.code, self.order = code, "<"


class _Empty:
  """An array before its content is known."""


def read(content: bytes) -> Any:
  """Returns the value of a pickle.

  Args:
    content: The pickle.

  Returns:
    Dicts, lists, tuples, text, bytes, numbers, None, and numpy arrays; an array
    of objects is a list.

  Raises:
    ValueError: The pickle is damaged or has anything else; the message is one
      line.
  """
  try:
    return _Machine().run(content)
  except (
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    OverflowError,
    MemoryError,
  ) as error:
    raise ValueError(f"the pickle is damaged ({error})") from error


class _Machine:
  """Carries out a pickle's instructions."""

  def __init__(self):
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}

  def run(self, content: bytes) -> Any:
    for instruction, argument, _ in pickletools.genops(content):
      name = instruction.name
      if name == "STOP":
        value = self._stack.pop()
        if not _is_finished(value):
          raise ValueError("the pickle is damaged (an unfinished value)")
        return value
      self._step(name, argument)
    raise ValueError("the pickle has no end")

  def _since_mark(self) -> list[Any]:
    place = len(self._stack) - 1
    while self._stack[place] is not _MARK:
      place -= 1
      if place < 0:
        raise LookupError("no mark")
    values = self._stack[place + 1 :]
    del self._stack[place:]
    return values

  def _step(self, name: str, argument: Any) -> None:
    stack, memo = self._stack, self._memo
    if name in _VALUES:
      stack.append(argument)
      return
    if name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
      return
    match name:
      case "PROTO" | "FRAME":
        pass
      case "MARK":
        stack.append(_MARK)
      case "POP":
        stack.pop()
      case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
        stack.append({"D": {}, "L": [], "T": ()}[name[6]])
      case "DICT":
        values = self._since_mark()
        stack.append(dict(zip(values[::2], values[1::2], strict=True)))
      case "LIST":
        stack.append(self._since_mark())
      case "TUPLE":
        stack.append(tuple(self._since_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        count = int(name[-1])
        values = tuple(stack[-count:])
        if len(values) < count:
          raise LookupError("too few values")
        del stack[-count:]
        stack.append(values)
      case "APPEND":
        value = stack.pop()
        _of(stack[-1], list).append(value)
      case "APPENDS":
        values = self._since_mark()
        _of(stack[-1], list).extend(values)
      case "SETITEM":
        value, key = stack.pop(), stack.pop()
        _of(stack[-1], dict)[key] = value
      case "SETITEMS":
        values = self._since_mark()
        _of(stack[-1], dict).update(zip(values[::2], values[1::2], strict=True))
      case "MEMOIZE":
        memo[len(memo)] = stack[-1]
      case "PUT" | "BINPUT" | "LONG_BINPUT":
        memo[argument] = stack[-1]
      case "GET" | "BINGET" | "LONG_BINGET":
        stack.append(memo[argument])
      case "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        stack.append(_global(module, attribute))
      case "GLOBAL":
        module, _, attribute = argument.partition(" ")
        stack.append(_global(module, attribute))
      case "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, _of(arguments, tuple)))
      case "BUILD":
        state, value = stack.pop(), stack.pop()
        made = _build(value, _of(state, tuple))
        # What refers to the empty array means the finished one.
        for place, other in memo.items():
          if other is value:
            memo[place] = made
        stack.append(made)
      case _:
        raise ValueError(f"the pickle has the instruction {name}")


def _is_finished(root: Any) -> bool:
  """Returns whether a value has no parts that only the reader knows."""
  waiting, seen = [root], set()
  while waiting:
    value = waiting.pop()
    if isinstance(value, dict | list | tuple):
      if id(value) not in seen:
        seen.add(id(value))
        waiting += value
        waiting += value.values() if isinstance(value, dict) else ()
    elif not isinstance(
      value, str | bytes | bytearray | int | float | np.ndarray | None
    ):
      return False
  return True


def _of(value: Any, kind: type | tuple[type, ...]) -> Any:
  if not isinstance(value, kind):
    raise TypeError(f"a {type(value).__name__} instead of {kind}")
  return value


def _global(module: Any, attribute: Any) -> _Global:
  if (module, attribute) not in _GLOBALS:
    raise ValueError(
      f"the pickle refers to {module!s:.60}.{attribute!s:.60}, which could run "
      "code"
    )
  return _Global(_GLOBALS[module, attribute])


def _call(function: Any, arguments: tuple[Any, ...]) -> Any:
  """Returns what an allowed call means."""
  match _of(function, _Global).name:
    case "dtype":
      code = _of(arguments[0], str)
      if code not in (_OBJECT, "O") and not _NUMBER.fullmatch(code):
        raise ValueError(f"the pickle has values of type {code:.20}")
      return _Type(code.lstrip("<>|="))
    case "_reconstruct":
      return _Empty()
    case "scalar":
      return _array(arguments[0], (), False, arguments[1]).item()
    case "_frombuffer":
      content, kind, shape, order = arguments
      return _array(kind, shape, order == "F", content)
    case "bytes" | "bytearray" as name:
      content = arguments[0] if arguments else b""
      if isinstance(content, str) and arguments[1:] == ("latin-1",):
        content = content.encode("latin-1")
      found: bytes = _of(content, bytes)
      return found if name == "bytes" else bytearray(found)
    case "encode" if arguments[1:] in (("latin1",), ("latin-1",)):
      return _of(arguments[0], str).encode("latin-1")
    case name:
      raise ValueError(f"the pickle calls {name}")


def _build(value: Any, state: tuple[Any, ...]) -> Any:
  """Returns the type or the array that a state completes."""
  if isinstance(value, _Type):
    if state[1] not in ("<", ">", "|", "="):
      raise TypeError(f"byte order {state[1]!r:.20}")
    value.order = state[1]
    return value
  if isinstance(value, _Empty):
    _, shape, kind, fortran, content = state
    return _array(kind, shape, bool(fortran), content)
  raise TypeError(f"a state for a {type(value).__name__}")


def _array(kind: Any, shape: Any, fortran: bool, content: Any) -> Any:
  """Returns an array of numbers, or the list of an array of objects."""
  kind = _of(kind, _Type)
  if kind.code.startswith("O"):
    return _of(content, list)
  if isinstance(content, str):
    content = content.encode("latin-1")
  order = kind.order.replace("|", "=")
  flat = np.frombuffer(
    _of(content, (bytes, bytearray)), np.dtype(order + kind.code)
  )
  if isinstance(shape, int):
    shape = (shape,)
  return flat.reshape(_of(shape, tuple), order="F" if fortran else "C")
