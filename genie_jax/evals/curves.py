"""Reads the training curves of a workdir for the report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from genie_jax.core import buckets, errors, files, schema
from genie_jax.train import workdir as workdir_lib

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
  config = workdir_lib.read(buckets.run_folder(workdir))
  schema.check(
    config, {"stage": str}, f"{workdir}/{workdir_lib.FILE}", "train it again"
  )
  stage = cast(dict[str, Any], config)["stage"]
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
    first = path.read_bytes().partition(b"\n")[0]
    return files.parse_json(first, str(path), {"time": schema.FINITE})["time"]
  except errors.UserError:
    return None


def _series(path: files.PathLike) -> dict[str, Line]:
  """Returns name -> (steps, values) of a file of JSON lines."""
  lists: dict[str, tuple[list[float], list[float]]] = {}
  for line in files.read_json_lines(path, schema.METRICS):
    step = line.pop("step")
    for name, value in line.items():
      if value is not None:
        steps, values = lists.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
  return dict(lists)


def _thinned(line: Line) -> Line:
  """Returns means over neighbouring points, at most _POINTS of them."""
  steps, values = (np.array(part, float) for part in line)
  pieces = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
  return ([steps[p].mean() for p in pieces], [values[p].mean() for p in pieces])


def _readable(name: str) -> str:
  name = name.removeprefix("eval/").removesuffix("squared_error")
  return name.replace("_", " ").strip() or "prediction"
