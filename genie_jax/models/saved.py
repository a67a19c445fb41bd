"""Models on disk without training state: config.json and model.safetensors.

The weight core of a world folder. `config.json` holds {"format_version",
"parts": {name: {"world", "model"}}}; tensor names are "<part>/<path>", a path
joining the parameter tree's keys with "/".
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np

from genie_jax.core import arrays, errors, files
from genie_jax.core import config as config_lib
from genie_jax.models import build

FORMAT_VERSION = 1

_BUILDERS = {
    "tokenizer": build.tokenizer, "lam": build.lam,
    "dynamics": build.dynamics}
_DTYPES = {
    "float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Part:
  """One model, ready for `module.apply({"params": params}, ...)`.

  Attributes:
    module: A Tokenizer, Lam or Dynamics.
    config: {"world": ..., "model": ...} that built it.
    params: Nested dict of float32 arrays.
  """
  module: nn.Module
  config: dict[str, Any]
  params: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Saved:
  """A folder of models.

  Attributes:
    parts: Name -> model.
    config: The whole config.json.
    fingerprint: SHA-256 of the configs and the stored weights.
  """
  parts: dict[str, Part]
  config: dict[str, Any]
  fingerprint: str


def part(name: str, config: Mapping[str, Any], params: Any) -> Part:
  """Returns a part from a training config's `world` and `model`."""
  config = config_lib.to_dict(config)
  fields = {"world": config["world"], "model": config["model"]}
  return Part(_builder(name)(fields), fields, params)


def save(
    folder: files.PathLike,
    parts: Mapping[str, Part],
    *,
    dtype: str = "float32",
    extra: Mapping[str, Any] | None = None,
) -> str:
  """Writes models to a folder.

  Args:
    folder: Made when missing.
    parts: Name -> model; names are tokenizer, lam and dynamics.
    dtype: "float32" or "bfloat16", for all floating-point tensors.
    extra: More JSON fields for config.json.

  Returns:
    The fingerprint, as `load` computes it.
  """
  folder = pathlib.Path(folder)
  cast = lambda x: np.asarray(x).astype(_DTYPES[dtype])
  tree = {
      name: jax.tree.map(cast, dict(part.params))
      for name, part in parts.items()}
  config = dict(
      format_version=FORMAT_VERSION, dtype=dtype,
      parts={name: part.config for name, part in parts.items()},
      **(extra or {}))
  arrays.save(folder / "model.safetensors", tree, {
      "parts": json.dumps(config["parts"])})
  files.write_json(folder / "config.json", config)
  return _fingerprint(config, tree)


def load(folder: files.PathLike) -> Saved:
  """Reads what `save` wrote.

  Raises:
    UserError: A file is missing or damaged, the format is newer than this
      code, or the tensors do not fit the config.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / "config.json")
  if not isinstance(config, dict) or not isinstance(
      config.get("parts"), dict):
    raise errors.UserError(
        f"{folder}/config.json does not describe saved models; give a folder "
        "that `genie export` wrote, or a workdir.")
  version = config.get("format_version")
  if version != FORMAT_VERSION:
    raise errors.UserError(
        f"{folder}/config.json has format_version {version!r}, this version "
        f"reads {FORMAT_VERSION}; export the model again.")
  tree, _ = arrays.load(folder / "model.safetensors")
  parts = {}
  for name, fields in config["parts"].items():
    module = _builder(name)(fields)
    params = tree.get(name, {})
    _check(folder, name, module, fields, params)
    parts[name] = Part(
        module, fields,
        jax.tree.map(lambda x: x.astype(np.float32), params))
  return Saved(parts, config, _fingerprint(config, tree))


def abstract_params(name: str, fields: Mapping[str, Any]) -> Any:
  """Returns the shapes of a part's parameters, with no memory taken.

  Args:
    name: tokenizer, lam or dynamics.
    fields: {"world", "model"}.

  Returns:
    Nested dict of boxed `jax.ShapeDtypeStruct`.
  """
  module = _builder(name)(fields)
  world = config_lib.to_dict(fields)["world"]
  rng = jax.random.key(0)
  if name == "dynamics":
    grid = (1, 2, *build.token_grid(world))
    inputs = (jax.ShapeDtypeStruct(grid, np.int32),
              jax.ShapeDtypeStruct((1, 1), np.int32),
              jax.ShapeDtypeStruct(grid, np.bool_))
  else:
    inputs = (jax.ShapeDtypeStruct(
        (1, 2, world["height"], world["width"], world["channels"]),
        np.float32),)
  return jax.eval_shape(module.init, rng, *inputs)["params"]


def _builder(name: str):
  if name not in _BUILDERS:
    raise errors.UserError(
        f"{name!r} is no part of a world; parts are {', '.join(_BUILDERS)}.")
  return _BUILDERS[name]


def _check(folder, name, module, fields, params) -> None:
  wanted = arrays.flatten(nn.unbox(abstract_params(name, fields)))
  found = arrays.flatten(params)
  for path in sorted(set(wanted) ^ set(found)):
    where = "lacks" if path in wanted else "has an unknown"
    raise errors.UserError(
        f"{folder}/model.safetensors {where} tensor {name}/{path}, which does "
        f"not fit its config.json ({type(module).__name__}); export it again.")
  for path, leaf in found.items():
    if leaf.shape != wanted[path].shape:
      raise errors.UserError(
          f"{folder}/model.safetensors: {name}/{path} has shape {leaf.shape}, "
          f"its config.json needs {wanted[path].shape}; export it again.")


def _fingerprint(config: Mapping[str, Any], tree: Any) -> str:
  return config_lib.fingerprint(
      {"parts": config["parts"], "weights": arrays.fingerprint(tree)})
