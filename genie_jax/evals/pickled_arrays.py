"""Reads arrays from a pickle without running it.

Unpickling can call any function, so a file from elsewhere must not be
unpickled. This reader only knows the instructions that nested dicts of
float32 arrays need, and can build nothing but dicts, tuples and arrays.
"""

import pickletools
from typing import Any

import numpy as np

_MARK = object()
# What a pickled array refers to -> the values that `_reduce` makes of it.
_ARRAY = (
  ("numpy.core.multiarray", "_reconstruct"),
  ("numpy._core.multiarray", "_reconstruct"),  # Of numpy 2.
)
_DTYPE = ("numpy", "dtype")
_GLOBALS = (*_ARRAY, _DTYPE, ("numpy", "ndarray"))
_FLOAT32, _EMPTY = object(), object()
_MAX_DEPTH = 8


def read(content: bytes) -> dict[str, np.ndarray]:
  """Returns the arrays of a pickled tree of dicts.

  Args:
    content: A pickle of protocol 4.

  Returns:
    The keys on the way to an array, joined by "/" -> float32 array, read-only.

  Raises:
    ValueError: The pickle is damaged, or contains anything else.
  """
  try:
    tree = _run(content)
  except (LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"the pickle is damaged ({error})") from error
  found: dict[str, np.ndarray] = {}
  _flatten(tree, (), found)
  return found


def _flatten(tree: Any, path: tuple[str, ...], found: dict) -> None:
  if isinstance(tree, np.ndarray):
    found["/".join(path)] = tree
  elif isinstance(tree, dict) and len(path) < _MAX_DEPTH:
    for name, value in tree.items():
      _flatten(value, (*path, str(name)), found)
  else:
    raise ValueError(
      f"the pickle has no array at {'/'.join(path) or 'its root'}"
    )


def _run(content: bytes) -> Any:
  """Carries out the allowed instructions; returns the pickled value."""
  stack: list[Any] = []
  memo: list[Any] = []

  def since_mark() -> list[Any]:
    start = max(i for i, value in enumerate(stack) if value is _MARK)
    values = stack[start + 1 :]
    del stack[start:]
    return values

  for instruction, argument, _ in pickletools.genops(content):
    name = instruction.name
    match name:
      case "PROTO" | "FRAME":
        pass
      case "EMPTY_DICT":
        stack.append({})
      case "MARK":
        stack.append(_MARK)
      case (
        "SHORT_BINUNICODE"
        | "BINBYTES"
        | "SHORT_BINBYTES"
        | "BININT"
        | "BININT1"
        | "BININT2"
      ):
        stack.append(argument)
      case "NONE" | "NEWTRUE" | "NEWFALSE":
        stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
      case "MEMOIZE":
        memo.append(stack[-1])
      case "BINGET" | "LONG_BINGET":
        assert isinstance(argument, int)  # `genops` reads one.
        stack.append(memo[argument])
      case "TUPLE":
        stack.append(tuple(since_mark()))
      case "TUPLE1" | "TUPLE2" | "TUPLE3":
        count = int(name[-1])
        values = tuple(stack[-count:])
        del stack[-count:]
        stack.append(values)
      case "SETITEM" | "SETITEMS":
        pairs = (
          since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
        )
        stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
      case "STACK_GLOBAL":
        attribute, module = stack.pop(), stack.pop()
        if (module, attribute) not in _GLOBALS:
          raise ValueError(f"the pickle refers to {module}.{attribute}")
        stack.append((module, attribute))
      case "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_reduce(function, arguments))
      case "BUILD":
        state, value = stack.pop(), stack.pop()
        stack.append(_build(value, state))
      case "STOP":
        return stack.pop()
      case _:
        raise ValueError(f"the pickle has the instruction {name}")
  raise ValueError("the pickle has no end")


def _reduce(function: Any, arguments: Any) -> Any:
  """Returns a placeholder of what a pickled call would make."""
  if function in _ARRAY:
    return _EMPTY
  if function == _DTYPE and arguments[0] == "f4":
    return _FLOAT32
  raise ValueError(f"the pickle calls {function} with {arguments}")


def _build(value: Any, state: Any) -> Any:
  """Returns the array or type that a placeholder and its state describe."""
  if value is _FLOAT32 and state[1] == "<":
    return value
  if value is _EMPTY:
    _, shape, dtype, fortran, content = state
    if dtype is _FLOAT32:
      flat = np.frombuffer(content, "<f4")
      return flat.reshape(shape, order="F" if fortran else "C")
  raise ValueError("the pickle has values of another type than float32")
