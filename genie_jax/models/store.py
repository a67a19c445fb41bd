"""Saves and loads models without training state: config.json and safetensors.

A world folder stores its models this way. `config.json` has the fields
{"format_version", "dtype", "parts": {name: {"world", "model"}}}; a part also
has a group "quantizer" if its quantizer is not the default. "trained_frames"
gives the length of the LAM's training clips, if it is known. Tensors are named
"<part>/<path>", where the path joins the keys of the parameter tree with "/". A
matrix stored as 8-bit integers has two tensors, "<part>/<path>.values" and
"<part>/<path>.scales".
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from genie_jax.core import config as config_lib
from genie_jax.core import errors, files
from genie_jax.models import build, clip_length, registry, world_sizes
from genie_jax.weights import (
  int8,
  lazy_array,
  param_tree,
  placement,
  tensor_files,
)

# 2: the fields `match`, `reach` and `buttons` of a LAM, and `last_frame_reach`
# of a dynamics model, which readers of version 1 do not know.
FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Part:
  """One model, ready for `module.apply({"params": params}, ...)`.

  Attributes:
    module: The model, a `flax.linen.Module`, for example a Tokenizer; its
      methods are those of its role (`models.protocols`).
    config: {"world": ..., "model": ...} from which the model was built, and
      "quantizer" if it is not the default.
    params: Nested dict of arrays; float32 unless loaded differently.
    trained_frames: Length of the clips that the model was trained on, None if
      that is not known; only for models with a `context`.
  """

  module: Any
  config: dict[str, Any]
  params: dict[str, Any]
  trained_frames: int | None = None


@dataclasses.dataclass(frozen=True)
class Saved:
  """The models of a folder.

  Attributes:
    parts: Name -> model.
    config: The whole config.json.
    fingerprint: SHA-256 of the configs and the stored weights; empty if it
      was not requested.
  """

  parts: dict[str, Part]
  config: dict[str, Any]
  fingerprint: str


def part(
  name: str,
  config: Mapping[str, Any],
  params: Any,
  *,
  trusted: bool = False,
  trained_frames: int | None = None,
) -> Part:
  """Builds a part from a config and its parameters.

  Args:
    name: The part's role, for example "tokenizer".
    config: A training config, or the config of a saved part.
    params: The parameters.
    trusted: Whether the config may name a model to be imported, see
      `models.registry`.
    trained_frames: Length of the training clips; kept only for models with a
      `context`.

  Raises:
    UserError: There is no such model, or its fields are invalid.
  """
  module = registry.build(name, config, trusted=trusted)
  if registry.model_type(name, config).context is None:
    trained_frames = None
  return Part(module, registry.recorded(name, config), params, trained_frames)


def most_frames(name: str, model: Part) -> int | None:
  """Returns the length of the longest clips that a model may run on.

  None if there is no limit or if the length of its training clips is not
  known. See `clip_length` for the arguments and the reason.
  """
  context = registry.model_type(name, model.config).context
  if context is None or context(model.module):
    return None
  return model.trained_frames


def check_length(name: str, model: Part, frames: int) -> None:
  """Refuses clips that are longer than those a model was trained on.

  Args:
    name: The model's role, for example "lam".
    model: The model; a warning is given if its `trained_frames` are not known.
    frames: Length of the clips.

  Raises:
    UserError: The clips are longer; see `clip_length`.
  """
  context = registry.model_type(name, model.config).context
  if context is not None and not context(model.module):
    clip_length.check(name, frames, model.trained_frames)


def save(
  folder: files.PathLike,
  parts: Mapping[str, Part],
  *,
  dtype: str = "float32",
  extra: Mapping[str, Any] | None = None,
  shard_bytes: int = tensor_files.SHARD_BYTES,
) -> str:
  """Writes models to a folder, with one piece of a parameter in memory.

  Args:
    folder: Created if missing.
    parts: Role -> model, for example "tokenizer", "lam" and "dynamics".
      Parameters may be lazy (see `lazy_array`); they are then read in pieces
      of `lazy_array.PIECE_BYTES`, or of one unit of the parameter if that is
      larger.
    dtype: "float32" or "bfloat16" for all tensors, or "int8" for the matrices
      of transformer layers and bfloat16 for the rest.
    extra: Additional JSON fields for config.json.
    shard_bytes: Largest size of the tensors in one file, in bytes.

  Returns:
    The fingerprint, the same as `load` returns.
  """
  folder = pathlib.Path(folder)
  config: dict[str, Any] = dict(
    format_version=FORMAT_VERSION,
    dtype=dtype,
    parts={name: part.config for name, part in parts.items()},
    **(extra or {}),
  )
  # Not in `parts`: it is not part of the fingerprint.
  if trained := {
    name: part.trained_frames
    for name, part in parts.items()
    if part.trained_frames is not None
  }:
    config["trained_frames"] = trained
  tensor_files.write(
    folder,
    _to_store(parts, dtype),
    shard_bytes=shard_bytes,
    metadata={"parts": json.dumps(config["parts"])},
  )
  files.write_json(folder / "config.json", config)
  return _fingerprint(config, tensor_files.read(folder))


def load(
  folder: files.PathLike,
  *,
  place: placement.Place | None = None,
  fingerprint: bool = True,
) -> Saved:
  """Reads the models that `save` wrote.

  Args:
    folder: The folder.
    place: Where to put each parameter, see `placement`; by default host
      memory, as float32.
    fingerprint: Whether to compute the fingerprint, which reads all weights a
      second time.

  Raises:
    UserError: A file is missing or damaged, the format is newer than this
      code, or the tensors do not fit the config.
  """
  folder = pathlib.Path(folder)
  config = read_config(folder)
  stored = tensor_files.read(folder)
  place = place or _to_host
  groups = _by_part(folder, config, stored)
  parts = {}
  for name, fields in config["parts"].items():
    module, axes = _check(folder, name, fields, groups.get(name, {}))
    parts[name] = Part(
      module,
      fields,
      param_tree.unflatten(
        {
          path: place(path, leaf, axes[path])
          for path, leaf in groups[name].items()
        }
      ),
      _trained_frames(folder, config, name),
    )
  digits = _fingerprint(config, stored) if fingerprint else ""
  return Saved(parts, config, digits)


def read_config(folder: files.PathLike) -> dict[str, Any]:
  """Returns the config.json of saved models.

  Raises:
    UserError: The file is missing, has another format version, or was not
      written by this program.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / "config.json")
  if not isinstance(config, dict) or not isinstance(config.get("parts"), dict):
    raise errors.UserError(
      f"{folder}/config.json does not describe saved models; give a folder "
      "that `genie export` wrote, or a workdir."
    )
  version = config.get("format_version")
  if version not in range(1, FORMAT_VERSION + 1):
    raise errors.UserError(
      f"{folder}/config.json has format_version {version!r}, this version "
      f"reads 1 to {FORMAT_VERSION}; export the model again, or install a "
      "newer genie_jax."
    )
  if not isinstance(config.get("dtype"), str) or (
    config["dtype"] not in placement.DTYPES
  ):
    raise errors.UserError(
      f"{folder}/config.json: dtype={config.get('dtype')!r} is unknown; a "
      f"saved model has one of {', '.join(placement.DTYPES)}; export the "
      "model again."
    )
  return config


def abstract_params(name: str, fields: Mapping[str, Any]) -> Any:
  """Returns the shapes of a part's parameters, without allocating them.

  Args:
    name: The part's role, for example "tokenizer".
    fields: {"world", "model"[, "quantizer"]}.

  Returns:
    Nested dict of boxed `jax.ShapeDtypeStruct`.
  """
  fields = config_lib.to_dict(fields)
  module = registry.build(name, fields)
  inputs = registry.model_type(name, fields).inputs(fields["world"])
  return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


def _trained_frames(
  folder: pathlib.Path, config: Mapping[str, Any], name: str
) -> int | None:
  stated = config.get("trained_frames", {})
  frames = stated.get(name) if isinstance(stated, dict) else stated
  if frames is not None and not (isinstance(frames, int) and frames > 0):
    raise errors.UserError(
      f"{folder}/config.json: trained_frames must give a role a number of "
      f"frames, not {frames!r:.40}; export the model again."
    )
  return frames


def fingerprint(parts: Mapping[str, Part]) -> str:
  """Returns the fingerprint that `save` would return for float32."""
  config = {"parts": {name: part.config for name, part in parts.items()}}
  return _fingerprint(config, _to_store(parts, "float32"))


def num_bytes(parts: Mapping[str, Part], dtype: str) -> int:
  """Returns the size in bytes of the tensors that `save` would write."""
  return sum(tensor.nbytes for tensor in _to_store(parts, dtype).values())


def _to_host(path, leaf, axes):
  del path, axes
  return placement.host(leaf)


def _to_store(
  parts: Mapping[str, Part], dtype: str
) -> dict[str, lazy_array.Lazy]:
  """Returns all tensors to write, as lazy arrays that are not read yet."""
  found = {}
  for name, model in parts.items():
    for path, leaf in param_tree.flatten(dict(model.params)).items():
      shape, full = tuple(leaf.shape), f"{name}/{path}"
      axes = int8.layer_kernels(path, shape) if dtype == "int8" else None
      if axes is None:
        found[full] = placement.later(leaf, placement.FLOATS[dtype])
        continue
      small = placement.integers(leaf, axes)
      found[f"{full}.values"] = small.values
      found[f"{full}.scales"] = small.scales
  return found


def _by_part(
  folder: pathlib.Path,
  config: Mapping[str, Any],
  stored: Mapping[str, tensor_files.Stored],
) -> dict[str, dict[str, Any]]:
  """Returns part -> path -> tensor, or `Int8` for a pair of tensors."""
  parts: dict[str, dict[str, Any]] = {name: {} for name in config["parts"]}
  for name, tensor in stored.items():
    owner, _, path = name.partition("/")
    base, dot, kind = path.rpartition(".")
    wanted = placement.FLOATS[config["dtype"]]
    if config["dtype"] == "int8" and dot and kind in ("values", "scales"):
      wanted = np.dtype(np.int8 if kind == "values" else np.float32)
      values = stored.get(f"{owner}/{base}.values")
      scales = stored.get(f"{owner}/{base}.scales")
      if values is not None and scales is not None:
        path, leaf = base, int8.Int8(values, scales)
      else:
        leaf = tensor  # `_check` rejects it as an unknown tensor.
    else:
      leaf = tensor
    if owner not in parts:
      raise errors.UserError(
        f"{folder}/{tensor_files.WHOLE} has an unknown tensor {name}: "
        f"config.json names only {', '.join(parts) or 'no parts'}; export it "
        "again."
      )
    if tensor.dtype != wanted:
      raise errors.UserError(
        f"{folder}/{tensor_files.WHOLE}: {name} is {tensor.dtype}, but dtype "
        f"{config['dtype']} of config.json needs {wanted}; export it again."
      )
    parts[owner][path] = leaf
  return parts


def _check(
  folder: pathlib.Path, name: str, fields: Any, found: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, tuple[str | None, ...]]]:
  """Checks a part; returns its module and its parameters' logical axes."""
  where = f"{folder}/config.json"
  found_type = registry.model_type(
    name, fields, where=f"{where}: parts.{name}.model.name"
  )
  build.check_types(
    where,
    name,
    fields,
    found_type.module,
    found_type.stacks,
    found_type.codes,
  )
  with build.building(where, name):
    module = registry.build(name, fields)
    world_sizes.check(f"{where}: parts.{name}", fields)
    boxed = param_tree.flatten(
      abstract_params(name, build.unrolled(fields, found_type.stacks))
    )
  wanted = {path: nn.unbox(leaf) for path, leaf in boxed.items()}
  for path in sorted(set(wanted) ^ set(found)):
    where = "lacks" if path in wanted else "has an unknown"
    raise errors.UserError(
      f"{folder}/model.safetensors {where} tensor {name}/{path}, which does "
      f"not fit its config.json ({type(module).__name__}); export it again."
    )
  for path, leaf in found.items():
    shape = wanted[path].shape
    pairs = [(leaf, shape)]
    if isinstance(leaf, int8.Int8):
      axes = int8.layer_kernels(path, shape)
      pairs = [
        (leaf.values, shape),
        (
          leaf.scales,
          axes and tuple(1 if i in axes else n for i, n in enumerate(shape)),
        ),
      ]
    for tensor, needed in pairs:
      if tensor.shape != needed:
        raise errors.UserError(
          f"{folder}/model.safetensors: {name}/{path} has shape "
          f"{tensor.shape}, its config.json needs {needed}; export it again."
        )
  return module, {path: _axes(leaf) for path, leaf in boxed.items()}


def _axes(leaf: Any) -> tuple[str | None, ...]:
  if isinstance(leaf, nn.Partitioned):
    return tuple(leaf.names)
  return (None,) * len(leaf.shape)


def _fingerprint(config: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
  """Computes `param_tree.fingerprint`, reading tensors piece by piece."""
  return config_lib.fingerprint(
    {"parts": config["parts"], "weights": tensor_files.fingerprint(stored)}
  )
