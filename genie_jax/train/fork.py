"""Forks: a run that continues from a saved step of another run.

With a constant learning rate followed by a short decay ("wsd", arXiv:2404.06395
and arXiv:2405.18392), one long run contains the beginnings of shorter ones. A
fork takes over everything at a step: parameters, optimizer state, random keys
and the position in the data. It may differ from its source only in what comes
later, that is in the number of steps and the decay of the learning rate.
Therefore a fork ends in the state that a run of its own config from scratch
would end in, bit for bit, and only costs the steps after the fork.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors, files, schema
from genie_jax.train import metrics
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import workdir as workdir_lib

FILE = "fork.json"
# These fields determine only learning rates, which are compared up to the fork.
_SCHEDULE = frozenset(
  {"optimizer.schedule", "optimizer.decay_steps", "optimizer.end_lr"}
)


@dataclasses.dataclass(frozen=True)
class Fork:
  """The step of another run at which a run begins.

  Attributes:
    source: Workdir of the other run.
    step: Number of its updates to take over; it must have a checkpoint there.
  """

  source: str
  step: int


def check(workdir: epath.Path, fork: Fork | None, resumes: bool) -> None:
  """Checks that a run that resumes began at this fork.

  Args:
    workdir: The run's folder.
    fork: The fork that was requested; None if none was, which is no
      contradiction, because a run that resumes needs none.
    resumes: Whether the workdir has a checkpoint.

  Raises:
    UserError: It began elsewhere.
  """
  if fork is None or not resumes:
    return
  found = read(workdir)
  if found is None or found["step"] != fork.step:
    began = f"at step {found['step']} of {found['source']}" if found else "anew"
    raise errors.UserError(
      f"{workdir} began {began}, not at step {fork.step} of {fork.source}; "
      "leave out --fork-from to resume it, or use a new workdir."
    )


def read(workdir: Any) -> dict[str, Any] | None:
  """Returns the content of a run's fork.json; None if it has none.

  Args:
    workdir: The run's folder, a path.

  Raises:
    UserError: The file has other content.
  """
  path = workdir / FILE
  form = {"step": schema.COUNT, "source": str}
  return files.read_json(path, form) if path.exists() else None


def restore(
  fork: Fork,
  workdir: epath.Path,
  config: Mapping[str, Any],
  optimizer: optimizer_lib.Optimizer,
  like: Mapping[str, Any],
  data: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Loads the state of the source, and copies its log up to the fork.

  Args:
    fork: Where to begin.
    workdir: The folder of the new run.
    config: The config of the new run, as plain dicts.
    optimizer: The optimizer of the new run.
    like: Abstract trees by name, see `TrainState.fields`.
    data: Iterator with `set_state()`, which is set to the source's position.

  Returns:
    The trees by name, and the note of the checkpoint.

  Raises:
    UserError: There is no such checkpoint, or a run of this config would not
      have reached the same state.
  """
  source = buckets.run_folder(fork.source)
  path = source / reader.FOLDER / str(fork.step)
  steps = reader.valid_steps(source)
  if fork.step not in steps:
    raise errors.UserError(
      f"--fork-step={fork.step}: {fork.source} has no checkpoint of this step "
      f"(it has {', '.join(map(str, steps)) or 'none'}); train it with "
      "config.keep_every set to a divisor of the step."
    )
  if fork.step >= config["steps"]:
    raise errors.UserError(
      f"config.steps={config['steps']} leaves no step after --fork-step="
      f"{fork.step}; use more steps, or fork earlier."
    )
  try:
    old = reader.read_note(path)["config"]
    workdir_lib.compare(
      source,
      old,
      config,
      also=_SCHEDULE,
      remedy="set it back, because a fork may change only config.steps and "
      "the decay of the learning rate",
    )
    _check_rates(fork, old, optimizer)
    fields, note = reader.load(path, like)
  except reader.Damaged as damage:
    raise errors.UserError(
      f"Checkpoint {path} is damaged ({damage}); fork from another step."
    ) from damage
  data.set_state(note["iterator"])
  if jax.process_index() == 0:
    _copy_log(source, workdir, fork.step)
    files.write_json(
      workdir / FILE,
      {
        **dataclasses.asdict(fork),
        "config_fingerprint": note["config_fingerprint"],
      },
    )
  logging.info("Forked from step %d of %s.", fork.step, fork.source)
  return fields, note


def _check_rates(
  fork: Fork, old: Mapping[str, Any], optimizer: optimizer_lib.Optimizer
) -> None:
  """Checks that both runs have the same learning rates before the fork."""
  settings = optimizer_lib.settings(old["optimizer"], old["steps"])
  before = optimizer_lib.schedule(settings, old["steps"])
  steps = jnp.arange(fork.step)
  rates = [
    np.asarray(rate(steps)) for rate in (before, optimizer.learning_rate)
  ]
  different = np.flatnonzero(rates[0] != rates[1])
  if different.size:
    first = different[0]
    raise errors.UserError(
      f"--fork-step={fork.step}: from step {first} on {fork.source} had "
      f"another learning rate ({rates[0][first]:.6g}) than this config "
      f"({rates[1][first]:.6g}); fork before the first of the two decays."
    )


def _copy_log(source: epath.Path, workdir: epath.Path, step: int) -> None:
  """Copies the lines of the source's log up to a step, if there is no log."""
  log, target = source / metrics.FILE, workdir / metrics.FILE
  if target.exists() or not log.exists():
    return
  lines = log.read_text().splitlines()
  kept = [line for line in lines if metrics.step_of(line) <= step]
  files.write_atomic(target, "".join(line + "\n" for line in kept))
