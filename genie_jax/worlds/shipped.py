"""Finds the worlds that ship with this package by name.

They are package data: in a checkout, `shipped/NAME` is a link to the folder
with the world's results; an installed wheel contains a copy.
"""

import os
import pathlib

from genie_jax.core import errors, files
from genie_jax.worlds import world_manifest

DEFAULT = "coinrun"  # The world of `genie play` without --world.
_FOLDER = pathlib.Path(__file__).parent / "shipped"


def names() -> list[str]:
  """Returns the names of the worlds that ship with this package, sorted."""
  return sorted(
    path.parent.name for path in _FOLDER.glob(f"*/{world_manifest.MANIFEST}")
  )


def default() -> pathlib.Path:
  """Returns the folder of `DEFAULT`, whatever the working directory holds."""
  return _FOLDER / DEFAULT


def find(name_or_folder: files.PathLike) -> pathlib.Path:
  """Returns a world's folder.

  Args:
    name_or_folder: A folder, or if it does not exist the name of a world that
      ships with this package. A path with separators is returned unchecked.

  Raises:
    UserError: There is no such folder, and no world of that name.
  """
  text = os.fspath(name_or_folder)
  folder = pathlib.Path(text)
  # Names have no separators, so this is a path, perhaps mistyped.
  if folder.exists() or os.sep in text:
    return folder
  known = names()
  if text in known:
    return _FOLDER / text
  raise errors.UserError(
    f"There is no folder {text!r} and no world of that name"
    f"{errors.closest(text, known)}; give a folder that `genie export` "
    f"wrote, its address, or one of: {', '.join(known)}."
  )
