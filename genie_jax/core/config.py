"""Configs: loading `path.py[:mode]`, overriding fields, fingerprints."""

import ast
import hashlib
import importlib.util
import json
import pathlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from genie_jax.core import config_fields, errors, schema

_PREFIX = "--config."
# What Python raises for texts that are not values, or nest too deeply.
_UNREADABLE = (
  TypeError,
  ValueError,
  SyntaxError,
  OverflowError,
  RecursionError,
  MemoryError,
)


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Loads a config file and applies overrides to it.

  Args:
    path: A Python file with `get_config(mode)`, optionally followed by `:mode`,
      for example "experiments/coinrun/lam.py:smoke".
    overrides: Flags such as "--config.optimizer.peak_lr=1e-3"; each names an
      existing field and gives a value of that field's type.

  Returns:
    The locked config.

  Raises:
    UserError: The file is missing or invalid, the mode is unknown, an
      override names an unknown field or has the wrong type, or a value is out
      of the bounds in `config_fields`.
  """
  name, _, mode = path.partition(":")
  file = pathlib.Path(name)
  if not file.is_file():
    raise errors.UserError(
      f"--config={path}: {file} is not a file; give a path such as "
      "experiments/coinrun/tokenizer.py:tiny."
    )
  get_config = _import(file)
  try:
    config = get_config(mode)
  except ValueError as error:
    raise errors.UserError(f"--config={path}: {error}") from error
  for override in overrides:
    _override(config, path, override)
  config_fields.check(dotted(to_dict(config)), path)
  config.lock()
  return config


def _import(
  file: pathlib.Path,
) -> Callable[[str], ml_collections.ConfigDict]:
  """Returns the function `get_config` of a file."""
  module = import_file(file)
  if not hasattr(module, "get_config"):
    raise errors.UserError(
      f"{file} has no function get_config(mode); see experiments/ for "
      "examples of configs."
    )
  return module.get_config


def import_file(file: pathlib.Path) -> types.ModuleType:
  """Imports a config file, which may import others of `experiments`.

  Raises:
    UserError: The file is not Python, or cannot be imported.
  """
  _make_experiments_importable(file)
  spec = importlib.util.spec_from_file_location(f"_{file.stem}_config", file)
  if spec is None or spec.loader is None:
    raise errors.UserError(
      f"--config={file} is not a Python file; the name of a config file ends "
      "in .py."
    )
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (ImportError, SyntaxError, NameError) as error:
    raise errors.UserError(
      f"{file} cannot be imported ({error}); fix the file, or run the command "
      "from the folder that contains experiments/."
    ) from error
  return module


def _make_experiments_importable(file: pathlib.Path) -> None:
  """Lets a config import others as `experiments.<folder>.<name>`."""
  for parent in file.resolve().parents:
    if parent.name == "experiments":
      root = str(parent.parent)
      if root not in sys.path:
        sys.path.insert(0, root)
      return


def _override(
  config: ml_collections.ConfigDict, path: str, override: str
) -> None:
  """Sets one field from "--config.group.field=value"."""
  name, equals, text = override.removeprefix(_PREFIX).partition("=")
  if not override.startswith(_PREFIX) or not equals:
    raise errors.UserError(
      f"{override!r} is not an override; write --config.group.field=value."
    )
  *groups, field = name.split(".")
  node = config
  for group in groups:
    node = (
      node.get(group) if isinstance(node, ml_collections.ConfigDict) else None
    )
  if not isinstance(node, ml_collections.ConfigDict) or field not in node:
    known = _field_names(config)
    raise errors.UserError(
      f"{path} has no field config.{name}{errors.closest(name, known)}; "
      "get_config in that file defines the fields."
    )
  old = node[field]
  if isinstance(old, ml_collections.ConfigDict):
    raise errors.UserError(
      f"config.{name} is a group of fields; set one field, for example "
      f"--config.{name}.{next(iter(_field_names(old)), 'field')}=value."
    )
  try:
    node[field] = _parse(text, old)
  except _UNREADABLE as error:
    raise errors.UserError(
      f"{override[:80]}: {schema.shown(text)} is not of type "
      f"{type(old).__name__}; the field is {old!r} now."
    ) from error


def _parse(text: str, old: Any) -> Any:
  """Returns `text` converted to the type of `old`."""
  if isinstance(old, str):
    return text
  if isinstance(old, bool):
    if text.lower() not in ("true", "false"):
      raise ValueError(text)
    return text.lower() == "true"
  value = ast.literal_eval(text)
  if isinstance(old, (tuple, list)):
    return type(old)(value)
  if isinstance(value, bool) and isinstance(old, (int, float)):
    raise ValueError(text)  # A bool is an int in Python, but not to a user.
  if isinstance(old, float):
    return float(value)
  if isinstance(old, int):
    if not isinstance(value, int):
      raise ValueError(text)
    return value
  return value


def _field_names(
  config: ml_collections.ConfigDict, prefix: str = ""
) -> list[str]:
  """Returns the dotted names of all fields."""
  names = []
  for key in config:
    value = config[key]
    if isinstance(value, ml_collections.ConfigDict):
      names += _field_names(value, f"{prefix}{key}.")
    else:
      names.append(f"{prefix}{key}")
  return names


def to_dict(config: Any) -> Any:
  """Returns `config` as dicts, lists and scalars that JSON can represent."""
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  if isinstance(config, dict):
    return {str(key): to_dict(value) for key, value in config.items()}
  if isinstance(config, (list, tuple)):
    return [to_dict(value) for value in config]
  return config


def dotted(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested groups as one level, for example "optimizer.peak_lr"."""
  flat = {}
  for name, value in fields.items():
    if isinstance(value, Mapping) and value:
      flat |= dotted(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def fingerprint(value: Any) -> str:
  """Returns the SHA-256 of a config's canonical JSON, as hexadecimal digits.

  The order in which fields were set does not matter, nor does the difference
  between a list and a tuple.
  """
  text = json.dumps(
    to_dict(value), sort_keys=True, separators=(",", ":"), allow_nan=False
  )
  return hashlib.sha256(text.encode()).hexdigest()
