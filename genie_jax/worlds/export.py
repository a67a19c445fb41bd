"""Exports checkpoints to a world folder."""

import errno
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from genie_jax.core import buckets, errors, files, images
from genie_jax.data import counterfactuals, mixtures, sources
from genie_jax.data import manifest as manifest_lib
from genie_jax.models import store
from genie_jax.sampling import samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.stages import registry
from genie_jax.weights import tensor_files
from genie_jax.worlds import trained_models, world_folder, world_manifest

_PROMPTS = 8
# Held-out frames first: a prompt seen in training makes the world look better
# than it is.
_SPLITS = ("test", "validation", "train")
# Errors of a disk or a folder that cannot be written to.
_REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EACCES,
  errno.EPERM,
  errno.EROFS,
)
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def export(
  workdirs: Sequence[files.PathLike],
  out: files.PathLike,
  *,
  prompts: files.PathLike | None = None,
  num_prompts: int = _PROMPTS,
  dtype: str = "bfloat16",
  name: str = "",
  metrics: Mapping[str, Any] | None = None,
  buttons: Sequence[Mapping[str, Any]] = (),
  sampling: Mapping[str, Any] | None = None,
  slide: Mapping[str, Any] | None = None,
  shard_bytes: int = tensor_files.SHARD_BYTES,
  write_programs: world_folder.WritePrograms | None = None,
) -> dict[str, Any]:
  """Writes a world folder from workdirs of `genie train`.

  Parameters are read and written one at a time, and may have been trained on
  any mesh. `out` is written completely or not at all.

  The tokenizer and the LAM may be left out: the token folder that the dynamics
  model was trained on contains copies of them.

  Args:
    workdirs: Workdirs of `genie train`, or saved models; one of them must
      contain the dynamics model.
    out: The folder to write; an older world there is replaced.
    prompts: Clips folder, or folder of images, to take prompts from; None for
      the clips that one of the workdirs was trained on.
    num_prompts: Maximum number of prompts.
    dtype: "bfloat16", "float32", or "int8" for the matrices of layers.
    name: Name of the world; by default that of the folder.
    metrics: Figures for the manifest, for example those of `genie eval`.
    buttons: What the buttons do, from `buttons.from_metrics`.
    sampling: Settings of the frame sampler that take the place of those of the
      training config.
    slide: The same for `slide.Slide`.
    shard_bytes: Maximum bytes of tensors per file.
    write_programs: Also writes the models as programs, for example
      `ports.stablehlo.exporter.write`.

  Returns:
    The manifest.

  Raises:
    UserError: Models are missing or do not fit together, the sampler has no
      such setting, `out` is not empty and not a world, or there is not enough
      disk space.
  """
  out = buckets.disk(out, "--out")
  name = name or out.resolve().name
  world_manifest.check_name(name)
  _check_out(out)
  parts, origins = _gather(workdirs)
  if "dynamics" not in parts:
    raise errors.UserError(
      f"No dynamics model is in {', '.join(map(str, workdirs))}; add the "
      "workdir of a dynamics or joint stage."
    )
  config = origins["dynamics"].config
  if "actions" not in config:
    raise errors.UserError(
      "The dynamics model is a saved model whose config.json has no field "
      '"actions"; give the workdir that trained it, or a world.'
    )
  actions = config["actions"]
  if actions == "true" and "lam" in parts:
    raise errors.UserError(
      "The dynamics model was trained on true actions, which need no LAM; "
      "leave the LAM's workdir out."
    )
  records = {
    name: found.records[name]
    for name, found in origins.items()
    if name in found.records
  }
  if origins["dynamics"].trained:
    records |= _complete(parts, config)
  world = parts["dynamics"].config["world"]
  frames = _prompts(prompts, origins, world, num_prompts)
  temporary = files.temporary_sibling(out)
  try:
    _check_room(out, parts, dtype)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    manifest = world_folder.write(
      temporary,
      {key: parts[key] for key in sorted(parts)},
      name=name,
      actions=actions,
      sampling=_sampling(config, sampling or {}),
      slide=_slide(config, slide or {}, world["num_frames"]),
      prompts=frames,
      dtype=dtype,
      metrics=metrics or {},
      buttons=buttons,
      made_by={
        name: records[name] for name in sorted(parts) if name in records
      },
      shard_bytes=shard_bytes,
      write_programs=write_programs,
    )
    _replace(temporary, out)
  except OSError as error:
    if error.errno not in _REFUSALS:
      raise
    raise errors.UserError(
      f"--out {out} cannot be written ({error.strerror}); free some space, "
      "or give a folder elsewhere."
    ) from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return manifest


def _check_room(
  out: pathlib.Path, parts: Mapping[str, store.Part], dtype: str
) -> None:
  """Raises UserError if the disk is too small, before hours of writing."""
  parent = next(path for path in out.absolute().parents if path.is_dir())
  needed, free = store.num_bytes(parts, dtype), shutil.disk_usage(parent).free
  if needed > free:
    raise errors.UserError(
      f"--out {out} needs {needed / 1e6:.0f} MB and {parent} has "
      f"{free / 1e6:.0f} MB left; free some space, or give a folder "
      "elsewhere."
    )


def _check_out(out: pathlib.Path) -> None:
  if out.is_dir() and any(out.iterdir()):
    try:
      world_folder.read_manifest(out)
    except errors.UserError as error:
      raise errors.UserError(
        f"--out {out} is not empty and is not a world; give a new folder, or "
        "remove this one."
      ) from error
  elif out.exists() and not out.is_dir():
    raise errors.UserError(f"--out {out} is a file; give a folder.")


def _replace(new: pathlib.Path, out: pathlib.Path) -> None:
  """Renames a folder to `out`, and deletes an older folder there."""
  if out.exists():
    old = files.temporary_sibling(out)
    os.replace(out, old)
    try:
      os.replace(new, out)
    except BaseException:
      os.replace(old, out)
      raise
    shutil.rmtree(old)
  else:
    os.replace(new, out)


def _gather(
  workdirs: Sequence[files.PathLike],
) -> tuple[dict[str, store.Part], dict[str, trained_models.Found]]:
  """Returns the models of all folders, and the source of each model."""
  parts, origins, folders = {}, {}, {}
  for folder in workdirs:
    found = trained_models.read(folder, lazy=True)
    for name, part in found.parts.items():
      if name in parts:
        raise errors.UserError(
          f"Both {folders[name]} and {folder} have a {name}; give one of them."
        )
      parts[name], origins[name], folders[name] = part, found, folder
  return parts, origins


def _complete(
  parts: dict[str, store.Part], config: Mapping[str, Any]
) -> dict[str, Any]:
  """Adds the models that made the training data, or checks those given.

  Returns:
    Role -> training record of the models that it added.
  """
  records = {}
  folder = mixtures.main_folder(config["data"])
  if not manifest_lib.exists(folder):
    logging.warning(
      "%s, the training data of the dynamics model, does not exist, so the "
      "tokenizer cannot be compared with the one that made it.",
      folder,
    )
    return records  # `validation.check_parts` reports missing models.
  manifest = manifest_lib.Manifest.read(folder)
  for name in registry.made_by(config):
    fingerprint = manifest.model_fingerprint(name) or ""
    if name not in parts:
      found = trained_models.read(manifest.model_folder(name), lazy=True)
      parts[name] = found.part(name)
      records |= found.record(name)
    elif (
      given := trained_models.fingerprint(name, parts[name])
    ) != fingerprint:
      raise errors.UserError(
        f"The dynamics model was trained on {folder}, made by the {name} "
        f"{fingerprint[:12]}, but the {name} given is {given[:12]}; leave "
        f"it out (the folder has its own) or train on new tokens."
      )
  return records


def _sampling(
  config: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  fields = dict(config["sampling"])
  # Invalid fields raise now, not when it is played.
  samplers.replace(samplers.make(fields), changes)
  fields |= changes
  if fields.get("name") == samplers.DEFAULT:
    del fields["name"]  # In a world, no name means the default sampler.
  return fields


def _slide(
  config: Mapping[str, Any], changes: Mapping[str, Any], window: int
) -> dict[str, Any]:
  fields = {**config.get("slide", {}), **changes}
  slide_lib.make_slide(fields, window)  # Invalid fields raise now.
  return fields


def _prompts(
  given: files.PathLike | None,
  origins: Mapping[str, trained_models.Found],
  world: Mapping[str, Any],
  count: int,
) -> np.ndarray:
  """Returns uint8 [n, H, W, C], n at most `count`."""
  shape = (world["height"], world["width"], world["channels"])
  if given is not None:
    if manifest_lib.exists(given):
      return _first_frames(given, shape, count)
    folder = pathlib.Path(given)
    if not folder.is_dir():
      raise errors.UserError(
        f"--prompts {folder} does not exist; give a clips folder or a "
        "folder of images."
      )
    pictures = sorted(
      path for path in folder.iterdir() if path.suffix.lower() in _PICTURES
    )[:count]
    if not pictures:
      raise errors.UserError(
        f"--prompts {folder} has neither clips nor images; give a folder "
        "with one or the other."
      )
    return np.stack([images.load_prompt(path, *shape[:2]) for path in pictures])
  for found in origins.values():
    if found.trained:
      path = mixtures.main_folder(found.config["data"])
      if manifest_lib.exists(path) and (
        manifest_lib.Manifest.read(path).kind == "clips"
      ):
        return _first_frames(path, shape, count)
  return np.zeros((0, *shape), np.uint8)


def _first_frames(
  folder: files.PathLike, shape: tuple[int, int, int], count: int
) -> np.ndarray:
  """Returns frames of clips to start from, uint8 [n, H, W, C].

  If the clips have standing starts (`genie data procgen --standing`), they are
  three quarters of the frames, each of another level as far as possible: a
  player who stands with room on both sides shows at once what a button does.
  The others are the first frames of evenly spaced windows.
  """
  manifest = manifest_lib.Manifest.read(folder)
  manifest.check({"kind": "clips", "frame_shape": list(shape)})
  split = next(
    (
      name
      for name in _SPLITS
      if name in manifest.splits and manifest.splits[name]["shards"]
    ),
    None,
  )
  if split is None:
    raise errors.UserError(
      f"{folder} has no clips; collect some, or give --prompts."
    )
  standing = _standing_frames(folder, split, shape, count - count // 4)
  source = sources.WindowSource(folder, split, 1, keys=("frames",))
  places = np.linspace(
    0, len(source), count - len(standing), endpoint=False
  ).astype(int)
  windows = source.gather(np.unique(places))["frames"][:, 0]
  return np.concatenate([standing, windows])


def _standing_frames(
  folder: files.PathLike, split: str, shape: tuple[int, int, int], count: int
) -> np.ndarray:
  """Returns up to `count` standing starts of a split, uint8 [n, H, W, C]."""
  at = counterfactuals.address(folder, counterfactuals.STANDING)
  none = np.zeros((0, *shape), np.uint8)
  if not count or not manifest_lib.exists(at):
    return none
  manifest = counterfactuals.read_manifest(at)
  manifest.check({"frame_shape": list(shape)})
  if split not in manifest.splits:
    return none
  found = counterfactuals.read(manifest, split, count, seed=0)
  return np.stack([moment.history[-1] for moment in found]) if found else none
