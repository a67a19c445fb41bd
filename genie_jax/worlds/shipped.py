"""Worlds that ship with this package, found by name.

They are package data: in a checkout `shipped/NAME` is a link to where the
world's figures are kept, and an installed wheel holds a copy.
"""

import os
import pathlib

from genie_jax.core import errors, files
from genie_jax.worlds import world_manifest

_FOLDER = pathlib.Path(__file__).parent / "shipped"


def names() -> list[str]:
  """Returns the names of the worlds that ship, sorted."""
  return sorted(
    path.parent.name for path in _FOLDER.glob(f"*/{world_manifest.MANIFEST}")
  )


def find(name_or_folder: files.PathLike) -> pathlib.Path:
  """Returns a world's folder.

  Args:
    name_or_folder: A folder, or where there is no such folder the name of a
      world that ships.

  Raises:
    UserError: There is neither.
  """
  text = os.fspath(name_or_folder)
  folder = pathlib.Path(text)
  # A name has no separators: a mistyped path is not one.
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
