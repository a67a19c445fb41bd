"""Reads trained models from workdirs and from folders of saved models."""

import dataclasses
from typing import Any

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors, files
from genie_jax.models import store
from genie_jax.stages import registry
from genie_jax.weights import lazy_array, placement, tensor_files


@dataclasses.dataclass(frozen=True)
class Found:
  """The models of one folder.

  Attributes:
    parts: Name -> model.
    config: The training config of a workdir; config.json of a saved folder.
    trained: True for a workdir.
  """

  parts: dict[str, store.Part]
  config: dict[str, Any]
  trained: bool


def read(folder: files.PathLike, *, lazy: bool = False) -> Found:
  """Reads all models of a workdir or of a folder that `store.save` wrote.

  Args:
    folder: A workdir, a saved model, or a world.
    lazy: Whether parameters are `lazy_array.Lazy`, which are read from disk
      when they are used.

  Raises:
    UserError: The folder is none of these, or it is damaged.
  """
  at = buckets.run_folder(buckets.reached(folder))
  if tensor_files.exist(at):
    found = store.load(
      folder, place=_later if lazy else None, fingerprint=False
    )
    return Found(found.parts, found.config, False)
  if not at.is_dir() or not reader.valid_steps(at):
    raise errors.UserError(
      f"{folder} is neither a workdir with a finished checkpoint nor the "
      f"folder of a saved model (no {tensor_files.WHOLE}); give a folder that "
      "`genie train`, `genie tokenize` or `genie export` wrote (in a bucket, "
      "only a folder that `genie train` wrote; copy others to a disk)."
    )
  if lazy:
    params, config = reader.lazy_params(at)
  else:
    params, _, config = reader.load_params(at)
  models = registry.parts(config)
  if len(models) == 1:
    params = dict.fromkeys(models, params)
  if missing := sorted(set(models) - set(params)):
    raise errors.UserError(
      f"{folder} was trained by the stage {config['stage']!r}, whose "
      f"parameters have no {missing[0]}; the `parts` of its StageType must be "
      "keys of the parameters that its `init` returns."
    )
  parts = {
    role: store.part(
      role, fields, params[role], trained_frames=config["data"]["num_frames"]
    )
    for role, fields in models.items()
  }
  return Found(parts, config, True)


def part(
  folder: files.PathLike, name: str, *, lazy: bool = False
) -> tuple[store.Part, str]:
  """Reads one model.

  Args:
    folder: A workdir, a saved model, or a world.
    name: Its role, for example "tokenizer".
    lazy: See `read`.

  Returns:
    The model and its fingerprint, which does not depend on the other models
    in the folder.

  Raises:
    UserError: The folder does not contain this model.
  """
  found = read(folder, lazy=lazy)
  if name not in found.parts:
    raise errors.UserError(
      f"{folder} contains {', '.join(found.parts)} but no {name}; give a "
      f"folder with a trained {name}."
    )
  return found.parts[name], fingerprint(name, found.parts[name])


def fingerprint(name: str, model: store.Part) -> str:
  """Returns the fingerprint of a model saved alone, in full precision."""
  return store.fingerprint({name: model})


def _later(
  path: str, leaf: Any, axes: tuple[str | None, ...]
) -> lazy_array.Lazy:
  del path, axes
  return placement.later(leaf)
