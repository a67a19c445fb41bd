"""Writes and loads a world folder: everything needed to play a world.

  config.json         configs of the models, sampling, kind of actions
  model.safetensors   weights; if large, several files with an index
  manifest.json       SHA-256 of each of the other files, fingerprint, metrics
  prompts/*.png       frames to start from
  stablehlo/*         the models as programs, optional
  README.md           a description for people; may be edited

It contains no optimizer state. docs/world_format.md describes the format.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from genie_jax.core import errors, files, images
from genie_jax.models import store
from genie_jax.sampling import samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.weights import param_tree, placement, tensor_files
from genie_jax.worlds import validation, world_manifest
from genie_jax.worlds import world as world_lib

MANIFEST = world_manifest.MANIFEST
_PROMPT_BYTES = 1 << 30  # Of the frames of all prompts, which play holds.
# Numbers in a report of `genie eval` that are not figures.
_NO_FIGURES = ("schema_version", "seed")
read_manifest = world_manifest.read_manifest

# `write_programs(folder, parts, sampling, slide)`.
WritePrograms = Callable[
  [
    pathlib.Path,
    Mapping[str, store.Part],
    samplers.FrameSampler,
    slide_lib.Slide,
  ],
  None,
]


@dataclasses.dataclass(frozen=True)
class Bundle:
  """The content of a world folder.

  Attributes:
    world: The playable world.
    manifest: The whole manifest.json.
    prompts: Paths of images to start from, in order.
    name: Name of the world.
  """

  world: world_lib.World
  manifest: dict[str, Any]
  prompts: tuple[pathlib.Path, ...]

  @property
  def name(self) -> str:
    return self.manifest["name"]


def write(
  folder: files.PathLike,
  parts: Mapping[str, store.Part],
  *,
  name: str,
  actions: str,
  sampling: Mapping[str, Any],
  prompts: np.ndarray,
  dtype: str,
  metrics: Mapping[str, Any],
  buttons: Sequence[Mapping[str, Any]] = (),
  made_by: Mapping[str, Any],
  shard_bytes: int = tensor_files.SHARD_BYTES,
  slide: Mapping[str, Any] | None = None,
  write_programs: WritePrograms | None = None,
) -> dict[str, Any]:
  """Writes a world folder; the manifest is written last.

  Args:
    folder: A folder that is empty or does not exist.
    parts: "tokenizer", "dynamics" and optionally "lam"; parameters may be lazy.
    name: Name of the world.
    actions: "latent" or "true".
    sampling: Fields of the frame sampler, see `samplers.make`.
    prompts: uint8 [n, H, W, C], n may be 0.
    dtype: "bfloat16", "float32" or "int8".
    metrics: Figures for the manifest, as JSON.
    buttons: What the buttons do, from `buttons.from_metrics`.
    made_by: Record of the training, as JSON.
    shard_bytes: Maximum bytes of tensors per file.
    slide: Fields of `slide.Slide`; None for the default.
    write_programs: Also writes the models as programs, for example
      `ports.stablehlo.exporter.write`.

  Returns:
    The manifest.

  Raises:
    UserError: The models do not form a world.
  """
  folder = pathlib.Path(folder)
  validation.check_parts(parts)
  _check_prompts(len(prompts), prompts.shape[1:])
  fingerprint = store.save(
    folder,
    parts,
    dtype=dtype,
    shard_bytes=shard_bytes,
    extra={
      "name": name,
      "actions": actions,
      "sampling": dict(sampling),
      **({"slide": dict(slide)} if slide else {}),
    },
  )
  for number, frame in enumerate(prompts):
    images.save_png(folder / "prompts" / f"{number:02d}.png", frame)
  if write_programs is not None:
    write_programs(
      folder / "stablehlo",
      parts,
      samplers.make(sampling),
      slide_lib.Slide(**(slide or {})),
    )
  manifest = {
    "schema_version": world_manifest.SCHEMA_VERSION,
    "kind": "world",
    "name": name,
    "fingerprint": fingerprint,
    "dtype": dtype,
    "metrics": dict(metrics),
    **({"buttons": [dict(row) for row in buttons]} if buttons else {}),
    "made_by": dict(made_by),
    "files": {
      path.relative_to(folder).as_posix(): {
        "sha256": files.sha256(path),
        "bytes": path.stat().st_size,
      }
      for path in sorted(folder.rglob("*"))
      if path.is_file()
    },
  }
  manifest["seal"] = world_manifest.seal(manifest)
  files.write_atomic(folder / "README.md", _card(parts, manifest, actions))
  files.write_json(folder / MANIFEST, manifest)
  return manifest


def load(
  folder: files.PathLike,
  *,
  dtype: str | None = None,
  mesh: Mesh | None = None,
) -> Bundle:
  """Loads a world folder and checks every byte that is used.

  Weights are memory-mapped, and each is copied directly to its device.

  Args:
    folder: A world.
    dtype: Dtype of matrices in memory, see `placement.make`.
    mesh: Devices to split the weights over; None for the default device.

  Raises:
    UserError: The folder is not a world, has another version, or one of its
      files is missing or changed; or it is too large for this machine.
  """
  folder = pathlib.Path(folder)
  place = placement.make(dtype, mesh)
  manifest = read_manifest(folder)
  world_manifest.check_files(folder, manifest)
  found = store.load(folder, place=place, fingerprint=False)
  world_manifest.check_fingerprint(folder, manifest)
  prompts = world_manifest.prompts(folder, manifest)
  world = world_lib.World(
    found.parts,
    fingerprint=manifest["fingerprint"],
    manifest=manifest,
    name=manifest["name"],
    prompts=prompts,
    dtype=None if dtype == "int8" else dtype,
    mesh=mesh,
    **_playing(folder, found),
  )
  validation.check_memory(world.parts, 1 if mesh is None else mesh.size)
  _check_prompts(len(prompts), world.frame_shape)
  return Bundle(world, manifest, prompts)


def _check_prompts(count: int, shape: Sequence[int]) -> None:
  """Raises UserError if the frames of all prompts are too large together."""
  if count * math.prod(shape) > _PROMPT_BYTES:
    raise errors.UserError(
      f"This world has {count} prompts of {' x '.join(map(str, shape))}, more "
      f"than {_PROMPT_BYTES} bytes; export it with a smaller --num-prompts."
    )


def _playing(folder: pathlib.Path, found: store.Saved) -> dict[str, Any]:
  """Checks the fields of config.json for playing; returns them for `World`."""
  config, path = found.config, folder / world_manifest.CONFIG
  slide = config.get("slide", {})
  if (
    config.get("actions") not in ("latent", "true")
    or not isinstance(config.get("sampling"), dict)
    or not isinstance(slide, dict)
  ):
    raise errors.UserError(
      f'{path} must have "actions" ("latent" or "true"), and objects as '
      '"sampling" and "slide" (optional); export the world again.'
    )
  for name, part in found.parts.items():
    fps = part.config["world"].get("fps")
    if type(fps) not in (int, float) or not 0 < fps < math.inf:
      raise errors.UserError(
        f"{path}: parts.{name}.world.fps={fps!r:.40} is not a number above "
        "0; export the world again."
      )
  window = (
    found.parts["dynamics"].config["world"]["num_frames"]
    if ("dynamics" in found.parts)
    else 0
  )
  try:
    return {
      "actions": config["actions"],
      "sampling": samplers.make(config["sampling"]),
      "slide": slide_lib.make_slide(slide, window) if slide else None,
    }
  except TypeError as error:
    raise errors.UserError(
      f"{path}: sampling or slide has a value of the wrong type; export the "
      "world again."
    ) from error


def _card(
  parts: Mapping[str, store.Part], manifest: Mapping[str, Any], actions: str
) -> str:
  """Returns the model card."""
  world = parts["dynamics"].config["world"]
  count = lambda tree: sum(
    math.prod(leaf.shape) for leaf in param_tree.flatten(tree).values()
  )
  sizes = "\n".join(
    f"| {name} | {count(dict(part.params)):,} |" for name, part in parts.items()
  )
  figures = "\n".join(
    f"| {name.replace('_', ' ')} | {value:.4g} |"
    for name, value in manifest["metrics"].items()
    if isinstance(value, (int, float))
    and not isinstance(value, bool)
    and name not in _NO_FIGURES
  )
  measured = (
    f"| metric | value |\n|---|---|\n{figures}\n"
    if figures
    else "None were measured before the export; run `genie eval`.\n"
  )
  return f"""\
# {manifest["name"]}

A world model as in Genie (arXiv:2402.15391): play starts from an image, and
each of {world["num_latent_actions"]} {actions} actions leads to another frame.

    genie play --world .
    genie sample --world . --actions 0,1,2,3 --out rollout.gif

- Frames: {world["height"]} x {world["width"]}, {world["fps"]} per second.
- Window: {world["num_frames"]} frames.
- Tokens: patches of {world["token_patch"]} x {world["token_patch"]} pixels, \
{world["num_codes"]} codes.
- Weights: {manifest["dtype"]}, fingerprint {manifest["fingerprint"][:16]}.

| model | parameters |
|---|---|
{sizes}
{_training(manifest["made_by"])}
## Figures

{measured}
## Limits

The world draws only what its training clips showed. Frames may flicker or
drift, more so in longer rollouts. It is intended for research.
"""


def _training(made_by: Mapping[str, Any]) -> str:
  """Returns the model card's table of training; "" without records."""
  rows = []
  for name, account in sorted(made_by.items()):
    chain = []
    while account:
      chain.insert(0, account)
      account = account.get("started_from")
    for run in chain:
      data = run.get("data")
      seen = (
        "unknown"
        if data is None
        else (
          f"{data['frames']:,} frames of {data['sources']:,} sources of "
          f"{data['name']}"
        )
      )
      rows.append(
        f"| {name} | {run['steps']:,} | {run['batch_size']} x "
        f"{run['num_frames']} | {seen} |"
      )
  return (
    "\n".join(
      [
        "",
        "## Training",
        "",
        "If a model has several runs, each started from the one above it.",
        "",
        "| model | steps | clips x frames per step | data |",
        "|---|---|---|---|",
        *rows,
        "",
      ]
    )
    if rows
    else ""
  )
