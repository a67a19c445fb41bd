"""Schemas: the form that input must have, checked in one place.

A form is one of

  str, bool, dict, list    a value of this type; text has no control characters
  Number, Text             a number within bounds, a text of a pattern
  Maybe(form)              as a field: it may be missing, or null if it says so
  [form]                   a list of which each element has this form
  (form, form)             a list of as many elements, each of its own form
  {"name": form}           a group with these fields, and any others, which have
                           the form of the key `...` if there is one
  Plain()                  anything of finite numbers and such text
  object                   anything

`files.read_json` checks JSON by such forms, `config_fields` configs.
"""

import dataclasses
import math
import re
from typing import Any

from genie_jax.core import errors

# A form is a value of one of several types that Python cannot name together.
Form = Any
Fault = tuple[str, Any, str]

_NAMES = {
  str: "text without control characters",
  bool: "true or false",
  dict: "a group of fields",
  list: "a list",
}
_MISSING = object()


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number; bool is not a number.

  Attributes:
    low: The least value; None for no bound.
    high: The greatest value; None for no bound.
    whole: Whether it must be an integer.
    above: Whether it must exceed `low`.
    below: Whether it must be less than `high`.
  """

  low: float | None = None
  high: float | None = None
  whole: bool = False
  above: bool = False
  below: bool = False

  def accepts(self, value: Any) -> bool:
    """Returns whether a value is such a number."""
    kinds = int if self.whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
      return False
    if isinstance(value, float) and not math.isfinite(value):
      return False
    low, high = self.low, self.high
    if low is not None and (value <= low if self.above else value < low):
      return False
    return high is None or (value < high if self.below else value <= high)

  def __str__(self) -> str:
    bounds = []
    if self.low is not None:
      bounds.append(f"{'more than' if self.above else 'at least'} {self.low}")
    if self.high is not None:
      bounds.append(f"{'less than' if self.below else 'at most'} {self.high}")
    kind = "a whole number" if self.whole else "a finite number"
    return f"{kind} of {' and '.join(bounds)}" if bounds else kind


@dataclasses.dataclass(frozen=True)
class Text:
  """A text that matches a whole pattern.

  Attributes:
    pattern: A regular expression.
    what: What it describes, with an article, for messages.
  """

  pattern: str
  what: str


@dataclasses.dataclass(frozen=True)
class Maybe:
  """A field that may be missing.

  Attributes:
    form: The form of its value.
    null: Whether the value may be null.
  """

  form: Form
  null: bool = False


@dataclasses.dataclass(frozen=True)
class Plain:
  """Any value, if its numbers are finite and its texts plain."""


# The largest step, seed or count, which JAX holds in 32 bits.
MOST = 2**31 - 1
NATURAL = Number(0, MOST, whole=True)
COUNT = Number(1, MOST, whole=True)
# Sizes of files and the like, which Python counts without a limit.
BYTES = Number(0, 2**63 - 1, whole=True)
FINITE = Number()
NOT_NEGATIVE = Number(0)
SHARE = Number(0, 1)
TEXT = Text(r"(?s).*", "text")  # May have control characters.
# A line of metrics.jsonl.
METRICS = {"step": NATURAL, ...: Maybe(FINITE, null=True)}


def check(value: Any, form: Form, where: str, remedy: str) -> None:
  """Checks a value.

  Args:
    value: JSON, or what a config has as plain dicts, lists and scalars.
    form: Its form, see the module.
    where: Begins the message, for example the path of a file.
    remedy: Ends it.

  Raises:
    UserError: The first part of the value that has not its form.
  """
  found = _fault(value, form, "")
  if found is None:
    return
  name, bad, wanted = found
  name = "".join(x if x.isprintable() else "?" for x in name[:80])
  what = f"{where}: {name}" if name else where
  if bad is _MISSING:
    raise errors.UserError(f"{what} is missing; {remedy}.")
  raise errors.UserError(
    f"{what} is {shown(bad)}, but must be {wanted}; {remedy}."
  )


def shown(value: Any) -> str:
  """Returns a value for a message: short, and without control characters."""
  if isinstance(value, dict | list | tuple) and value:
    return f"a {type(value).__name__} of {len(value)}"
  # Python does not format integers of many digits.
  if type(value) is int and value.bit_length() > 128:
    return f"a number of {value.bit_length()} bits"
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:40]}..."


def is_plain(text: str) -> bool:
  """Returns whether a text has no control characters and can be encoded."""
  return text.isprintable() or not _UNPRINTABLE.search(text)


# Control characters, and halves of characters, which UTF-8 cannot encode.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def _fault(value: Any, form: Form, name: str) -> Fault | None:
  """Returns the name, the value and the form of the first wrong part."""
  kind = type(form)
  if kind is Number:
    return None if form.accepts(value) else (name, value, str(form))
  if kind is tuple:
    if type(value) is not list or len(value) != len(form):
      return name, value, f"a list of {len(form)}"
    parts = zip(value, form, strict=True)
    return _first((x, f, f"{name}[{i}]") for i, (x, f) in enumerate(parts))
  if kind is list:
    if type(value) is not list:
      return name, value, _NAMES[list]
    return _first((x, form[0], f"{name}[{i}]") for i, x in enumerate(value))
  if kind is Maybe:
    absent = form.null and value is None
    return None if absent else _fault(value, form.form, name)
  if kind is Text:
    good = type(value) is str and re.fullmatch(form.pattern, value)
    return None if good else (name, value, form.what)
  if kind is dict:
    return _fault_of_group(value, form, name)
  if kind is Plain:
    inner = {str: str, int: FINITE, float: FINITE, list: [form]}
    return _fault(value, inner.get(type(value), object), name)
  if form is object:
    return None
  good = type(value) is form and (form is not str or is_plain(value))
  return None if good else (name, value, _NAMES[form])


def _fault_of_group(value: Any, form: Form, name: str) -> Fault | None:
  if type(value) is not dict:
    return name, value, _NAMES[dict]
  dot = f"{name}." if name else ""
  for field, inner in form.items():
    if field is not ... and field not in value and type(inner) is not Maybe:
      return f"{dot}{field}", _MISSING, ""
  others = form.get(..., object)
  return _first(
    (inner, form.get(field, others), f"{dot}{field}")
    for field, inner in value.items()
  )


def _first(parts: Any) -> Fault | None:
  faults = (_fault(*part) for part in parts)
  return next((fault for fault in faults if fault is not None), None)
