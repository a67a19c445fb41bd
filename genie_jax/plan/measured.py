"""Compares a plan with the measured speed of a run of the same config.

`genie train` logs its speed to metrics.jsonl, without the time of evaluation
and checkpoints, so the comparison needs nothing but the folder of a run.
"""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import errors, files, schema

# As `train.metrics.FILE`.
_METRICS = "metrics.jsonl"


def step_seconds(workdir: str) -> list[float]:
  """Returns the measured seconds of a step, one value for each log line.

  The first line is left out: the pipeline of batches fills while it is
  measured.

  Args:
    workdir: Folder of a run.

  Raises:
    UserError: There is no log, or it has no speed.
  """
  path = pathlib.Path(workdir) / _METRICS
  if not path.is_file():
    raise errors.UserError(
      f"--measured={workdir} has no {_METRICS}; give the --workdir of a run of "
      "`genie train`."
    )
  found: list[tuple[int, float]] = []
  for values in files.read_json_lines(path, schema.METRICS, torn=True):
    rate = values.get("steps_per_second")
    if rate:
      found.append((values["step"], 1 / rate))
  if len(found) < 2:
    raise errors.UserError(
      f"--measured={workdir}: {_METRICS} has {len(found)} lines with a speed, "
      "and two are needed, as the first one is left out; train for longer, or "
      "with a lower config.log_every."
    )
  return [seconds for _, seconds in found[1:]]


def compare(
  report: Mapping[str, Any], seconds: Sequence[float]
) -> dict[str, float]:
  """Returns planned and measured seconds, their ratio, and both MFU.

  Args:
    report: The plan.
    seconds: From `step_seconds`; their median is taken.
  """
  measured = statistics.median(seconds)
  planned = report["step_seconds"]
  return {
    "planned_seconds": planned,
    "measured_seconds": measured,
    "fastest_seconds": min(seconds),
    "ratio": planned / measured,
    "planned_mfu": report["mfu"],
    "measured_mfu": report["mfu"] * planned / measured,
  }


def lines(found: Mapping[str, float]) -> list[str]:
  """Formats a comparison."""
  return [
    f"measured step {found['measured_seconds']:.4f} s (median; fastest "
    f"{found['fastest_seconds']:.4f} s), planned "
    f"{found['planned_seconds']:.4f} s: planned / measured "
    f"{found['ratio']:.3f}",
    f"measured MFU {found['measured_mfu']:.1%}, planned "
    f"{found['planned_mfu']:.1%}",
  ]
