"""The registry of quantizers: the names that `config.quantizer` can have.

  vq    a learned table of codes (nn/vq.py); its width and norm are
        config.model.code_dim and config.model.unit_norm
  fsq   finite scalar quantisation (nn/fsq.py); `levels` sets the number of
        levels of each entry

A quantizer is a class derived from `Quantizer` that defines

  build(num_codes, fields) -> Quantizer    a classmethod; `fields` has the
      fields that `complete` returned, and `code_dim` and `unit_norm` of
      config.model, which a quantizer may ignore if it sets its own width
  __call__(x) -> Quantized                 x: float [..., E]
  lookup(codes) -> float32 [..., E]        codes: int32 [...]

and the attributes `num_codes` and `code_dim`. It may also override other
methods of `Quantizer`, for example to add losses or to learn from each batch.
Add it with `register`, or name it as "module:attribute" in a config.
docs/quantizers.md has an example.
"""

from collections.abc import Mapping
from typing import Any

from genie_jax.core import config as config_lib
from genie_jax.core import errors, registry
from genie_jax.nn import codes, fsq, vq

Quantizer = codes.Quantizer
Quantized = codes.Quantized

DEFAULT = "vq"
_METHODS = {
  "build": "(num_codes, fields) -> Quantizer",
  "__call__": "(x) -> Quantized",
  "lookup": "(codes) -> vectors",
}


def _check(name: str, value: Any) -> None:
  if not isinstance(value, type) or not issubclass(value, Quantizer):
    raise errors.UserError(
      f"The quantizer {name!r} ({value!r:.60}) is not a class derived from "
      "genie_jax.nn.quantizers.Quantizer; derive it from that."
    )
  own = set().union(
    *(vars(base) for base in value.__mro__ if base not in Quantizer.__mro__)
  )
  for method, signature in _METHODS.items():
    if method not in own:
      raise errors.UserError(
        f"The quantizer {name!r} ({value.__name__}) has no method {method}; "
        f"it needs {method}{signature}."
      )


_REGISTRY: registry.Registry[type[Quantizer]] = registry.Registry(
  "quantizer", "genie_jax.nn.quantizers.register", _check
)
register = _REGISTRY.register
names = _REGISTRY.names

register(DEFAULT, vq.Codebook)
register("fsq", fsq.FSQ)


def complete(
  group: Mapping[str, Any] | None,
  num_codes: int,
  where: str = "config.quantizer",
) -> dict[str, Any] | None:
  """Checks the group `quantizer` of a config, or of a saved model.

  Args:
    group: `name` and the quantizer's fields; empty lists count as not given.
      None means the default quantizer, as in configs and models that were
      written before there were several quantizers.
    num_codes: V.
    where: Name of the group, for messages.

  Returns:
    `name` and all fields, with lists as tuples; None for the default
    quantizer, which saved models do not record.

  Raises:
    UserError: There is no such quantizer or field, or a value is invalid.
  """
  if group is None:
    return None
  group = config_lib.to_dict(group)
  if not isinstance(group, dict):
    raise errors.UserError(
      f"{where}={group!r:.60} is not a group of fields; give it a name, "
      f"{where}.name={DEFAULT}."
    )
  name = group.get("name")
  kind = _REGISTRY.get(name, where=f"{where}.name")
  given = {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in group.items()
    if field != "name" and value != []
  }
  for field, value in given.items():
    if field not in kind.FIELDS:
      others = [other for other in names() if field in of(other).FIELDS]
      raise errors.UserError(
        f"{where}.{field}={value!r:.60} is not a field of the quantizer "
        f"{name!r}{errors.closest(field, kind.FIELDS)}; "
        + (f"set {where}.name={others[0]}, or " if others else "")
        + "leave it out."
      )
  fields = kind.complete(num_codes, given, where)
  return None if name == DEFAULT else {"name": name, **fields}


def of(name: Any, trusted: bool = False) -> type[Quantizer]:
  """Returns the quantizer class with this name.

  Args:
    name: As in `config.quantizer.name`.
    trusted: Whether "module:attribute" may be imported.

  Raises:
    UserError: There is no quantizer with this name.
  """
  return _REGISTRY.get(name, where="config.quantizer.name", trusted=trusted)


def build(
  completed: Mapping[str, Any] | None,
  *,
  num_codes: int,
  code_dim: int,
  unit_norm: bool,
) -> Quantizer:
  """Builds a quantizer.

  Args:
    completed: From `complete`.
    num_codes: V.
    code_dim: `config.model.code_dim`.
    unit_norm: `config.model.unit_norm`.
  """
  fields = {"code_dim": code_dim, "unit_norm": unit_norm, **(completed or {})}
  found: Any = of(fields.pop("name", DEFAULT))  # Any: the base has no `build`.
  return found.build(num_codes, fields)
