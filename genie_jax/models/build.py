"""Models from their configs: the one place that reads `world` and `model`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.models import dynamics as dynamics_lib
from genie_jax.models import lam as lam_lib
from genie_jax.models import tokenizer as tokenizer_lib
from genie_jax.nn import patches, st_transformer

Config = Mapping[str, Any]

_WORLD = (
    "num_frames", "height", "width", "channels", "token_patch", "num_codes",
    "num_latent_actions")
_DTYPES = ("bfloat16", "float32")  # Of activations; weights are float32.


def tokenizer(config: Config) -> tokenizer_lib.Tokenizer:
  """Builds the tokenizer of a config with `world` and `model`.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("encoder", "decoder"))
  _one_of(model, "start", ("random", "cosine"))
  _one_of(model, "output", ("sigmoid", "linear"))
  return _make(tokenizer_lib.Tokenizer, dict(
      height=world["height"], width=world["width"],
      channels=world["channels"], patch=world["token_patch"],
      num_codes=world["num_codes"], **model))


def lam(config: Config) -> lam_lib.Lam:
  """Builds the latent action model of a config with `world` and `model`.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("encoder", "decoder"))
  _one_of(model, "actions_enter", ("add", "prepend"))
  _one_of(model, "predict", ("frame", "change"))
  factor = model.get("shrink", 1)
  if world["height"] % factor or world["width"] % factor:
    raise errors.UserError(
        f"config.model.shrink={factor} does not divide the frame of "
        f"{world['height']} x {world['width']}; choose a divisor of both.")
  return _make(lam_lib.Lam, dict(
      height=world["height"], width=world["width"],
      channels=world["channels"],
      num_latent_actions=world["num_latent_actions"], **model))


def dynamics(config: Config) -> dynamics_lib.Dynamics:
  """Builds the dynamics model of a config with `world` and `model`.

  `world.num_latent_actions` counts the buttons, latent or true.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("transformer",))
  _one_of(model, "actions_enter", ("add", "prepend"))
  return _make(dynamics_lib.Dynamics, dict(
      grid=token_grid(world), num_codes=world["num_codes"],
      num_latent_actions=world["num_latent_actions"], **model))


def token_grid(world: Config) -> tuple[int, int]:
  """Returns (h, w) of a world."""
  return patches.grid(world["height"], world["width"], world["token_patch"])


def _read(
    config: Config, stacks: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
  config = config_lib.to_dict(config)
  for name in ("world", "model"):
    if not isinstance(config.get(name), dict):
      raise errors.UserError(f"config.{name} is missing; it is a group.")
  world, model = config["world"], config["model"]
  for name in _WORLD:
    if not isinstance(world.get(name), int) or world[name] < 1:
      raise errors.UserError(
          f"config.world.{name}={world.get(name)!r} must be a positive whole "
          "number.")
  for name in stacks:
    if name not in model:
      raise errors.UserError(
          f"config.model has no {name!r}; it holds the fields of a "
          "space-time transformer.")
    _check_fields(
        f"config.model.{name}", st_transformer.STTransformer, model[name])
    if "dtype" not in model[name]:
      raise errors.UserError(
          f"config.model.{name}.dtype is missing; give one of "
          f"{', '.join(_DTYPES)}.")
    _one_of(model[name], "dtype", _DTYPES)
    policies = st_transformer.REMAT_POLICIES
    _one_of(model[name], "remat", tuple(policies))
    if model[name]["head_dim"] % 2:
      raise errors.UserError(
          f"config.model.{name}.head_dim={model[name]['head_dim']} is odd; "
          "rotary positions turn pairs of channels, so make it even.")
  return world, model


def _one_of(fields: Config, name: str, known: tuple[str, ...]) -> None:
  if name in fields and fields[name] not in known:
    raise errors.UserError(
        f"config.model: {name}={fields[name]!r} is unknown"
        f"{errors.closest(str(fields[name]), known)}; use one of "
        f"{', '.join(known)}.")


def _make(module: type, fields: dict[str, Any]) -> Any:
  _check_fields("config.model", module, fields)
  return module(**fields)


def _check_fields(where: str, module: type, fields: Config) -> None:
  """Raises unless `fields` are a module's: none unknown, none missing."""
  known = {
      field.name: field for field in dataclasses.fields(module)
      if field.name not in ("parent", "name")}
  for name in sorted(set(fields) - set(known)):
    raise errors.UserError(
        f"{where}.{name} is no field of {module.__name__}"
        f"{errors.closest(name, known)}; its fields are {', '.join(known)}.")
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise errors.UserError(
          f"{where}.{name} is missing; {module.__name__} needs it.")
