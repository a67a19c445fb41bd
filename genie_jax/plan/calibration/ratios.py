"""How far plans were from published runs, for the range of a plan's MFU.

`ratios.json` is written by `genie plan --calibrate all --save-ratios` and ships
with the package. A row's ratio is planned seconds / published seconds, so that
a published run had the planned MFU times this ratio.
"""

import functools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import files

VERSION = 1
PATH = pathlib.Path(__file__).with_name("ratios.json")


def geometric_mean(values: Sequence[float]) -> float:
  """Returns the geometric mean of positive numbers."""
  return math.exp(sum(map(math.log, values)) / len(values))


def worst(values: Sequence[float]) -> float:
  """Returns the ratio that is furthest from 1, in either direction."""
  return max(values, key=lambda value: abs(math.log(value)))


@functools.cache
def load(path: pathlib.Path = PATH) -> Mapping[str, Any] | None:
  """Returns the stored ratios, None if there are none.

  Raises:
    ValueError: The file has another version.
  """
  if not path.exists():
    return None
  found = files.read_json(path)
  if found["version"] != VERSION:
    raise ValueError(
      f"{path} has version {found['version']}, not {VERSION}; write it again "
      "with `genie plan --calibrate all --save-ratios`."
    )
  return found


def calibrated(
  mfu: float, stored: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
  """Returns the range of MFU that the stored ratios imply.

  Args:
    mfu: The planned MFU, from 0 to 1.
    stored: From `load`; None for the ratios that ship.

  Returns:
    "low", "middle" and "high": the MFU with the smallest ratio, the geometric
    mean and the largest; "runs", the number of ratios; "commit", of the
    estimator that they were computed with. None if there are no ratios.
  """
  stored = load() if stored is None else stored
  if stored is None:
    return None
  values = [row["ratio"] for row in stored["rows"]]
  return {
    "low": mfu * min(values),
    "middle": mfu * geometric_mean(values),
    "high": mfu * max(values),
    "runs": len(values),
    "commit": stored["commit"],
  }


def render(found: Mapping[str, Any] | None) -> str:
  """Formats the range as a line of a plan."""
  if found is None:
    return "MFU has no range: no plans of published runs are stored"
  return (
    f"MFU {found['low']:.1%} to {found['high']:.1%}, middle "
    f"{found['middle']:.1%}, by the ratios of planned to published seconds of "
    f"{found['runs']} public training runs ({found['commit'][:10]})"
  )
