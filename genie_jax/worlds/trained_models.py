"""Reads trained models from workdirs and from folders of saved models."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import mixtures
from genie_jax.models import store
from genie_jax.stages import registry
from genie_jax.weights import lazy_array, placement, tensor_files


@dataclasses.dataclass(frozen=True)
class Found:
  """The models of one folder.

  Attributes:
    folder: The folder, as it was given.
    parts: Name -> model.
    config: The training config of a workdir; config.json of a saved folder.
    trained: True for a workdir.
    records: Name -> record of the training, for the models that have one.
  """

  folder: files.PathLike
  parts: dict[str, store.Part]
  config: dict[str, Any]
  trained: bool
  records: dict[str, Any]

  def part(self, name: str) -> store.Part:
    """Returns a model.

    Args:
      name: Its role, for example "tokenizer".

    Raises:
      UserError: The folder does not contain this model.
    """
    if name not in self.parts:
      raise errors.UserError(
        f"{self.folder} contains {', '.join(self.parts)} but no {name}; give a "
        f"folder with a trained {name}."
      )
    return self.parts[name]

  def record(self, name: str) -> dict[str, Any]:
    """Returns {name: record}, or {} for a model without a record."""
    return {name: self.records[name]} if name in self.records else {}


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
    return Found(
      folder, found.parts, found.config, False, _stored(at, found.config)
    )
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
  return Found(
    folder, parts, config, True, dict.fromkeys(parts, record(config))
  )


def record(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the record of a run, and of the one that it was started from.

  It has no paths of this machine.

  Args:
    config: The training config of a workdir.
  """
  found = {
    **{key: config[key] for key in ("stage", "seed", "steps", "optimizer")},
    **{key: config[key] for key in ("mask", "press_frames") if key in config},
    **{key: config["data"][key] for key in ("batch_size", "num_frames")},
  }
  data, before = config["data"], config["init_from"]
  folders = mixtures.entries(data) if mixtures.main_folder(data) else ()
  if folders and all(manifest_lib.exists(folder) for folder, _ in folders):
    found["data"] = _data(folders, data["split"])
  if before and (path := buckets.reached(before) / "config.json").is_file():
    earlier = files.read_json(path)
    started = (
      record(earlier)
      if "stage" in earlier  # Otherwise a saved model or a world.
      else _stored(path.parent, earlier).get(config["stage"])
    )
    if started is not None:
      found["started_from"] = started
  return found


def _data(folders: Sequence[tuple[str, float]], split: str) -> dict[str, Any]:
  """Returns the record of the data that a run was trained on.

  That of a mixture has names and sums, and the records of its sets.

  Args:
    folders: (folder, weight) of each set.
    split: The split.
  """
  sets = [
    _set(manifest_lib.Manifest.read(folder), split) for folder, _ in folders
  ]
  if len(sets) == 1:
    return sets[0]
  return {
    "name": " and ".join(found["name"] for found in sets),
    "kind": sets[0]["kind"],
    **{key: sum(found[key] for found in sets) for key in ("frames", "sources")},
    "mixture": [
      found | {"weight": weight}
      for found, (_, weight) in zip(sets, folders, strict=True)
    ],
  }


def _set(manifest: manifest_lib.Manifest, split: str) -> dict[str, Any]:
  """Returns the record of one set of data."""
  found = manifest.splits[split]
  return {
    "name": manifest.name,
    "kind": manifest.kind,
    "fingerprint": manifest.fingerprint,
    "frames": found["frames"],
    "sources": len(
      {episode[0] for shard in found["shards"] for episode in shard["episodes"]}
    ),
  }


def _stored(folder: Any, config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the records that a saved model or a world has."""
  manifest = folder / "manifest.json"
  if "made_by" not in config and manifest.is_file():
    return dict(files.read_json(manifest).get("made_by", {}))
  return dict(config.get("made_by", {}))


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
  found = read(folder, lazy=lazy).part(name)
  return found, fingerprint(name, found)


def fingerprint(name: str, model: store.Part) -> str:
  """Returns the fingerprint of a model saved alone, in full precision."""
  return store.fingerprint({name: model})


def _later(
  path: str, leaf: Any, axes: tuple[str | None, ...]
) -> lazy_array.Lazy:
  del path, axes
  return placement.later(leaf)
