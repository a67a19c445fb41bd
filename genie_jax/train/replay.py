"""Repeats one step of a run, to see why its loss or gradient is not finite.

A run is deterministic: from the last checkpoint before the step, the same
batches, masks and updates follow. So nothing has to be stored while training,
and `genie train --replay N` finds the step, its batch and its random key again.
"""

import dataclasses
import math
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors, files
from genie_jax.core import config as config_lib
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import lock, warm_start
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from genie_jax.train import workdir as workdir_lib

FOLDER = "replay"


@dataclasses.dataclass(frozen=True)
class Report:
  """What a repeated step computed.

  Attributes:
    step: The step, counted from 1.
    started_from: Step of the checkpoint from which it was reached; 0 for none.
    metrics: The metrics of the step, see `step.make_train_step`.
    gradient_norms: Parameter's path -> L2 norm of its gradient, before
      clipping.
    parameter_norms: Parameter's path -> its L2 norm before the step.
    folder: Where the report and the batch were written.
  """

  step: int
  started_from: int
  metrics: dict[str, float]
  gradient_norms: dict[str, float]
  parameter_norms: dict[str, float]
  folder: str

  def lines(self) -> list[str]:
    """Returns the report as text, the most important first."""
    show = lambda values: ", ".join(f"{n} {x:.5g}" for n, x in values.items())
    lines = [f"step {self.step}: {show(self.metrics)}"]
    for what, norms in (
      ("parameters", self.parameter_norms),
      ("gradients", self.gradient_norms),
    ):
      bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
      if bad:
        lines.append(
          f"{what} not finite: {len(bad)} of {len(norms)} arrays, "
          f"{', '.join(bad[:8])}{', ...' if len(bad) > 8 else ''}"
        )
      else:
        largest = sorted(norms, key=lambda name: norms[name], reverse=True)[:3]
        lines.append(
          f"{what} finite; the largest norms: "
          + show({name: norms[name] for name in largest})
        )
    return [*lines, f"batch, random key and report: {self.folder}"]


def replay(
  stage: stage_lib.Stage,
  config: ml_collections.ConfigDict,
  workdir: files.PathLike,
  make_batches: Any,
  step: int,
) -> Report:
  """Repeats a step of a run; changes nothing of the run.

  Writes WORKDIR/replay/STEP/report.json, and batch_P.npz with the arrays of
  the batch that process P reads.

  Args:
    stage: The stage.
    config: The config of the run.
    workdir: The run's folder.
    make_batches: Share of rows -> iterator over training batches.
    step: The step to repeat, counted from 1.

  Raises:
    UserError: The config is not that of the run, another process trains in the
      workdir, or there is no such step.
  """
  workdir = buckets.run_folder(buckets.reached(workdir))
  if not 1 <= step <= config.steps:
    raise errors.UserError(
      f"--replay={step} is no step of this run; give one from 1 to "
      f"config.steps={config.steps}."
    )
  if workdir_lib.read(workdir) is None:
    raise errors.UserError(
      f"--replay={step}: {workdir} has no run; give the --workdir of one."
    )
  with lock.hold(workdir):
    return _replay(stage, config, workdir, make_batches, step)


def _replay(stage, config, workdir, make_batches, step: int) -> Report:
  workdir_lib.check(workdir, config_lib.to_dict(config), resumes=True)
  mesh = mesh_lib.make(config.mesh)
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  share, size = hosts.share(mesh), config.data.batch_size
  layout = step_lib.batch_shardings(stage, mesh, size, optimizer.accumulate)
  batches = make_batches(share)
  try:
    state = _state_before(
      stage, config, workdir, optimizer, like, batches, step
    )
    first = int(state.step)
    train_step = step_lib.make_train_step(stage, optimizer, mesh, like, size)
    logging.info("Repeating steps %d to %d of %s.", first + 1, step, workdir)
    for _ in range(first, step - 1):
      batch = hosts.to_global(next(batches), layout, share)
      state, _ = train_step(state, batch)
    mine = next(batches)
    batch = hosts.to_global(mine, layout, share)
    norms = step_lib.make_norms(stage, optimizer, mesh, like, size)
    params, grads = jax.device_get(norms(state, batch))
    key = np.asarray(jax.random.key_data(state.rng)).tolist()
    _, metrics = train_step(state, batch)
  finally:
    batches.close()
  folder = workdir / FOLDER / str(step)
  report = Report(
    step=step,
    started_from=first,
    metrics={name: float(x) for name, x in jax.device_get(metrics).items()},
    gradient_norms={name: float(x) for name, x in grads.items()},
    parameter_norms={name: float(x) for name, x in params.items()},
    folder=str(folder),
  )
  _write(folder, report, key, mine)
  return report


def _state_before(stage, config, workdir, optimizer, like, batches, step):
  """Returns the newest state that the run has before a step."""
  steps = [n for n in reader.valid_steps(workdir) if n < step]
  if steps:
    path = workdir / reader.FOLDER / str(steps[-1])
    try:
      fields, note = reader.load(path, like.fields())
    except reader.Damaged as damage:
      raise errors.UserError(
        f"Checkpoint {path} is damaged ({damage}); move it away to begin at "
        "the one before."
      ) from damage
    batches.set_state(note["iterator"])
    return state_lib.TrainState(**fields)
  state = state_lib.create(stage, optimizer, like, config.seed)
  if config.init_from:
    state, _ = warm_start.apply(
      state, config.init_from, stage.name, optimizer, like, stage.warm
    )
  return state


def _write(folder, report: Report, key: list[int], batch: Any) -> None:
  finite = lambda values: {
    name: x if math.isfinite(x) else str(x) for name, x in values.items()
  }
  folder.mkdir(parents=True, exist_ok=True)
  name = f"batch_{jax.process_index()}.npz"
  with (folder / name).open("wb") as file:
    np.savez_compressed(file, **batch)
  if jax.process_index() == 0:
    files.write_json(
      folder / "report.json",
      {
        "step": report.step,
        "started_from": report.started_from,
        "base_key": key,  # Folded with step - 1, see `TrainState.rng`.
        "metrics": finite(report.metrics),
        "gradient_norms": finite(report.gradient_norms),
        "parameter_norms": finite(report.parameter_norms),
      },
    )
