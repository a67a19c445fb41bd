"""Refusal of configs that no program of ours wrote, before they are built."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from genie_jax.core import errors
from genie_jax.models import dynamics, lam, tokenizer
from genie_jax.nn import st_transformer

_MODULES = {
    "tokenizer": tokenizer.Tokenizer, "lam": lam.Lam,
    "dynamics": dynamics.Dynamics}
STACKS = ("encoder", "decoder", "transformer")
# No model needs more of anything; products of these stay within 64 bits.
_LARGEST = 1 << 20
_LARGEST_SIDE = 1 << 13


def types(where: str, name: str, fields: Any) -> None:
  """Raises unless the fields of a part have the types they should.

  Which fields there are is checked by `build`.

  Args:
    where: The file, for the message.
    name: tokenizer, lam or dynamics.
    fields: {"world", "model"}, straight from JSON.

  Raises:
    UserError: A field is of the wrong type or absurdly large.
  """
  if not isinstance(fields, dict):
    raise errors.UserError(
        f"{where}: parts.{name} is {fields!r:.40}, not a group of fields; "
        "export it again.")
  for group in ("world", "model"):
    if group in fields and not isinstance(fields[group], dict):
      raise errors.UserError(
          f"{where}: parts.{name}.{group} is not a group of fields; export it "
          "again.")
  for key, value in fields.get("world", {}).items():
    largest = _LARGEST_SIDE if key in ("height", "width") else _LARGEST
    if isinstance(value, (int, float)) and not 0 < value <= largest:
      _refuse(where, f"{name}.world.{key}", value)
  if isinstance(fields.get("world"), dict) and "fps" not in fields["world"]:
    raise errors.UserError(
        f"{where}: parts.{name}.world.fps is missing; export it again.")
  model = fields.get("model", {})
  _values(f"{where}: parts.{name}.model", _MODULES[name], model)
  for stack in STACKS:
    if stack in model:
      if not isinstance(model[stack], dict):
        _refuse(where, f"{name}.model.{stack}", model[stack])
      _values(f"{where}: parts.{name}.model.{stack}",
              st_transformer.STTransformer, model[stack])


def unrolled(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns fields whose stacks trace one layer, whatever their depth."""
  model = {
      key: {**value, "unroll": 1} if key in STACKS else value
      for key, value in fields["model"].items()}
  return {**fields, "model": model}


@contextlib.contextmanager
def building(where: str, name: str) -> Iterator[None]:
  """Turns what a model says of impossible sizes into one line."""
  try:
    yield
  except errors.UserError:
    raise
  except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
    raise errors.UserError(
        f"{where}: no {name} can be built of its fields "
        f"({' '.join(str(error).split())[:120]}); export it again.") from error


def _values(where: str, module: type, fields: Mapping[str, Any]) -> None:
  for field in dataclasses.fields(module):
    if field.name not in fields or field.name in ("parent", "name"):
      continue
    value, kind = fields[field.name], field.type
    if kind is int:
      least = 0 if field.default == 0 else 1
      good = type(value) is int and least <= value <= _LARGEST
    elif kind is float:
      good = type(value) in (int, float) and math.isfinite(value)
    elif kind in (str, bool):
      good = type(value) is kind
    else:
      good = True  # Stacks, which the caller looks into.
    if field.name == "dtype":
      good = type(value) is str
    if not good:
      raise errors.UserError(
          f"{where}.{field.name}={value!r:.40} is out of range or of another "
          "type; export it again.")


def _refuse(where: str, name: str, value: Any) -> None:
  raise errors.UserError(
      f"{where}: parts.{name}={value!r:.40} is out of range or of another "
      "type; export it again.")
