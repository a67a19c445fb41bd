"""The config of a workdir, and what of it may change when a run goes on."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from genie_jax.core import config as config_lib
from genie_jax.core import errors, files

FILE = "config.json"

# What changes neither the model nor the meaning of its state. A new `steps`
# lengthens or shortens the schedule of the learning rate from here on.
_MAY_CHANGE = frozenset({
    "steps", "log_every", "eval_every", "eval_batches", "checkpoint_every",
    "keep_checkpoints", "data.num_workers", "data.num_threads"})
_MAY_CHANGE_GROUPS = ("mesh.",)


def check(
    workdir: files.PathLike, config: Mapping[str, Any], resumes: bool
) -> None:
  """Compares a config with that of a run that is to go on.

  Args:
    workdir: The run's folder.
    config: The config of this start.
    resumes: True where the workdir has a checkpoint.

  Raises:
    UserError: A field differs that the checkpoint depends on.
  """
  path = pathlib.Path(workdir) / FILE
  if resumes and path.exists():
    _compare(workdir, files.read_json(path), config_lib.to_dict(config))


def write(workdir: files.PathLike, config: Mapping[str, Any]) -> None:
  """Writes `config.json`."""
  if jax.process_index() == 0:
    files.write_json(
        pathlib.Path(workdir) / FILE, config_lib.to_dict(config))


def _compare(workdir, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  old_fields, new_fields = _dotted(old), _dotted(new)
  for name in sorted(old_fields.keys() | new_fields.keys()):
    before = old_fields.get(name, "absent")
    after = new_fields.get(name, "absent")
    if before == after:
      continue
    if name not in _MAY_CHANGE and not name.startswith(_MAY_CHANGE_GROUPS):
      raise errors.UserError(
          f"{workdir} was started with config.{name}={before!r}, but now it is "
          f"{after!r}; set it back, or use a new workdir (config.init_from can "
          "start from this one).")
    logging.info("Going on with config.%s=%r instead of %r.", name, after,
                 before)


def _dotted(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in fields.items():
    if isinstance(value, dict) and value:
      flat |= _dotted(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat
