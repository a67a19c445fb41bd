"""Where the TPU compiler gave up on a layout, by its own log.

A tensor that it cannot take from one layout to another it first copies whole
to every device ("involuntary full rematerialization"): right, but slow and
large. It says so in its log alone.
"""

import pathlib
import re

from genie_jax.core import files

# The compiler's log goes to this folder, when the variable is set before the
# library is loaded.
LOG_FOLDER = "TPU_LOG_DIR"

_COPIED = re.compile(
  r"nvoluntary full rematerialization\. The compiler cannot go from sharding "
  r"(?P<before>\{.*?\}) to (?P<after>\{.*?\}) efficiently for HLO operation "
  r"%(?P<name>\S+) = (?P<shape>\w+\[[\d,]*\])"
)


def copied_whole(folder: files.PathLike) -> list[str]:
  """Returns a line for each tensor that is copied whole to every device.

  Args:
    folder: That of the compiler's log.
  """
  found = {}
  for path in sorted(pathlib.Path(folder).glob("*.WARNING.*")):
    if not path.is_symlink():
      for match in _COPIED.finditer(path.read_text(errors="replace")):
        found[
          f"{match['shape']} ({match['name']}), from {match['before']} to "
          f"{match['after']}"
        ] = None
  return list(found)
