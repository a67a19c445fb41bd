"""The config of a workdir, and which fields may change when a run resumes.

`config.json` shows the config to people and tools. Each checkpoint contains a
sealed copy, which decides where there is one: `read` returns it if config.json
is missing, damaged or edited.

A run may resume on a different chip count, so fields that affect only execution
may change: the mesh, the number of microbatches, and for each transformer stack
rematerialisation, the attention implementation and the unrolling of layers.
The batch of a step, the parameters and the optimizer state stay the same.
`optimizer.accumulate` changes which masks are drawn, because each microbatch
draws its own, but not their distribution.

The data may be moved, but must be the same. This is checked with
`config.data.fingerprint`, which `genie train` adds to the config before it is
written. If the fingerprint is not known, as in workdirs of versions that did
not write it, the path must stay the same.
"""

import time
from collections.abc import Collection, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

from genie_jax.checkpoints import reader
from genie_jax.core import config as config_lib
from genie_jax.core import errors, files, schema

FILE = "config.json"
STARTED = "started.json"
_STARTED = {"started": schema.NOT_NEGATIVE}

# Fields that change neither the model nor the meaning of its state. Changing
# `steps` lengthens or shortens the rest of the learning rate schedule.
_MAY_CHANGE = frozenset(
  {
    "steps",
    "log_every",
    "eval_every",
    "eval_batches",
    "held_out_clips",
    "checkpoint_every",
    "checkpoint_minutes",
    "emergency_every",
    "emergency_folder",
    "keep_checkpoints",
    "keep_every",
    "data.num_workers",
    "data.num_threads",
    "optimizer.accumulate",
    "optimizer.max_skipped",
    "watchdog_seconds",
  }
)
_MAY_CHANGE_GROUPS = ("mesh.",)
# Fields of transformer stacks; a stack is a group with the field num_layers.
_MAY_CHANGE_IN_STACKS = frozenset({"remat", "attention", "unroll"})
_DATA = "data.fingerprint"
# The meaning of configs that were written before these fields existed.
_ABSENT = {
  "quantizer.name": "vq",
  "quantizer.levels": [],
  "optimizer.clip_outliers": 0.0,
  "optimizer.clip_update_rms": 0.0,
  "optimizer.max_skipped": 0,
  "optimizer.no_decay": [],
  "optimizer.transfer": "none",
  "optimizer.base_width": 0,
  "optimizer.base_layers": 0,
  "codebook.loss_gradient": True,
  "data.mixture": [],
  "press_frames": [],
  "z_loss": 0.0,
}


def check(
  workdir: epath.Path, config: Mapping[str, Any], resumes: bool
) -> None:
  """Compares a config with that of the run that it resumes.

  Args:
    workdir: The run's folder, see `buckets.run_folder`.
    config: The config of this start, as plain dicts.
    resumes: Whether the workdir has a checkpoint.

  Raises:
    UserError: A field that the checkpoint depends on has changed.
  """
  old = read(workdir) if resumes else None
  if old is not None:
    compare(workdir, old, config)


def read(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the config of a run; None if the folder has none.

  A config.json that contradicts the sealed copy is not used, with a warning. It
  may have other values of fields that may change: a run that is stopped soon
  after it has resumed has no checkpoint with them yet.

  Args:
    workdir: The run's folder, see `buckets.run_folder`.

  Raises:
    UserError: All checkpoints are damaged; without checkpoints, config.json is.
  """
  path, sealed = workdir / FILE, reader.sealed_config(workdir)
  if sealed is None:
    return files.read_json(path) if path.exists() else None
  try:
    found = files.read_json(path)
    old, new = config_lib.dotted(sealed), config_lib.dotted(found)
    wrong = [
      name
      for name in _differences(old, new)
      if not _may_change(name, old, new)
      # Versions before the fingerprint sealed none.
      and (name != _DATA or name in old)
    ]
    if not wrong:
      return found
    why = (
      f"{path} was edited: config.{wrong[0]} is "
      f"{schema.shown(new.get(wrong[0], 'absent'))}"
    )
  except errors.UserError as error:
    why = str(error).partition(";")[0]
  logging.warning(
    "%s; the config that is sealed in the newest checkpoint is used.", why
  )
  return sealed


def write(workdir: epath.Path, config: Mapping[str, Any]) -> None:
  """Writes `config.json`."""
  if jax.process_index() == 0:
    files.write_json(workdir / FILE, config)


def first_start(workdir: epath.Path) -> float:
  """Returns the Unix time at which this run first started.

  It is stored in a file, because a run may end before its first checkpoint.
  Only process 0 writes the file, and only its result is used.
  """
  path = workdir / STARTED
  if not path.exists():
    now = time.time()
    if jax.process_index() == 0:
      files.write_json(path, {"started": now})
    return now
  return files.read_json(path, _STARTED)["started"]


def compare(
  workdir: epath.Path,
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  *,
  also: Collection[str] = (),
  remedy: str = "set it back, or use a new workdir (config.init_from can "
  "start from this one)",
) -> None:
  """Checks that a run of one config can continue with another.

  Args:
    workdir: The run's folder, for messages.
    old: The config of the run.
    new: The config to continue with.
    also: Additional fields that may change, with dots.
    remedy: End of the message about a field that may not change.

  Raises:
    UserError: A field that the state depends on has changed.
  """
  old_fields, new_fields = config_lib.dotted(old), config_lib.dotted(new)
  for name, (before, after) in _differences(old_fields, new_fields).items():
    if name == _DATA:
      _compare_data(workdir, old_fields, new_fields)
      continue
    if name not in also and not _may_change(name, old_fields, new_fields):
      raise errors.UserError(
        f"{workdir} was started with config.{name}={before!r}, but now it is "
        f"{after!r}; {remedy}."
      )
    logging.info(
      "Resuming with config.%s=%r instead of %r.", name, after, before
    )


def _differences(
  old: Mapping[str, Any], new: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Returns name -> both values of the fields that differ, in order."""
  found = {
    name: tuple(
      fields.get(name, _ABSENT.get(name, "absent")) for fields in (old, new)
    )
    for name in sorted(old.keys() | new.keys())
  }
  return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def _compare_data(
  workdir, old: Mapping[str, Any], new: Mapping[str, Any]
) -> None:
  if _DATA in old and _DATA in new:
    place = (
      "mixture" if new.get("data.mixture") else f"path={new.get('data.path')}"
    )
    raise errors.UserError(
      f"{workdir} was started with data of fingerprint {old[_DATA][:12]}, "
      f"but that of config.data.{place} is "
      f"{new[_DATA][:12]}; use the data it was started with, or use a new "
      "workdir (config.init_from can start from this one)."
    )


def _may_change(
  name: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> bool:
  """Returns whether a run can resume with another value of a field."""
  if name in _MAY_CHANGE or name.startswith(_MAY_CHANGE_GROUPS):
    return True
  if name in ("data.path", "data.mixture", "data.labels"):
    return _DATA in old and old[_DATA] == new.get(_DATA)
  group, _, field = name.rpartition(".")
  return (
    field in _MAY_CHANGE_IN_STACKS
    and group.startswith("model.")
    and all(f"{group}.num_layers" in fields for fields in (old, new))
  )
