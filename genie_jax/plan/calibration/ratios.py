"""How far plans were from published runs, for the range of a plan's seconds.

`ratios.json` is written by `genie plan --calibrate all --save-ratios` and ships
with the package. A row's ratio is planned seconds / published seconds.

The range of a plan is a prediction interval: if the logarithms of the ratios
are normally distributed, the ratio of one further run of this kind lies in it
with the probability CONFIDENCE. It is wider than the range of the ratios
themselves, because a few runs say little about the next one. Leaving out each
run in turn checks it. The range always includes the planned seconds: what makes
plans of language models too slow need not be there in another model.

No run can be faster than its matrix products. The stored rows therefore also
have the share of the chips' peak at which the published runs executed all
products and kernels of the compiled program, recomputation included; the range
of a plan ends where this share would exceed the largest of them on the plan's
chip, or on any chip if none ran on it.
"""

import functools
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import files

VERSION = 2
PATH = pathlib.Path(__file__).with_name("ratios.json")
CONFIDENCE = 0.9
# The fewest runs with a range: each of them is left out once, and two remain.
LEAST = 3


def geometric_mean(values: Sequence[float]) -> float:
  """Returns the geometric mean of positive numbers."""
  return math.exp(sum(map(math.log, values)) / len(values))


def worst(values: Sequence[float]) -> float:
  """Returns the ratio that is furthest from 1, in either direction."""
  return max(values, key=lambda value: abs(math.log(value)))


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Returns the prediction interval of one further ratio.

  Args:
    values: At least two ratios.
  """
  from scipy import special

  logs = [math.log(value) for value in values]
  count = len(logs)
  quantile = special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)
  half = quantile * statistics.stdev(logs) * math.sqrt(1 + 1 / count)
  middle = sum(logs) / count
  return math.exp(middle - half), math.exp(middle + half)


def held_out(values: Sequence[float]) -> dict[str, Any] | None:
  """Predicts each ratio from the others.

  Args:
    values: The ratios.

  Returns:
    "runs", their number; "inside", how many lie in the interval of the others;
    "lowest" and "highest", the extremes of the predicted seconds (planned
    seconds / geometric mean of the others) over the published ones. None if
    there are fewer than LEAST ratios.
  """
  if len(values) < LEAST:
    return None
  inside, errors = 0, []
  for i, value in enumerate(values):
    others = [*values[:i], *values[i + 1 :]]
    low, high = interval(others)
    inside += low <= value <= high
    errors.append(value / geometric_mean(others))
  return {
    "runs": len(values),
    "inside": inside,
    "lowest": min(errors),
    "highest": max(errors),
  }


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
      "with `genie plan --calibrate all --json FILE --save-ratios`."
    )
  return found


def calibrated(
  seconds: float,
  mfu: float,
  share_of_peak: float,
  chip: str,
  stored: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
  """Returns the range of a step's seconds that the stored ratios imply.

  Args:
    seconds: The planned seconds of a step.
    mfu: The planned MFU, from 0 to 1.
    share_of_peak: Compiled FLOPs / planned seconds / peak of the chips.
    chip: The name of the chip.
    stored: From `load`; None for the ratios that ship.

  Returns:
    JSON values: "seconds_low", "seconds_middle" and "seconds_high", with the
    upper end of the interval, the geometric mean and the lower end, extended to
    the planned seconds; "mfu_low", "mfu_middle" and "mfu_high", which belong to
    the high, middle and low seconds; "limited", whether the low seconds are
    those of the largest share of peak; "share_of_peak", this share; "runs";
    "runs_on_chip", those on this chip; "held_out"; "commits", of the estimator.
    None if there are no ratios.
  """
  stored = load() if stored is None else stored
  if stored is None:
    return None
  values = [row["ratio"] for row in stored["rows"]]
  on_chip = [
    row for row in stored["rows"] if row["topology"].partition(":")[0] == chip
  ]
  most = max(row["share_of_peak"] for row in on_chip or stored["rows"])
  least_seconds = seconds * share_of_peak / most
  low, high = interval(values)
  ends = {
    "low": seconds / max(high, 1),
    "middle": seconds / geometric_mean(values),
    "high": seconds / min(low, 1),
  }
  limited = {name: max(value, least_seconds) for name, value in ends.items()}
  of = lambda name: mfu * seconds / limited[name]
  return {
    **{f"seconds_{name}": value for name, value in limited.items()},
    "mfu_low": of("high"),
    "mfu_middle": of("middle"),
    "mfu_high": of("low"),
    "limited": ends["low"] < least_seconds,
    "share_of_peak": most,
    "runs": len(values),
    "runs_on_chip": len(on_chip),
    "held_out": held_out(values),
    "commits": list(stored["commits"]),
  }


def render(found: Mapping[str, Any] | None, chip: str) -> list[str]:
  """Formats the range as lines of a plan.

  Args:
    found: From `calibrated`.
    chip: The name of the chip.
  """
  if found is None:
    return ["no range of seconds: no plans of published runs are stored"]
  own = found["runs_on_chip"]
  of = f"{own} of them" if own else "none of them"
  lines = [
    f"calibrated step {found['seconds_low']:.4g} to "
    f"{found['seconds_high']:.4g} s (MFU {found['mfu_low']:.1%} to "
    f"{found['mfu_high']:.1%}):",
    f"  the plan and the {CONFIDENCE:.0%} prediction interval from planned "
    f"and published seconds of {found['runs']} runs, {of} on {chip}",
  ]
  if found["held_out"] is not None:
    lines.append(f"  {render_held_out(found['held_out'])}")
  if found["limited"]:
    lines.append(
      "  the lower end is where products and kernels would run at "
      f"{found['share_of_peak']:.1%} of peak, the most of "
      + (f"those on {chip}" if own else "these runs")
    )
  return lines


def render_held_out(found: Mapping[str, Any]) -> str:
  """Formats the result of `held_out`."""
  return (
    f"each run predicted from the others: {found['inside']} of "
    f"{found['runs']} in the interval, predicted seconds "
    f"{found['lowest']:.2f} to {found['highest']:.2f} of the published ones"
  )
