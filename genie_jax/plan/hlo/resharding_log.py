"""Finds tensors that the compiler replicates fully to change their layout.

If the partitioner knows no direct way between two layouts, it first copies the
tensor completely to every device ("involuntary full rematerialization"). The
result is correct, but this is slow and needs much memory. The compiler reports
it only in its log.
"""

import pathlib
import re

from genie_jax.core import files

# Environment variable with the folder of the compiler's log; it must be set
# before the library is loaded.
LOG_FOLDER_VARIABLE = "TPU_LOG_DIR"

_COPIED = re.compile(
  r"nvoluntary full rematerialization\. The compiler cannot go from sharding "
  r"(?P<before>\{.*?\}) to (?P<after>\{.*?\}) efficiently for HLO operation "
  r"%(?P<name>\S+) = (?P<shape>\w+\[[\d,]*\])"
)


def copied_whole(folder: files.PathLike) -> list[str]:
  """Returns a line for each tensor that is copied completely to every device.

  Args:
    folder: The folder of the compiler's log.
  """
  found: dict[str, None] = {}  # Without duplicates, in order.
  for path in sorted(pathlib.Path(folder).glob("*.WARNING.*")):
    if not path.is_symlink():
      for match in _COPIED.finditer(path.read_text(errors="replace")):
        found[
          f"{match['shape']} ({match['name']}), from {match['before']} to "
          f"{match['after']}"
        ] = None
  return list(found)
