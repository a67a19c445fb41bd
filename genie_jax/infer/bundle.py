"""A world folder: all that is needed to play, and nothing of its training.

  config.json         configs of the models, sampling, what the buttons are
  model.safetensors   weights
  manifest.json       sha256 of each of the other files, fingerprint, metrics
  prompts/*.png       frames to start from
  README.md           what it is, for people; may be edited
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from genie_jax.core import config as config_lib
from genie_jax.core import errors, files, images
from genie_jax.infer import world as worlds
from genie_jax.models import saved
from genie_jax.sampling import maskgit

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A world and what lies beside it.

  Attributes:
    world: The playable world.
    manifest: The whole manifest.json.
    prompts: Pictures to start from, in order.
    name: Name of the world.
  """
  world: worlds.World
  manifest: dict[str, Any]
  prompts: tuple[pathlib.Path, ...]

  @property
  def name(self) -> str:
    return self.manifest["name"]


def write(
    folder: files.PathLike,
    parts: Mapping[str, saved.Part],
    *,
    name: str,
    actions: str,
    sampling: Mapping[str, Any],
    prompts: np.ndarray,
    dtype: str,
    metrics: Mapping[str, Any],
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
  """Writes a world folder; the manifest is its last file.

  Args:
    folder: New or empty.
    parts: "tokenizer", "dynamics" and perhaps "lam".
    name: Name of the world.
    actions: "latent" or "true".
    sampling: Fields of `maskgit.Sampling`.
    prompts: uint8 [n, H, W, C], n may be 0.
    dtype: "bfloat16" or "float32".
    metrics: JSON figures to state beside the weights.
    made_by: JSON account of the training.

  Returns:
    The manifest.
  """
  folder = pathlib.Path(folder)
  worlds.check_parts(parts)
  fingerprint = saved.save(folder, parts, dtype=dtype, extra={
      "name": name, "actions": actions, "sampling": dict(sampling)})
  for number, frame in enumerate(prompts):
    images.save_png(folder / "prompts" / f"{number:02d}.png", frame)
  manifest = {
      "schema_version": SCHEMA_VERSION,
      "kind": "world",
      "name": name,
      "fingerprint": fingerprint,
      "dtype": dtype,
      "metrics": dict(metrics),
      "made_by": dict(made_by),
      "files": {
          path.relative_to(folder).as_posix(): {
              "sha256": files.sha256(path), "bytes": path.stat().st_size}
          for path in sorted(folder.rglob("*")) if path.is_file()},
  }
  manifest["seal"] = config_lib.fingerprint(manifest)
  files.write_atomic(folder / "README.md", _card(parts, manifest, actions))
  files.write_json(folder / MANIFEST, manifest)
  return manifest


def load(folder: files.PathLike) -> Bundle:
  """Reads a world folder and checks every byte that is used.

  Raises:
    UserError: The folder is no world, is of another version, or a file of it
      is missing or changed.
  """
  folder = pathlib.Path(folder)
  manifest = read_manifest(folder)
  for name, stated in manifest["files"].items():
    path = folder / name
    if not path.is_file():
      raise errors.UserError(
          f"{path} is missing though {MANIFEST} lists it; copy the world "
          "again or export it again.")
    if (path.stat().st_size != stated["bytes"]
        or files.sha256(path) != stated["sha256"]):
      raise errors.UserError(
          f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; copy "
          "the world again or export it again.")
  found = saved.load(folder)
  if found.fingerprint != manifest["fingerprint"]:
    raise errors.UserError(
        f"{folder} holds models of fingerprint {found.fingerprint[:12]}, its "
        f"{MANIFEST} states {manifest['fingerprint'][:12]}; export it again.")
  world = worlds.World(
      found.parts, sampling=maskgit.make_sampling(found.config["sampling"]),
      actions=found.config["actions"], fingerprint=found.fingerprint)
  prompts = tuple(
      folder / name for name in sorted(manifest["files"])
      if name.startswith("prompts/"))
  return Bundle(world, manifest, prompts)


def read_manifest(folder: files.PathLike) -> dict[str, Any]:
  """Returns the manifest of a world folder.

  Raises:
    UserError: There is none, or it is of another version or was changed.
  """
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise errors.UserError(
        f"{folder} is not a world (no {MANIFEST}); give a folder that `genie "
        "export` wrote.")
  manifest = files.read_json(path)
  if not isinstance(manifest, dict) or manifest.get("kind") != "world":
    raise errors.UserError(
        f"{path} is not that of a world; give a folder that `genie export` "
        "wrote.")
  if manifest.get("schema_version") != SCHEMA_VERSION:
    raise errors.UserError(
        f"{path} has schema version {manifest.get('schema_version')!r}, this "
        f"program reads {SCHEMA_VERSION}; export the world again.")
  stated = manifest.pop("seal", None)
  if stated != config_lib.fingerprint(manifest):
    raise errors.UserError(
        f"{path} was changed after it was written; copy the world again or "
        "export it again.")
  return manifest


def _card(
    parts: Mapping[str, saved.Part], manifest: Mapping[str, Any], actions: str
) -> str:
  """Returns the model card."""
  world = parts["dynamics"].config["world"]
  count = lambda tree: sum(
      count(leaf) if isinstance(leaf, dict) else np.size(leaf)
      for leaf in tree.values())
  sizes = "\n".join(
      f"| {name} | {count(dict(part.params)):,} |"
      for name, part in parts.items())
  figures = "\n".join(
      f"| {name} | {value:.4g} |"
      for name, value in manifest["metrics"].items()
      if isinstance(value, (int, float)) and not isinstance(value, bool))
  measured = (
      f"| metric | value |\n|---|---|\n{figures}\n" if figures else
      "None were measured before the export; run `genie eval`.\n")
  return f"""\
# {manifest['name']}

A world in the manner of Genie (arXiv:2402.15391): one picture starts it, and
{world['num_latent_actions']} {actions} actions move it.

    genie sample --world . --actions 0,1,2,3 --out rollout.gif

- Frames: {world['height']} x {world['width']}, {world['fps']} a second.
- Window: {world['num_frames']} frames.
- Tokens: patches of {world['token_patch']} x {world['token_patch']} pixels, \
{world['num_codes']} codes.
- Weights: {manifest['dtype']}, fingerprint {manifest['fingerprint'][:16]}.

| model | parameters |
|---|---|
{sizes}

## Figures

{measured}
## Limits

It draws what its training clips held and nothing else; frames may flicker or
drift, the more so the longer a rollout runs. It is for research.
"""
