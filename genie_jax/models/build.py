"""Builds models from configs, and rejects invalid configs."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import flax.linen as nn

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.models import button_map, world_sizes
from genie_jax.models import dynamics as dynamics_lib
from genie_jax.models import lam as lam_lib
from genie_jax.models import tokenizer as tokenizer_lib
from genie_jax.nn import patches, quantizers, st_transformer

# A mapping or an `ml_collections.ConfigDict`, whose values have any type.
Config = Any
Module = TypeVar("Module", bound=nn.Module)

_SCALARS = {kind.__name__: kind for kind in (bool, float, int, str)}
_DTYPES = ("bfloat16", "float32")  # Of activations; weights are float32.

# The groups of a config that describe a model; saved parts record them.
_GROUPS = ("world", "model")
# Upper bounds that no model needs to exceed. They keep the products of sizes
# within 64 bits.
_LARGEST = 1 << 20
_LARGEST_SIDE = 1 << 13
_LARGEST_REACH = 16


def tokenizer(config: Config) -> tokenizer_lib.Tokenizer:
  """Builds the tokenizer of a config with `world` and `model`.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("encoder", "decoder"))
  _one_of(model, "start", ("random", "cosine"))
  _one_of(model, "output", ("sigmoid", "linear"))
  return make(
    tokenizer_lib.Tokenizer,
    dict(
      height=world["height"],
      width=world["width"],
      channels=world["channels"],
      patch=world["token_patch"],
      num_codes=world["num_codes"],
      quantizer=_quantizer(config, world["num_codes"]),
      **model,
    ),
  )


def lam(config: Config) -> lam_lib.Lam:
  """Builds the latent action model of a config with `world` and `model`.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("encoder", "decoder"))
  _one_of(model, "actions_enter", ("add", "prepend"))
  _one_of(model, "predict", ("frame", "change", "shift"))
  # Each shift is computed, so a model has few.
  reach = model.get("reach", (0, 0))
  if len(reach) != 2 or not all(
    type(side) is int and 0 <= side <= _LARGEST_REACH for side in reach
  ):
    raise errors.UserError(
      f"config.model.reach={reach!r:.40} must be two whole numbers from 0 to "
      f"{_LARGEST_REACH}."
    )
  factor = model.get("shrink", 1)
  if world["height"] % factor or world["width"] % factor:
    raise errors.UserError(
      f"config.model.shrink={factor} does not divide the frame of "
      f"{world['height']} x {world['width']}; choose a divisor of both."
    )
  if model.get("buttons") is not None:
    if not isinstance(model["buttons"], dict):
      raise errors.UserError(
        f"config.model.buttons={model['buttons']!r:.40} is not a group of "
        "fields; write the map again with `genie buttons`."
      )
    model = {
      **model,
      "buttons": button_map.from_config(
        model["buttons"], world["num_latent_actions"]
      ),
    }
  return make(
    lam_lib.Lam,
    dict(
      height=world["height"],
      width=world["width"],
      channels=world["channels"],
      num_latent_actions=world["num_latent_actions"],
      quantizer=_quantizer(config, world["num_latent_actions"]),
      **model,
    ),
  )


def dynamics(config: Config) -> dynamics_lib.Dynamics:
  """Builds the dynamics model of a config with `world` and `model`.

  `world.num_latent_actions` is the number of actions, latent or true.

  Raises:
    UserError: A field is missing, unknown or out of range.
  """
  world, model = _read(config, ("transformer",))
  _one_of(model, "actions_enter", ("add", "prepend"))
  reach = model.get("last_frame_reach", 0)
  if not isinstance(reach, int) or not 0 <= reach <= 8:
    raise errors.UserError(
      f"config.model.last_frame_reach={reach!r} must be an integer from 0 to 8."
    )
  if reach and not model.get("last_frame", False):
    raise errors.UserError(
      f"config.model.last_frame_reach={reach} needs config.model.last_frame="
      "True."
    )
  return make(
    dynamics_lib.Dynamics,
    dict(
      grid=token_grid(world),
      num_codes=world["num_codes"],
      num_latent_actions=world["num_latent_actions"],
      **model,
    ),
  )


def token_grid(world: Config) -> tuple[int, int]:
  """Returns (h, w), the token grid of a world."""
  return patches.grid(world["height"], world["width"], world["token_patch"])


def part_fields(config: Config) -> dict[str, Any]:
  """Returns the groups of a config that describe one model.

  These are `world`, `model` and, if present, `quantizer`. A training config
  also has other groups; the config of a saved part has only these.

  Raises:
    UserError: A group is missing.
  """
  config = config_lib.to_dict(config)
  for name in _GROUPS:
    if not isinstance(config.get(name), dict):
      raise errors.UserError(
        f"config.{name} is missing; it must be a group of fields."
      )
  kept = (*_GROUPS, *(["quantizer"] if "quantizer" in config else []))
  return {name: config[name] for name in kept}


def _read(
  config: Config, stacks: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
  config = part_fields(config)
  world, model = config["world"], config["model"]
  for name in world_sizes.FIELDS:
    if not isinstance(world.get(name), int) or world[name] < 1:
      raise errors.UserError(
        f"config.world.{name}={world.get(name)!r} must be a positive whole "
        "number."
      )
  for name in stacks:
    if name not in model:
      raise errors.UserError(
        f"config.model.{name} is missing; it must be a group with the fields "
        "of a space-time transformer."
      )
    _check_fields(
      f"config.model.{name}", st_transformer.STTransformer, model[name]
    )
    if "dtype" not in model[name]:
      raise errors.UserError(
        f"config.model.{name}.dtype is missing; give one of "
        f"{', '.join(_DTYPES)}."
      )
    _one_of(model[name], "dtype", _DTYPES)
    policies = st_transformer.REMAT_POLICIES
    _one_of(model[name], "remat", tuple(policies))
    if model[name]["head_dim"] % 2:
      raise errors.UserError(
        f"config.model.{name}.head_dim={model[name]['head_dim']} is odd; "
        "rotary positions rotate pairs of channels, so make it even."
      )
  return world, model


def _quantizer(config: Config, num_codes: int) -> dict[str, Any] | None:
  if "quantizer" in config["model"]:
    raise errors.UserError(
      "config.model.quantizer is not a field of the model; set the fields of "
      "the group config.quantizer instead."
    )
  return quantizers.complete(config.get("quantizer"), num_codes)


def _one_of(fields: Config, name: str, known: tuple[str, ...]) -> None:
  if name in fields and fields[name] not in known:
    raise errors.UserError(
      f"config.model: {name}={fields[name]!r} is unknown"
      f"{errors.closest(str(fields[name]), known)}; use one of "
      f"{', '.join(known)}."
    )


def make(module: type[Module], fields: Mapping[str, Any]) -> Module:
  """Makes a module from the values of its dataclass fields.

  Raises:
    UserError: A field is unknown, or missing.
  """
  _check_fields("config.model", module, fields)
  return module(**fields)


def _check_fields(where: str, module: type, fields: Config) -> None:
  """Raises UserError if a field of the module is unknown or missing."""
  known = {
    field.name: field
    for field in dataclasses.fields(module)
    if field.name not in ("parent", "name")
  }
  for name in sorted(set(fields) - set(known)):
    raise errors.UserError(
      f"{where}.{name} is not a field of {module.__name__}"
      f"{errors.closest(name, known)}; its fields are {', '.join(known)}."
    )
  for name, field in known.items():
    if name not in fields and field.default is dataclasses.MISSING:
      raise errors.UserError(
        f"{where}.{name} is missing; {module.__name__} needs it."
      )


def check_types(
  where: str,
  name: str,
  fields: Any,
  module: type[nn.Module],
  stacks: tuple[str, ...],
  codes: str | None,
) -> None:
  """Checks the types and sizes of the fields of a saved part.

  Unknown and missing fields are reported when the model is built.

  Args:
    where: The file, for the message.
    name: The part's role.
    fields: {"world", "model"[, "quantizer"]}, as read from JSON.
    module: The model's class.
    stacks: The fields of the model that are groups of fields of a space-time
      transformer.
    codes: The field of `world` that is the model's number of codes; None for
      a model without a quantizer.

  Raises:
    UserError: A field has the wrong type or is too large.
  """
  if not isinstance(fields, dict):
    raise errors.UserError(
      f"{where}: parts.{name} is {fields!r:.40}, not a group of fields; "
      "export it again."
    )
  for group in ("world", "model"):
    if group in fields and not isinstance(fields[group], dict):
      raise errors.UserError(
        f"{where}: parts.{name}.{group} is not a group of fields; export it "
        "again."
      )
  for key, value in fields.get("world", {}).items():
    largest = _LARGEST_SIDE if key in ("height", "width") else _LARGEST
    if isinstance(value, (int, float)) and not 0 < value <= largest:
      _refuse(where, f"{name}.world.{key}", value)
  if isinstance(fields.get("world"), dict) and "fps" not in fields["world"]:
    raise errors.UserError(
      f"{where}: parts.{name}.world.fps is missing; export it again."
    )
  if "quantizer" in fields:
    num_codes = fields.get("world", {}).get(codes)
    if type(num_codes) is not int:
      _refuse(where, f"{name}.quantizer", fields["quantizer"])
    quantizers.complete(
      fields["quantizer"], num_codes, f"{where}: parts.{name}.quantizer"
    )
  model = fields.get("model", {})
  _check_values(f"{where}: parts.{name}.model", module, model)
  for stack in stacks:
    if stack in model:
      if not isinstance(model[stack], dict):
        _refuse(where, f"{name}.model.{stack}", model[stack])
      _check_values(
        f"{where}: parts.{name}.model.{stack}",
        st_transformer.STTransformer,
        model[stack],
      )


def unrolled(
  fields: Mapping[str, Any], stacks: tuple[str, ...]
) -> dict[str, Any]:
  """Returns fields with `unroll=1`, so that tracing is fast at any depth."""
  model = {
    key: {**value, "unroll": 1} if key in stacks else value
    for key, value in fields["model"].items()
  }
  return {**fields, "model": model}


@contextlib.contextmanager
def building(where: str, name: str) -> Iterator[None]:
  """Raises a one-line UserError in place of a model's errors about sizes."""
  try:
    yield
  except errors.UserError:
    raise
  except (
    ArithmeticError,
    AssertionError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    raise errors.UserError(
      f"{where}: the {name} cannot be built from its fields "
      f"({' '.join(str(error).split())[:120]}); export it again."
    ) from error


def _check_values(where: str, module: type, fields: Mapping[str, Any]) -> None:
  for field in dataclasses.fields(module):
    if field.name not in fields or field.name in ("parent", "name"):
      continue
    value, kind = fields[field.name], field.type
    # In a module with postponed annotations, types are strings.
    kind = _SCALARS.get(str(kind), kind)
    if kind is int:
      least = 0 if field.default == 0 else 1
      good = type(value) is int and least <= value <= _LARGEST
    elif kind is float:
      good = type(value) in (int, float) and math.isfinite(value)
    elif kind in (str, bool):
      good = type(value) is kind
    else:
      good = True  # Stacks, which the caller checks.
    if field.name == "dtype":
      good = type(value) is str
    if not good:
      raise errors.UserError(
        f"{where}.{field.name}={value!r:.40} is out of range or of the wrong "
        "type; export it again."
      )


def _refuse(where: str, name: str, value: Any) -> None:
  raise errors.UserError(
    f"{where}: parts.{name}={value!r:.40} is out of range or of the wrong "
    "type; export it again."
  )
