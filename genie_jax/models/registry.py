"""The registry of models.

A part of a world has a role: "tokenizer", "lam", "dynamics", or one that a
user-defined stage trains. The field `name` of a config's group `model` names
the model for the role: a registered name, or "module:attribute" for a
user-defined `ModelType`. If the field is missing, the model is the one
registered under the name of the role.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.core import registry as registry_lib
from genie_jax.models import build as build_lib
from genie_jax.models import classifier, dynamics, lam, tokenizer
from genie_jax.nn import quantizers

Config = Mapping[str, Any] | ml_collections.ConfigDict
Inputs = tuple[jax.ShapeDtypeStruct, ...]


@dataclasses.dataclass(frozen=True)
class ModelType:
  """How models of one kind are built, checked and traced.

  Attributes:
    module: The class of the models. Fields that are read from a file are
      checked against the types of its dataclass fields.
    build: `config -> module`, given the groups of a config that
      `build.part_fields` returns, as plain dicts, without `model.name`.
      `build.make` checks the fields against those of the class and makes the
      module.
    inputs: `world -> shapes`, the shapes of the inputs with which
      `module.init` is traced to find the shapes of the parameters.
    stacks: The fields of `module` that are groups of fields of an
      `st_transformer.STTransformer`.
    codes: The field of `world` that is the number of codes of the model's
      quantizer, which `config.quantizer` describes; None for a model without
      a quantizer.
    context: `module -> frames`, the number of frames that an output of
      `encode` can depend on, 0 for all frames before it. None for models whose
      codes may depend on where a clip begins. See `store.check_length`.
  """

  module: type[nn.Module]
  build: Callable[[dict[str, Any]], nn.Module]
  inputs: Callable[[Mapping[str, Any]], Inputs]
  stacks: tuple[str, ...] = ()
  codes: str | None = None
  context: Callable[[Any], int] | None = None


def _check(name: str, value: Any) -> None:
  """Raises UserError unless `value` is a ModelType that can be used."""
  if not isinstance(value, ModelType):
    raise errors.UserError(
      f"The model {name!r} is of type {type(value).__name__}; it needs to be "
      "a genie_jax.models.registry.ModelType(module, build, inputs)."
    )
  if not isinstance(value.module, type) or not issubclass(
    value.module, nn.Module
  ):
    raise errors.UserError(
      f"The model {name!r} has module={value.module!r:.60}; it needs a "
      "subclass of flax.linen.Module."
    )
  registry_lib.check_methods(
    "model",
    name,
    value,
    {
      "build": "(config) -> flax.linen.Module",
      "inputs": "(world) -> tuple of jax.ShapeDtypeStruct",
    },
  )


_MODELS: registry_lib.Registry[ModelType] = registry_lib.Registry(
  "model", "genie_jax.models.registry.register", _check
)


def register(name: str, model: ModelType) -> ModelType:
  """Adds a model that configs can name, and returns it.

  Raises:
    UserError: The name is taken, or `model` is not a usable ModelType.
  """
  return _MODELS.register(name, model)


def names() -> list[str]:
  """Returns the names of the registered models."""
  return _MODELS.names()


def model_type(
  role: str,
  config: Any,
  *,
  trusted: bool = False,
  where: str = "config.model.name",
) -> ModelType:
  """Returns the model type for a role.

  Args:
    role: For example "tokenizer"; also the name of the model if the config
      has none.
    config: A config with a group `model`.
    trusted: Whether a name "module:attribute" may be imported: True only for
      a config file or values from the user's own code, see `core.registry`.
    where: Where the name is given, for the message.

  Raises:
    UserError: There is no model with this name.
  """
  model = config.get("model") if isinstance(config, Mapping) else None
  name = model.get("name") if isinstance(model, Mapping) else None
  if name is None:
    return _MODELS.get(role, where=f"{where} (default: the role)")
  return _MODELS.get(name, where=where, trusted=trusted)


def build(role: str, config: Config, *, trusted: bool = False) -> Any:
  """Builds the model of a config, a `flax.linen.Module`.

  Args:
    role: For example "tokenizer".
    config: A config with the groups `world` and `model`.
    trusted: See `model_type`.

  Raises:
    UserError: There is no such model, or a field is missing, unknown or out
      of range.
  """
  config = config_lib.to_dict(config)
  found = model_type(role, config, trusted=trusted)
  fields = build_lib.part_fields(config)
  fields["model"] = {
    name: value for name, value in fields["model"].items() if name != "name"
  }
  module = found.build(fields)
  if not isinstance(module, found.module):
    raise errors.UserError(
      f"The ModelType of the {role} has module={found.module.__name__}, but "
      f"its build returned a {type(module).__name__}; make them the same."
    )
  return module


def recorded(role: str, config: Config) -> dict[str, Any]:
  """Returns the groups of a model's config that are saved with the model.

  These are `world` and `model`, and for a quantizer other than the default
  also `quantizer`, with all its fields.

  Args:
    role: For example "tokenizer".
    config: A config from which `build` made the model.
  """
  fields = build_lib.part_fields(config)
  group, codes = fields.pop("quantizer", None), model_type(role, config).codes
  if codes is not None and (
    quantizer := quantizers.complete(group, fields["world"][codes])
  ):
    fields["quantizer"] = config_lib.to_dict(quantizer)
  return fields


def _frames(world: Mapping[str, Any]) -> Inputs:
  """Returns the shape of a clip of two frames."""
  shape = (1, 2, world["height"], world["width"], world["channels"])
  return (jax.ShapeDtypeStruct(shape, np.float32),)


def _runs(world: Mapping[str, Any]) -> Inputs:
  """Returns the shape of a clip of whole runs, whatever their length is."""
  frames = math.lcm(*classifier.RUNS)
  shape = (1, frames, world["height"], world["width"], world["channels"])
  return (jax.ShapeDtypeStruct(shape, np.float32),)


def _tokens(world: Mapping[str, Any]) -> Inputs:
  """Returns the shapes of tokens, action and mask of two frames."""
  grid = (1, 2, *build_lib.token_grid(world))
  return (
    jax.ShapeDtypeStruct(grid, np.int32),
    jax.ShapeDtypeStruct((1, 1), np.int32),
    jax.ShapeDtypeStruct(grid, np.bool_),
  )


_AUTOENCODER = ("encoder", "decoder")
register(
  "tokenizer",
  ModelType(
    tokenizer.Tokenizer,
    build_lib.tokenizer,
    _frames,
    _AUTOENCODER,
    codes="num_codes",
  ),
)
register(
  "lam",
  ModelType(
    lam.Lam,
    build_lib.lam,
    _frames,
    _AUTOENCODER,
    codes="num_latent_actions",
    context=lambda model: model.context,
  ),
)
register(
  "dynamics",
  ModelType(dynamics.Dynamics, build_lib.dynamics, _tokens, ("transformer",)),
)
register(
  "classifier",
  ModelType(classifier.Classifier, classifier.build, _runs),
)
