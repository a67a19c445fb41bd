"""The result of a scaling study: one JSON file with runs, laws and a verdict.

`genie scaling fit` writes it and `genie scaling plot` needs nothing else:

  version, provenance, runs_provenance
  unit                 of all losses
  rungs, cells         the runs; those at the common token budget, all others
  laws, not_identified fitted laws by name, and why others are missing
  law                  name of the law that counts
  predicted_largest    loss that was predicted for the held-out rung
  measured_largest     its mean loss over seeds
  last_rung_loss       mean loss of the largest rung that was fitted
  prediction           date, file, intervals, and whether it was made before
  verdict              errors, and whether the two criteria are met
  backtest             the same for the largest rung that was fitted
  batch_study, allocation
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors, files
from genie_jax.evals import curves
from genie_jax.scaling import fit as fit_lib
from genie_jax.scaling import predictions
from genie_jax.scaling import runs as runs_lib

VERSION = 1
UNIT = "nats per masked token"
_CURVE_POINTS = 80  # Of a training curve; a chart cannot show more.
_SEED = 0  # Of all resampling: a result is a function of its inputs.


def predict(
  study: runs_lib.Study,
  target: fit_lib.Target,
  law: str,
  *,
  resamples: int = fit_lib.RESAMPLES,
) -> dict[str, Any]:
  """Returns the content of a file of predictions but version and provenance.

  Args:
    study: The runs, without the target.
    target: What is predicted.
    law: Name of the law that counts, in `fit.LAWS`.
    resamples: R.

  Raises:
    UserError: The study already has the run, or does not identify the law.
  """
  rungs = [run for run in study.runs if run.role == "rung"]
  if known := [run for run in rungs if run.params >= 0.99 * target.params]:
    raise errors.UserError(
      f"The file of runs already has {known[0].name} with "
      f"{known[0].params:,} parameters, so its loss or that of a larger run is "
      "known; a prediction is written before the run starts."
    )
  fit_lib.split(study.runs)  # Checks roles and budgets.
  # The target is held out, so every rung is fitted that the study allows.
  allowed = [run for run in study.runs if not run.held_out]
  parts = fit_lib.Parts(
    tuple(run for run in allowed if run.role == "rung"),
    (),
    tuple(run for run in allowed if run.role == "cell"),
  )
  found, reasons = fit_lib.all_laws(parts, seed=_SEED, resamples=resamples)
  _check_law(law, found, reasons)
  losses = fit_lib.predict(found, target)
  if law not in losses:
    raise errors.UserError(
      f"--law={law} needs the FLOPs of {target.name}; give them with --flops."
    )
  used = sorted(
    {run.name: run for f in found.values() for run in f.runs}.items()
  )
  return {
    "law": law,
    "target": dataclasses.asdict(target),
    "fitted_runs": [name for name, _ in used],
    "fitted_sha256": predictions.digest([run for _, run in used]),
    "losses": losses,
    "last_rung_loss": fit_lib.last_rung_loss(parts.fitted),
    "laws": {name: fitted.to_dict() for name, fitted in found.items()},
  }


def assemble(
  study: runs_lib.Study,
  law: str,
  provenance: Mapping[str, Any],
  *,
  prediction_path: files.PathLike | None = None,
  held_out: str | None = None,
  resamples: int = fit_lib.RESAMPLES,
) -> dict[str, Any]:
  """Returns the content of a result file.

  Args:
    study: All runs.
    law: Name of the law that counts; that of the prediction if there is one.
    provenance: Of the fit.
    prediction_path: File of predictions; None if none was made.
    held_out: Name or size of the rungs to hold out, see `fit.split`.
    resamples: R.

  Raises:
    UserError: The runs do not suffice, do not compare, or are not those of the
      prediction; or the prediction was made after the run had started.
  """
  parts = fit_lib.split(study.runs, held_out)
  runs_lib.check_comparable([*parts.fitted, *parts.held_out])
  options: Any = dict(seed=_SEED, resamples=resamples)
  found, reasons = fit_lib.all_laws(parts, **options)
  target = _target(parts.held_out[0])
  made: dict[str, Any]
  if prediction_path is None:
    _check_law(law, found, reasons)
    losses = fit_lib.predict(found, target)
    last = fit_lib.last_rung_loss(parts.fitted)
    made = {"date": None, "file": None, "made_before_the_run": False}
  else:
    stored = predictions.read(prediction_path)
    predictions.check_unchanged(stored, study.runs, prediction_path)
    law, losses = stored["law"], stored["losses"]
    _check_target(stored["target"], parts.held_out[0], prediction_path)
    made = {
      "date": stored["date"],
      "file": str(prediction_path),
      "sha256": files.sha256(prediction_path),
      "provenance": stored["provenance"],
      "made_before_the_run": _made_before(
        stored["date"], parts.held_out, prediction_path
      ),
    }
    last = stored["last_rung_loss"]
  measured = float(np.mean([run.final_loss for run in parts.held_out]))
  usable = [*parts.fitted, *parts.cells]
  return {
    "version": VERSION,
    "provenance": {
      **provenance,
      **{
        name: study.provenance[name]
        for name in ("config_hash", "data_fingerprint", "tokenizer_fingerprint")
      },
      "seeds": sorted({run.seed for run in study.runs}),
      "seconds": sum(run.seconds for run in study.runs),
    },
    "runs_provenance": dict(study.provenance),
    "unit": UNIT,
    "law": law,
    "predicted_largest": losses[law]["loss"],
    "measured_largest": measured,
    "last_rung_loss": last,
    "prediction": {
      **made,
      "target": dataclasses.asdict(target),
      "losses": losses,
    },
    "verdict": {
      **fit_lib.judge(losses, last, measured, law),
      "loss_falls_with_every_size": falls([*parts.fitted, *parts.held_out]),
    },
    "backtest": fit_lib.backtest(parts, law),
    "laws": {
      name: {**fitted.to_dict(), "curve": _line(fitted, parts)}
      for name, fitted in found.items()
    },
    "not_identified": reasons,
    "batch_study": fit_lib.batch_study(usable, **options),
    "allocation": fit_lib.allocate(found.get("params_and_tokens"), usable),
    "rungs": [
      _row(run, run in parts.held_out)
      for run in (*parts.fitted, *parts.held_out)
    ],
    "cells": [
      _row(run, run.held_out) for run in study.runs if run.role == "cell"
    ],
  }


def read(path: files.PathLike) -> dict[str, Any]:
  """Reads a file with the content of `assemble`.

  Raises:
    UserError: The file is missing, or not a result of this version.
  """
  found = files.read_json(path)
  if not isinstance(found, dict) or not {"version", "rungs", "laws"} <= set(
    found
  ):
    raise errors.UserError(
      f"{path} is not a result of a scaling study; write one with "
      "`genie scaling fit RUNS.json --out FILE`."
    )
  if found["version"] != VERSION:
    raise errors.UserError(
      f"{path} has version {found['version']!r}, but this program reads "
      f"version {VERSION}; write it again with `genie scaling fit`."
    )
  return found


def falls(runs: Sequence[runs_lib.Run]) -> bool:
  """Returns whether the mean final loss falls with every size."""
  means = [
    np.mean([run.final_loss for run in runs if run.params == params])
    for params in sorted({run.params for run in runs})
  ]
  return bool(np.all(np.diff(means) < 0))


def _check_law(law, found, reasons) -> None:
  if law not in found:
    raise errors.UserError(
      f"--law={law} is not identified: {reasons[law]}; use --law=params."
    )


def _line(
  fitted: fit_lib.Fitted, parts: fit_lib.Parts
) -> dict[str, Any] | None:
  """Returns a law of one axis over the range of the rungs; None for others."""
  axes = fitted.law.form.axes
  if len(axes) != 1:
    return None
  axis = axes[0]
  values = [getattr(run, axis) for run in (*parts.fitted, *parts.held_out)]
  return fitted.curve(min(values) / 1.3, max(values) * 1.3)


def _target(run: runs_lib.Run) -> fit_lib.Target:
  return fit_lib.Target(run.size, run.params, run.tokens, run.flops)


def _check_target(
  target: Mapping[str, Any], run: runs_lib.Run, path: files.PathLike
) -> None:
  """Raises UserError unless a run is what a prediction was made for."""
  for name in ("params", "tokens", "flops"):
    value, wanted = getattr(run, name), target[name]
    if wanted is not None and abs(value / wanted - 1) > 0.01:
      raise errors.UserError(
        f"{path} predicts a run with {name} = {wanted:.6g}, but the held-out "
        f"run {run.name} has {value:.6g}; hold out the run that was predicted."
      )


def _made_before(
  date: str, runs: Sequence[runs_lib.Run], path: files.PathLike
) -> bool | None:
  """Returns whether a prediction is older than the logs of the runs.

  Returns:
    True; None if no log can be read.

  Raises:
    UserError: A run had logged something before the prediction was written.
  """
  times = [curves.started(run.workdir) for run in runs]
  starts = [time for time in times if time is not None]
  if not starts:
    return None
  written = datetime.datetime.fromisoformat(date).timestamp()
  if min(starts) < written:
    raise errors.UserError(
      f"{path} is dated {date}, after the held-out run began to log; a "
      "prediction is written before the run starts."
    )
  return True


def _row(run: runs_lib.Run, held_out: bool) -> dict[str, Any]:
  """Returns a run with its training curve, so that a plot needs no workdir."""
  return {
    **dataclasses.asdict(run),
    "held_out": held_out,
    "curve": _curve(run),
  }


def _curve(run: runs_lib.Run) -> dict[str, list[float]] | None:
  """Returns steps and training losses; None if the run's folder is not here.

  Losses are means over intervals of equal ratio, because curves are drawn over
  the logarithm of FLOPs. A step is the number of updates.
  """
  line = curves.losses(run.workdir)
  if line is None:
    return None
  steps, losses = np.array(line[0]) + 1.0, np.array(line[1])
  edges = np.geomspace(1, steps[-1] + 1, _CURVE_POINTS + 1)
  place = np.searchsorted(edges, steps, "right")
  means = [
    (float(steps[place == k].mean()), float(losses[place == k].mean()))
    for k in np.unique(place)
  ]
  return {
    "steps": [step for step, _ in means],
    "loss": [loss for _, loss in means],
  }
