"""The data sources of the stages: windows of clips, and token records.

Each function returns the `open_source` of a `train.stage.Stage`. A folder's
manifest is checked against `config.world` when a split is opened.
"""

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import sources
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
    `split -> source`; raises UserError if `config.data.path` is empty, is not
    a folder of clips, or its frame shape differs from that of the world.
  """

  def open_source(split: str) -> sources.Source:
    data = config.data
    opened = sources.WindowSource(
      _folder(config), split, data.num_frames, data.stride, keys
    )
    opened.manifest.check({"frame_shape": _frame_shape(config)})
    return opened

  return open_source


def clips_manifest(config: ml_collections.ConfigDict) -> manifest_lib.Manifest:
  """Returns the manifest of `config.data.path`; errors as in `clips`."""
  return manifest_lib.Manifest.read(_folder(config))


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
    `split -> source`; raises UserError if `config.data.path` is empty, is not
    a folder of tokens, or its manifest does not fit the world.
  """

  def open_source(split: str) -> sources.Source:
    opened = sources.TokenSource(
      _folder(config),
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

  return open_source


def _folder(config: ml_collections.ConfigDict) -> str:
  if not config.data.path:
    raise errors.UserError(
      "config.data.path is empty; give the folder of the data with "
      "--config.data.path=DIR."
    )
  return config.data.path


def _frame_shape(config: ml_collections.ConfigDict) -> list[int]:
  world = config.world
  return [world.height, world.width, world.channels]
