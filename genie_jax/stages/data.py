"""The data sources of the stages: windows of clips, and token records.

Each function returns the `open_source` of a `train.stage.Stage`. A folder's
manifest is checked against `config.world` when a split is opened. Several
folders are read as one by `config.data.mixture`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from genie_jax.data import manifest as manifest_lib
from genie_jax.data import mixtures, sources
from genie_jax.models import build

OpenSource = Callable[[str], sources.Source]


def clips(
  config: ml_collections.ConfigDict, keys: Sequence[str] = ("frames",)
) -> OpenSource:
  """Returns a function that opens a split of a clips folder as windows.

  Args:
    config: A training config.
    keys: The arrays to read, see `sources.WindowSource`.

  Returns:
    `split -> source`; raises UserError if `config.data` names no folder, one
    that does not have clips, or one whose frame shape differs from that of the
    world, or if its mixture is not one (see `mixtures`).
  """

  def open_one(folder: str, split: str) -> sources.Source:
    data = config.data
    opened = sources.WindowSource(
      folder, split, data.num_frames, data.stride, keys
    )
    opened.manifest.check({"frame_shape": _frame_shape(config)})
    return opened

  return _opener(config, open_one)


def clips_manifest(config: ml_collections.ConfigDict) -> manifest_lib.Manifest:
  """Returns the manifest of the only or first folder; errors as in `clips`."""
  return manifest_lib.Manifest.read(mixtures.entries(config.data)[0][0])


def tokens(
  config: ml_collections.ConfigDict,
  keys: Sequence[str],
  *,
  merge_aliases: bool = False,
  **needed: Any,
) -> OpenSource:
  """Returns a function that opens a split of a token folder.

  Args:
    config: A training config.
    keys: The arrays to read, see `sources.TokenSource`.
    merge_aliases: Whether true actions with the same effect are merged.
    **needed: Additional fields of the manifest, and their required values.

  Returns:
    `split -> source`; raises UserError if `config.data` names no folder, one
    that does not have tokens, or one whose manifest does not fit the world, or
    if its mixture is not one (see `mixtures`).
  """

  def open_one(folder: str, split: str) -> sources.Source:
    opened = sources.TokenSource(
      folder,
      split,
      config.data.num_frames,
      keys,
      merge_aliases=merge_aliases,
    )
    opened.manifest.check(
      {
        "frame_shape": _frame_shape(config),
        "token_grid": list(build.token_grid(config.world)),
        "num_codes": config.world.num_codes,
        **needed,
      }
    )
    return opened

  return _opener(config, open_one)


def _opener(
  config: ml_collections.ConfigDict,
  open_one: Callable[[str, str], sources.Source],
) -> OpenSource:
  """Returns `split -> source` of the folder, or of all folders of a mixture.

  Args:
    config: A training config.
    open_one: (folder, split) -> source.
  """
  return lambda split: mixtures.open_all(
    config.data, lambda folder: open_one(folder, split)
  )


def _frame_shape(config: ml_collections.ConfigDict) -> list[int]:
  world = config.world
  return [world.height, world.width, world.channels]
