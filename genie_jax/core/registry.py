"""Registries of named parts, to which a user's package can add its own.

A registry maps names in configs to values: stages, models, quantizers, frame
samplers. A user's package adds a part in one of two ways:

    registry.register("mine", value)       # then config.GROUP.name = "mine"
    config.GROUP.name = "my_package.parts:value"  # imported when first used

Data files, such as a world's config.json, may contain names of the second form
too, but reading a data file must not run arbitrary code. A name from a data
file is therefore looked up only among the registered parts and in the packages
that `load_plugins` has imported, which the user has chosen.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any, Generic, TypeVar

from genie_jax.core import errors

# Environment variable with modules to import, separated by commas.
PLUGINS = "GENIE_PLUGINS"
ENTRY_POINTS = "genie_jax.plugins"

Value = TypeVar("Value")

# Modules and packages that `load_plugins` has imported.
_plugins: set[str] = set()


class Registry(Generic[Value]):
  """The parts of one kind, by name.

  Attributes:
    kind: What the parts are, for messages, for example "frame sampler".
    where: What users call to add one, for messages.
  """

  def __init__(
    self,
    kind: str,
    where: str,
    check: Callable[[str, Any], None] = lambda name, value: None,
  ):
    """Creates an empty registry.

    Args:
      kind: See the attributes.
      where: See the attributes.
      check: Function of (name, value) that raises UserError unless the value
        follows the protocol of the kind.
    """
    self.kind, self.where = kind, where
    self._check = check
    self._values: dict[str, Value] = {}

  def register(self, name: str, value: Value) -> Value:
    """Adds a part and returns it.

    Args:
      name: The name of the part in configs.
      value: The part.

    Raises:
      UserError: The name belongs to another part, or the part does not follow
        the protocol of its kind.
    """
    if name in self._values and self._values[name] is not value:
      raise errors.UserError(
        f"A {self.kind} named {name!r} is registered already; choose another "
        "name."
      )
    self._check(name, value)
    self._values[name] = value
    return value

  def get(self, name: Any, *, where: str, trusted: bool = False) -> Value:
    """Returns the part with a name.

    Args:
      name: A registered name, or "module:attribute".
      where: The field that contains the name, for the message, for example
        "config.quantizer.name".
      trusted: Whether "module:attribute" may be imported. Only for names that
        come from the user's own code, command line or config files.

    Raises:
      UserError: The part does not exist.
    """
    if not isinstance(name, str) or not name:
      raise errors.UserError(f"{where}={name!r} is not the name of a part.")
    if name in self._values:
      return self._values[name]
    load_plugins()  # Not earlier, as built-in names need no other package.
    if name in self._values:
      return self._values[name]
    if ":" in name and (trusted or _is_plugin(name.partition(":")[0])):
      return self.register(name, self._import(name, where))
    known = ", ".join(self._values)
    if ":" in name:
      raise errors.UserError(
        f"{where}={name!r} is a {self.kind} of another package, which is not "
        f"loaded; set {PLUGINS}={name.partition(':')[0]} if you trust it "
        f"(known: {known})."
      )
    raise errors.UserError(
      f"{where}={name!r} is unknown{errors.closest(name, self._values)}; use "
      f"one of {known}, 'module:attribute', or register yours with "
      f"{self.where}."
    )

  def names(self) -> list[str]:
    """Returns the registered names, in the order in which they were added."""
    return list(self._values)

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __contains__(self, name: object) -> bool:
    return name in self._values

  def _import(self, name: str, where: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
      return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
      raise errors.UserError(
        f"{where}={name!r}: {module} cannot be imported ({error}); install "
        "it, or add its folder to PYTHONPATH."
      ) from error
    except AttributeError as error:
      raise errors.UserError(
        f"{where}={name!r}: {module} has no {attribute!r}; name a "
        f"{self.kind} that it defines."
      ) from error


def check_methods(
  kind: str, name: str, value: Any, methods: dict[str, str]
) -> None:
  """Raises UserError unless a part has the methods of its protocol.

  Args:
    kind: What the part is, for the message.
    name: The part's name.
    value: The part, a class or an object.
    methods: Method -> its signature, for the message.
  """
  for method, signature in methods.items():
    if not callable(getattr(value, method, None)):
      raise errors.UserError(
        f"The {kind} {name!r} ({getattr(value, '__name__', value)!s:.60}) has "
        f"no method {method}; it needs {method}{signature}."
      )


def load_plugins() -> None:
  """Imports the packages that add parts.

  These are the installed packages with an entry point in the group
  "genie_jax.plugins", and the modules that the environment variable
  GENIE_PLUGINS names, separated by commas.

  Raises:
    UserError: A module of GENIE_PLUGINS cannot be imported.
  """
  for point in metadata.entry_points(group=ENTRY_POINTS):
    point.load()
    _plugins.add(point.module)
  names = (name.strip() for name in os.environ.get(PLUGINS, "").split(","))
  for name in filter(None, names):
    try:
      importlib.import_module(name)
    except ImportError as error:
      raise errors.UserError(
        f"{PLUGINS} names {name}, which cannot be imported "
        f"({error}); install it, or add its folder to PYTHONPATH."
      ) from error
    _plugins.add(name)


def _is_plugin(module: str) -> bool:
  """Returns whether a module was imported with a plugin, as part of it."""
  return module in sys.modules and any(
    module == name or module.startswith(f"{name}.") for name in _plugins
  )
