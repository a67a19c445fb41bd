"""Predictions of a run's loss, written before the run starts.

The file is JSON. It names the runs that the prediction was fitted to and the
SHA-256 of their figures, so that a later comparison can tell whether they have
changed:

  {"version": 1, "date": ..., "provenance": {...}, "law": name of the law that
   counts, "target": {...}, "fitted_runs": [names], "fitted_sha256": ...,
   "losses": {law: {"loss", "low", "high"}}, "last_rung_loss": ...}
"""

import datetime
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from genie_jax.core import errors, files
from genie_jax.scaling import runs as runs_lib

VERSION = 1
_FIELDS = (
  "version",
  "date",
  "provenance",
  "law",
  "target",
  "fitted_runs",
  "fitted_sha256",
  "losses",
  "last_rung_loss",
)
# What a fit reads of a run.
_FIGURES = (
  "name",
  "role",
  "seed",
  "params",
  "flops",
  "tokens",
  "steps",
  "batch_tokens",
  "peak_lr",
  "final_loss",
  "config_hash",
  "data_fingerprint",
  "tokenizer_fingerprint",
)


def digest(runs: Sequence[runs_lib.Run]) -> str:
  """Returns the SHA-256 of the figures of runs, in the order of their names."""
  rows = [
    {name: getattr(run, name) for name in _FIGURES}
    for run in sorted(runs, key=lambda run: run.name)
  ]
  return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def write(path: files.PathLike, content: Mapping[str, Any]) -> None:
  """Writes a prediction with the present date; never replaces a file.

  Args:
    path: A file on a disk, which must not exist.
    content: The fields of the file but version and date.

  Raises:
    UserError: The file exists.
  """
  path = pathlib.Path(path)
  refuse_existing(path)
  temporary = files.temporary_sibling(path)
  files.write_json(
    temporary,
    {
      "version": VERSION,
      "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      **content,
    },
  )
  try:
    # Unlike a rename, a link fails if another process has written the file.
    os.link(temporary, path)
  except FileExistsError:
    refuse_existing(path)
  finally:
    temporary.unlink(missing_ok=True)


def refuse_existing(path: files.PathLike) -> None:
  """Raises UserError if a prediction is at `path`."""
  if pathlib.Path(path).exists():
    raise errors.UserError(
      f"{path} exists, and a prediction is never replaced; give "
      "--predictions another name, and keep both files."
    )


def read(path: files.PathLike) -> dict[str, Any]:
  """Reads a file that `write` wrote.

  Raises:
    UserError: The file is missing, incomplete or of another version.
  """
  found = files.read_json(path)
  if not isinstance(found, dict) or "version" not in found:
    raise errors.UserError(
      f"{path} is not a file of predictions; write it with `genie scaling fit "
      "RUNS.json --predict SIZE --predictions FILE`."
    )
  if found["version"] != VERSION:
    raise errors.UserError(
      f"{path} has version {found['version']!r}, but this program reads "
      f"version {VERSION}; use the program that wrote it."
    )
  missing = [name for name in _FIELDS if name not in found]
  if missing:
    raise errors.UserError(
      f"{path} has no {', '.join(missing)}; the file was edited, so restore it."
    )
  return found


def check_unchanged(
  prediction: Mapping[str, Any],
  runs: Sequence[runs_lib.Run],
  path: files.PathLike,
) -> list[runs_lib.Run]:
  """Returns the runs that a prediction was fitted to.

  Args:
    prediction: From `read`.
    runs: All runs of the study.
    path: Of the prediction, for messages.

  Raises:
    UserError: One of these runs is missing, or its figures have changed.
  """
  named = {run.name: run for run in runs}
  missing = [name for name in prediction["fitted_runs"] if name not in named]
  if missing:
    raise errors.UserError(
      f"{path} was fitted to the run {missing[0]}, which the file of runs does "
      "not have; give the file that it was made from, with the new run added."
    )
  fitted = [named[name] for name in prediction["fitted_runs"]]
  if digest(fitted) != prediction["fitted_sha256"]:
    raise errors.UserError(
      f"The runs that {path} was fitted to have other figures now, so its "
      "prediction does not belong to them; restore the file of runs."
    )
  return fitted
