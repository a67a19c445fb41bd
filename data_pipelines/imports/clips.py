"""What the importers of all formats have in common.

An importer lists the clips of a folder without reading all pixels, and reads
one clip when it is stored.

Shapes:
  n  frames of a clip     H W  rows and columns of a frame
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors

# What projects call their splits.
SPLITS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "test": "test",
}

Action = int | tuple[int, ...]  # A number, or which buttons are pressed.


@dataclasses.dataclass(frozen=True)
class Clip:
  """One clip of a folder, not yet read; can be sent to another process.

  Attributes:
    source: Name of what it was cut from; clips of one source stay in one split.
    name: Its name, for messages and for the records' metadata.
    length: n.
    frame_shape: (H, W, 3).
    split: "train", "validation" or "test"; None if the folder has no splits.
    actions: [n], each leads from a frame to the next; None without actions.
    place: What the format's `read` needs to find it.
  """

  source: str
  name: str
  length: int
  frame_shape: tuple[int, ...]
  split: str | None
  actions: tuple[Action, ...] | None
  place: Any


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a folder has.

  Attributes:
    clips: In a fixed order.
    skipped: (name, reason) of what cannot be read.
    fps: Frames per second at which the project plays, as far as it is known.
    num_actions: As the folder states it; None if it does not.
  """

  clips: Sequence[Clip]
  skipped: Sequence[tuple[str, str]]
  fps: float
  num_actions: int | None = None


@dataclasses.dataclass(frozen=True)
class Format:
  """A project's format.

  Attributes:
    title: Name of the project.
    list: (folder, frame size or None) -> Listing.
    read: (folder, clip) -> uint8 [n, H, W, 3]; raises UserError where the
      files are damaged.
  """

  title: str
  list: Callable[[pathlib.Path, tuple[int, int] | None], Listing]
  read: Callable[[pathlib.Path, Clip], np.ndarray]


def natural(path: pathlib.Path) -> list[Any]:
  """Returns a sort key that counts: "2.npy" comes before "10.npy"."""
  return [
    (1, int(part), part) if part.isdecimal() else (0, 0, part)
    for part in re.split(r"(\d+)", str(path))
  ]


def damaged(path: pathlib.Path, why: Any) -> errors.UserError:
  """Returns the error about a file that was readable when it was listed."""
  return errors.UserError(
    f"{path} is damaged ({' '.join(str(why).split())[:160]}); remove it, or "
    "get it again, and give another --out."
  )
