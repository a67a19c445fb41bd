"""The registry of stages: the names that `config.stage` can have.

A user-defined stage is registered, or named as "module:attribute", which is
imported if the name comes from a config file (see `core.registry`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.core import registry as registry_lib
from genie_jax.models import build
from genie_jax.stages import classifier, dynamics, joint, lam, tokenizer
from genie_jax.train import stage

Config = Mapping[str, Any] | ml_collections.ConfigDict
Parts = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class StageType:
  """How a stage is made, and what its checkpoints contain.

  Attributes:
    make: `config -> Stage`, given a training config.
    parts: `config -> {role: {"world", "model"}}`, the models that the stage
      trains, given the config of a run as plain dicts. If there are several
      models, the stage's parameters are keyed by role; if there is one, they
      are the parameters of that model. `build.part_fields` returns these
      groups of a config, and `quantizer` if present.
    made_by: `config -> roles`, the models that made the stage's data and that
      a world needs in addition to those the stage trains. Token folders
      contain them.
  """

  make: Callable[[ml_collections.ConfigDict], stage.Stage]
  parts: Callable[[dict[str, Any]], Parts]
  made_by: Callable[[dict[str, Any]], tuple[str, ...]] = lambda config: ()


def _check(name: str, value: Any) -> None:
  """Raises UserError unless `value` is a StageType that can be used."""
  if not isinstance(value, StageType):
    raise errors.UserError(
      f"The stage {name!r} is of type {type(value).__name__}; it needs to be "
      "a genie_jax.stages.registry.StageType(make, parts)."
    )
  registry_lib.check_methods(
    "stage",
    name,
    value,
    {
      "make": "(config) -> genie_jax.train.stage.Stage",
      "parts": '(config) -> {role: {"world", "model"}}',
      "made_by": "(config) -> roles",
    },
  )


_STAGES: registry_lib.Registry[StageType] = registry_lib.Registry(
  "stage", "genie_jax.stages.registry.register", _check
)


def register(name: str, value: StageType) -> StageType:
  """Adds a stage that configs can name, and returns it.

  Raises:
    UserError: The name is taken, or `value` is not a usable StageType.
  """
  return _STAGES.register(name, value)


def names() -> list[str]:
  """Returns the names of the registered stages."""
  return _STAGES.names()


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage of a config that the user wrote.

  Args:
    config: From a config file or the user's code: it may name a stage or a
      model as "module:attribute", which is then imported.

  Raises:
    UserError: There is no such stage, or its config is invalid.
  """
  made = _get(config, trusted=True).make(config)
  if not isinstance(made, stage.Stage):
    raise errors.UserError(
      f"config.stage={config.stage!r}: make(config) returned "
      f"{type(made).__name__}; it must return a genie_jax.train.stage.Stage."
    )
  return made


def parts(config: Config, *, trusted: bool = False) -> Parts:
  """Returns the models that a stage trains.

  Args:
    config: A training config, or the config.json of a workdir.
    trusted: Whether a stage "module:attribute" may be imported: True only for
      a config that the user wrote.

  Returns:
    Role -> {"world", "model"}.

  Raises:
    UserError: There is no such stage, or its config lacks a group.
  """
  found = _get(config, trusted).parts(config_lib.to_dict(config))
  if not (
    isinstance(found, Mapping)
    and found
    and all(
      isinstance(fields, Mapping) and {"world", "model"} <= set(fields)
      for fields in found.values()
    )
  ):
    raise errors.UserError(
      f"config.stage={config['stage']!r}: parts(config) returned "
      f"{found!r:.60}; it must return role -> {{'world', 'model'}}."
    )
  return dict(found)


def made_by(config: Config) -> tuple[str, ...]:
  """Returns the roles of the models that made a stage's data.

  Args:
    config: The config.json of a workdir.

  Raises:
    UserError: The stage is not registered.
  """
  return tuple(_get(config, trusted=False).made_by(config_lib.to_dict(config)))


def _get(config: Config, trusted: bool) -> StageType:
  return _STAGES.get(config["stage"], where="config.stage", trusted=trusted)


def _alone(role: str) -> Callable[[dict[str, Any]], Parts]:
  """Returns the `parts` of a stage that trains one model."""
  return lambda config: {role: build.part_fields(config)}


register("tokenizer", StageType(tokenizer.make, _alone("tokenizer")))
register("lam", StageType(lam.make, _alone("lam")))
register(
  "dynamics",
  StageType(dynamics.make, _alone("dynamics"), dynamics.made_by),
)
register("joint", StageType(joint.make, joint.parts, joint.made_by))
register("classifier", StageType(classifier.make, _alone("classifier")))
