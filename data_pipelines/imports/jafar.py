"""The folders of Jafar (FLAIROx/jafar, generate_dataset.py).

  metadata.npy       a pickled list of {"path": ..., "length": ...}
  episode_N.npy      uint8 [n, H, W, 3], one episode

There are no actions and no splits, and each episode is a source. Its generator
draws the frame after an episode's end, which the game has already begun anew;
so the last frame of an episode that ended before 1,000 frames is left out.
`metadata.npy` is only read to learn which episodes belong to the data set; its
paths count from where the generator was started, so only their names are used.
"""

import pathlib
import tokenize

import numpy as np
from numpy.lib import format as npy

from data_pipelines.imports import clips as clips_lib
from data_pipelines.imports import pickles
from genie_jax.core import errors

METADATA = "metadata.npy"
_FPS = 15  # Of CoinRun.
_LONGEST = 1000
# Raised by numpy besides ValueError.
_DAMAGED_HEADER = (EOFError, OverflowError, SyntaxError, tokenize.TokenError)


def list_clips(
  folder: pathlib.Path, size: tuple[int, int] | None
) -> clips_lib.Listing:
  """Lists the episodes of a folder; the frame size is in their files."""
  del size
  clips, skipped = [], []
  for path in _paths(folder):
    try:
      array = _opened(path)
    except (OSError, ValueError) as error:
      why = " ".join(str(error).split())[:160]
      skipped.append((path.name, f"no array can be read: {why}"))
      continue
    if (
      array.dtype != np.uint8
      or array.ndim != 4
      or array.shape[3] != 3
      or not min(array.shape[1:3])
    ):
      skipped.append(
        (path.name, f"{array.dtype} {list(array.shape)} is not RGB frames")
      )
      continue
    length = len(array) - (len(array) < _LONGEST)
    if length < 1:
      skipped.append((path.name, "it has no frame before its end"))
      continue
    clips.append(
      clips_lib.Clip(
        source=path.stem,
        name=path.stem,
        length=length,
        frame_shape=array.shape[1:],
        split=None,
        actions=None,
        place=path.name,
      )
    )
  return clips_lib.Listing(clips, skipped, _FPS)


def read(folder: pathlib.Path, clip: clips_lib.Clip) -> np.ndarray:
  """Returns the frames of an episode."""
  path = folder / clip.place
  try:
    return np.array(_opened(path)[: clip.length])
  except (OSError, ValueError) as error:
    raise clips_lib.damaged(path, error) from error


def _opened(path: pathlib.Path) -> np.ndarray:
  """Returns an array whose values are read when they are used.

  Raises:
    OSError: The file cannot be read.
    ValueError: It is not an array of one file, or its header is damaged.
  """
  try:
    # Not `np.load`, which also opens archives.
    return npy.open_memmap(path, mode="r")
  except _DAMAGED_HEADER as error:
    raise ValueError(f"its header is damaged ({error})") from error


def _paths(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of the episodes."""
  metadata = folder / METADATA
  if metadata.is_file():
    return [folder / name for name in _named(metadata)]
  found = [path for path in folder.glob("*.npy") if path.name != METADATA]
  return sorted(found, key=clips_lib.natural)


def _named(path: pathlib.Path) -> list[str]:
  """Returns the names in metadata.npy, whose pickle is not run."""
  try:
    with open(path, "rb") as file:
      version = npy.read_magic(file)
      reader = (
        npy.read_array_header_1_0
        if version == (1, 0)
        else npy.read_array_header_2_0
      )
      reader(file)
      rows = pickles.read(file.read())
    return [pathlib.PurePath(row["path"]).name for row in rows]
  except (OSError, ValueError, TypeError, KeyError, *_DAMAGED_HEADER) as error:
    raise errors.UserError(
      f"{path} is not Jafar's list of episodes "
      f"({' '.join(str(error).split())[:160]}); remove it to import all "
      "episodes of the folder."
    ) from error


FORMAT = clips_lib.Format("Jafar", list_clips, read)
