"""Reads the training curves of a workdir for the report."""

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from genie_jax.core import buckets, errors, files

_FILE = "metrics.jsonl"
_POINTS = 120  # Points of a training curve; a chart cannot show more.

Line = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Run:
  """Curves of one stage.

  Attributes:
    stage: Its name.
    panels: Title -> line -> steps and values.
    logarithmic: Titles of panels that need a logarithmic y axis.
  """

  stage: str
  panels: Mapping[str, Mapping[str, Line]]
  logarithmic: Sequence[str]


def read(workdir: files.PathLike) -> Run:
  """Reads the curves of a workdir.

  Args:
    workdir: A folder that `genie train` wrote.

  Raises:
    UserError: It has no metrics.
  """
  workdir = buckets.reached(workdir)
  path = workdir / _FILE
  if not path.is_file():
    raise errors.UserError(
      f"{path} does not exist; --workdir takes a folder that `genie train` "
      "wrote."
    )
  series = _series(path)
  if "loss" not in series:
    raise errors.UserError(
      f"{path} has no line with a loss; train for longer than "
      "config.log_every steps, or leave this --workdir out."
    )
  stage = files.read_json(workdir / "config.json")["stage"]
  panels: dict[str, dict[str, Line]] = {
    "Training loss": {"loss": _thinned(series["loss"])}
  }
  errors_of = {
    name: line
    for name, line in series.items()
    if name.startswith("eval/") and name.endswith("squared_error")
  }
  if errors_of:
    panels["Held-out PSNR, dB"] = {
      _readable(name): (
        steps,
        list(-10 * np.log10(np.maximum(values, 1e-10))),
      )
      for name, (steps, values) in errors_of.items()
    }
  accuracies = {
    name: line
    for name, line in series.items()
    if name.startswith("eval/") and name.endswith("accuracy")
  }
  if accuracies:
    panels["Held-out accuracy"] = {
      _readable(name): line for name, line in accuracies.items()
    }
  losses = series["loss"][1]
  spread = min(losses) > 0 and max(losses) > 10 * min(losses)
  return Run(stage, panels, ["Training loss"] if spread else [])


def losses(workdir: files.PathLike) -> Line | None:
  """Returns the steps and training losses of a run's log.

  Args:
    workdir: A folder that `genie train` wrote.

  Returns:
    None if the folder has no log with a loss.

  Raises:
    UserError: A line of the log is damaged.
  """
  path = buckets.path(workdir) / _FILE
  return _series(path).get("loss") if path.is_file() else None


def started(workdir: files.PathLike) -> float | None:
  """Returns when a run wrote its first log line, in Unix seconds.

  Args:
    workdir: A folder that `genie train` wrote.

  Returns:
    None if the folder has no readable log.
  """
  path = buckets.path(workdir) / _FILE
  if not path.is_file():
    return None
  try:
    return float(json.loads(path.read_text().partition("\n")[0])["time"])
  except (json.JSONDecodeError, KeyError, TypeError, ValueError):
    return None


def _series(path: files.PathLike) -> dict[str, Line]:
  """Returns name -> (steps, values) of a file of JSON lines."""
  points: dict[str, Line] = {}
  lists: dict[str, tuple[list[float], list[float]]] = {}
  for number, text in enumerate(buckets.path(path).read_text().splitlines(), 1):
    try:
      line = json.loads(text)
      step = line.pop("step")
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
      raise errors.UserError(
        f"{path}, line {number} is not a line of metrics; the run may have "
        "been killed while writing it: resume the run, or delete the line."
      ) from None
    for name, value in line.items():
      if isinstance(value, int | float):
        steps, values = lists.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
  points.update(lists)
  return points


def _thinned(line: Line) -> Line:
  """Returns means over neighbouring points, at most _POINTS of them."""
  steps, values = (np.array(part, float) for part in line)
  pieces = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
  return ([steps[p].mean() for p in pieces], [values[p].mean() for p in pieces])


def _readable(name: str) -> str:
  name = name.removeprefix("eval/").removesuffix("squared_error")
  return name.replace("_", " ").strip() or "prediction"
