"""The one training loop.

Before the first step: lock of the workdir, mesh, abstract state, restore, fork
or create (then a warm start), config.json, metrics. The state is restored
before config.json is written, so that a start that is refused changes nothing
else.

Each step, in this order:

  1. Read a batch and start its transfer, while the device computes the
     previous step. The iterator is never ahead of the state, so a checkpoint
     needs only the state and the iterator's position.
  2. Check the batch on the host: a wrong shape would compile a second step.
  3. Start the step. No results are fetched; the host only waits for the step
     before the previous one, so that batches do not pile up on the device.
  4. Log, if due: fetch all losses since the last time, stop at the first that
     is not finite, write the metrics.
  5. Save, if due: after 4, so that no broken state is saved and that the
     training metrics of all steps up to a saved step are on disk. Between
     saves, emergency checkpoints, if the config asks for them.
  6. Evaluate and draw previews, if due: after 5, because evaluation may fail
     or be killed, and steps are worth more. A run that resumes at a step whose
     evaluation is due and not in metrics.jsonl evaluates first.
  7. Stop, if a signal was received: after a whole step, with a checkpoint.

Evaluation is tried on one batch before the first step, so that a fault in it
shows at once and not at the first `config.eval_every`. A watchdog ends the
process if a part hangs, see `watchdog`.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from genie_jax.checkpoints import emergency as emergency_lib
from genie_jax.checkpoints import manager, replicas
from genie_jax.core import buckets, chips, errors, files, progress
from genie_jax.core import config as config_lib
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import (
  alarms,
  evaluation,
  goodput,
  interrupt,
  lock,
  profile,
  warm_start,
  watchdog,
)
from genie_jax.train import fork as fork_lib
from genie_jax.train import metrics as metrics_lib
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from genie_jax.train import workdir as workdir_lib

# Number of steps that the host may be ahead of the device.
_AHEAD = 2
# For configs of before the field; see `_Run._is_time`.
CHECKPOINT_MINUTES = 10.0
_NO_LOSSES = {"loss_sum": 0.0, "loss_count": 0}


class Batches(Iterator[Mapping[str, np.ndarray]], Protocol):
  """An iterator over a process's rows, for example a `data.loader` iterator."""

  def get_state(self) -> Any:
    """Returns the position as JSON, equal on all processes."""

  def set_state(self, state: Any) -> None:
    """Sets the position."""

  def close(self) -> None:
    """Stops threads and workers."""


MakeBatches = Callable[[hosts.Share], Batches]


class NotFinite(errors.RunFailed):
  """A loss or a gradient became infinite or NaN.

  A resumed run repeats the same steps bit for bit, so a restart does not help.
  """

  code = 3


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a run.

  Attributes:
    step: Number of updates made.
    metrics: The last training and held-out metrics.
    stopped_by: Number of the signal that stopped the run; None if it ended
      regularly.
    warm_start: Report of the arrays loaded from `config.init_from`; None
      without a warm start.
  """

  step: int
  metrics: dict[str, float | None]
  stopped_by: int | None
  warm_start: warm_start.Report | None


def train(
  stage: stage_lib.Stage,
  config: ml_collections.ConfigDict,
  workdir: files.PathLike,
  make_batches: MakeBatches,
  make_eval_batches: MakeBatches | None = None,
  *,
  fixed_clips: evaluation.FixedClips | None = None,
  fork: fork_lib.Fork | None = None,
  profile_steps: tuple[int, int] | None = None,
  began: float | None = None,
) -> Result:
  """Trains a stage until `config.steps`; resumes from a checkpoint if any.

  Args:
    stage: The stage to train.
    config: The whole config, see `experiments/`.
    workdir: Folder for config.json, checkpoints, metrics.jsonl, tensorboard
      and previews. May be in a bucket.
    make_batches: Share of rows -> endless iterator over training batches.
    make_eval_batches: The same for held-out clips; called for each
      evaluation, always with the same first batches. None for no evaluation.
    fixed_clips: Held-out clips for `Stage.score`; None for no such loss.
    fork: Step of another run at which this one begins; ignored when it
      resumes.
    profile_steps: First and last step to trace, see `profile`.
    began: `time.time()` at which this start began, for goodput; by default
      now.

  Raises:
    UserError: The config, the data and the checkpoint do not fit together, or
      another run uses the workdir.
    RunFailed: A loss is not finite, or a checkpoint cannot be written.
  """
  began = time.time() if began is None else began
  workdir = buckets.run_folder(buckets.reached(workdir))
  with lock.hold(workdir):
    return _train(
      stage,
      config,
      workdir,
      make_batches,
      make_eval_batches,
      fixed_clips,
      fork,
      profile_steps,
      began,
    )


def _train(
  stage: stage_lib.Stage,
  config: ml_collections.ConfigDict,
  workdir: epath.Path,
  make_batches: MakeBatches,
  make_eval_batches: MakeBatches | None,
  fixed_clips: evaluation.FixedClips | None,
  fork: fork_lib.Fork | None,
  profile_steps: tuple[int, int] | None,
  began: float,
) -> Result:
  """Trains in a workdir that no other run uses; see `train`."""
  stored = config_lib.to_dict(config)
  note = {
    "stage": stage.name,
    "config": stored,
    "config_fingerprint": config_lib.fingerprint(stored),
  }
  mesh = mesh_lib.make(config.mesh)
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  share = hosts.share(mesh)
  batches = make_batches(share)
  checkpoints = manager.Checkpoints(
    workdir, config.keep_checkpoints, config.keep_every
  )
  resumes = bool(checkpoints.steps())
  workdir_lib.check(workdir, stored, resumes)
  fork_lib.check(workdir, fork, resumes)
  restored = checkpoints.restore(like.fields(), batches)
  report = None
  started = workdir_lib.first_start(workdir)
  clock = goodput.Clock(min(began, started))
  emergency = emergency_lib.opened(
    config, workdir, started, mesh, like.fields()
  )
  restored = emergency.newer(restored, batches)
  interval, skipped = dict(_NO_LOSSES), 0
  if restored:
    fields, earlier = restored
    state = state_lib.TrainState(**fields)
    clock.add_earlier(earlier["clock"])
    # Checkpoints of before have none; then the interval begins here.
    interval = earlier.get("interval", interval)
    skipped = earlier.get("skipped_in_a_row", 0)
    logging.info("Resuming from step %d of %s.", int(state.step), workdir)
  elif fork:
    # The clock is not taken over: a fork counts only its own seconds.
    fields, earlier = fork_lib.restore(
      fork, workdir, stored, optimizer, like.fields(), batches
    )
    state = state_lib.TrainState(**fields)
    interval = earlier.get("interval", interval)
  else:
    state = state_lib.create(stage, optimizer, like, config.seed)
    if config.init_from:
      state, report = warm_start.apply(
        state, config.init_from, stage.name, optimizer, like, stage.warm
      )
  held_out = evaluation.HeldOut(
    stage,
    config,
    mesh,
    like,
    share,
    workdir,
    make_eval_batches,
    fixed_clips,
  )
  number = int(state.step)
  if number < config.steps:
    held_out.check(state)
  workdir_lib.write(workdir, stored)
  # Only a kill between a save and its evaluation leaves one out.
  owed = bool(restored) and not hosts.agree(
    metrics_lib.evaluated(workdir, number)
  )
  writer = metrics_lib.open_writers(workdir, number)
  profiler = profile.Profiler(workdir, profile_steps)
  failed = True
  try:
    run = _Run(
      stage,
      config,
      note,
      optimizer,
      mesh,
      like,
      share,
      clock,
      interval,
      skipped,
      profiler,
      metrics_lib.lines(workdir, number),
    )
    clock.lost["start"] += time.time() - began
    step, values, stopped_by = run.run(
      state, batches, checkpoints, emergency, writer, held_out, owed
    )
    failed = False
  finally:
    with contextlib.ExitStack() as closing:  # Closes the others if one fails.
      # If one process failed, closing would wait for the other processes, which
      # wait for the failed one.
      if not failed or jax.process_count() == 1:
        closing.callback(checkpoints.close)
        closing.callback(emergency.close, not failed and step == config.steps)
      for part in (writer, batches, profiler):
        closing.callback(part.close)
  return Result(step, values, stopped_by, report)


class _Run:
  """The loop and its state between steps."""

  def __init__(
    self,
    stage: stage_lib.Stage,
    config: ml_collections.ConfigDict,
    note: Mapping[str, Any],
    optimizer: optimizer_lib.Optimizer,
    mesh: Mesh,
    like: state_lib.TrainState,
    share: hosts.Share,
    clock: goodput.Clock,
    interval: Mapping[str, float],
    skipped: int,
    profiler: profile.Profiler,
    earlier: Iterable[str],
  ):
    self._stage, self._config, self._share = stage, config, share
    self._note = note  # Stored in every checkpoint.
    self._max_skipped = optimizer.max_skipped
    self._clip_norm = config.optimizer.get("clip_norm", 0.0)
    self._skipped = skipped  # Updates in a row, up to the last fetched step.
    self._profiler = profiler
    size = config.data.batch_size
    self._rows = share.rows(size)
    self._layout = step_lib.batch_shardings(
      stage, mesh, size, optimizer.accumulate
    )
    self._step = step_lib.make_train_step(stage, optimizer, mesh, like, size)
    peak = chips.device_peak_flops(mesh.devices.flat[0].device_kind)
    self._meter = metrics_lib.Meter(
      size, stage.flops_per_clip, peak and peak * mesh.size, clock
    )
    # (step, metrics on the device) that were not fetched yet.
    self._pending: list[tuple[int, step_lib.Metrics]] = []
    self._values: dict[str, float | None] = {}
    # Sum and count of the losses since the last line of the log. It is stored
    # in checkpoints, so that a resumed run has the same lines.
    self._alarms = alarms.Alarms(earlier)
    self._interval = self._new_interval() | dict(interval)

  def run(self, state, batches, checkpoints, emergency, writer, held_out, owed):
    """Runs the steps; see the module's docstring for their order."""
    config = self._config
    number = first = int(state.step)
    saved, saved_at = number if number else -1, time.monotonic()
    # Compiled by the first one of this start.
    draws = True
    is_due = lambda: number == config.steps or number % config.eval_every == 0

    def evaluate():
      nonlocal draws
      with self._meter.excluded("evaluation"):
        with dog.watch("evaluation"):
          self._values |= held_out.run(number, state, writer)
        with dog.watch("drawing previews", compiles=draws):
          held_out.draw(number, state, writer)
      draws = False

    bar = progress.track(
      total=config.steps,
      initial=number,
      unit="steps",
      description=self._stage.name,
      disable=jax.process_index() != 0,
    )
    dog = watchdog.Watchdog(config.get("watchdog_seconds", watchdog.SECONDS))
    with interrupt.Interrupt() as signals, bar, dog:
      if owed and is_due():
        evaluate()
      while number < config.steps and not signals.requested(number):
        number += 1
        compiles = number == first + 1
        with (
          self._profiler.step(number),
          dog.watch("a step", compiles=compiles),
        ):
          state = self._advance(state, batches, number, compiles)
        self._profiler.after(number, self._pending[-1][1])
        bar.update(1)
        last = number == config.steps
        if last or number % config.log_every == 0:
          with dog.watch("waiting for metrics"):
            self._log(number, writer, bar)
        if (
          last
          or number % config.checkpoint_every == 0
          or self._is_time(saved_at)
        ):
          with dog.watch("saving"):
            emergency.settle()
            self._save(state, batches, checkpoints)
          saved, saved_at = number, time.monotonic()
        elif emergency.is_due(number):
          with dog.watch("saving an emergency checkpoint"):
            checkpoints.wait()  # Orbax cannot do both at once.
            self._save(state, batches, emergency)
        if is_due():
          self._fetch_metrics()
          evaluate()
      self._fetch_metrics()
      with dog.watch("saving"):
        emergency.settle()
        if number not in (saved, 0):
          self._save(state, batches, checkpoints)
        checkpoints.wait()
      return number, self._values, signals.signal

  def _is_time(self, saved_at: float) -> bool:
    """Returns whether to save because of the time since the last save.

    Clocks differ between processes, so several processes save by steps only.
    """
    seconds = 60 * self._config.get("checkpoint_minutes", CHECKPOINT_MINUTES)
    return (
      seconds > 0
      and jax.process_count() == 1
      and time.monotonic() - saved_at >= seconds
    )

  def _advance(self, state, batches, number: int, compiles: bool):
    begin = time.perf_counter()
    if compiles:
      with self._meter.excluded("start"):
        batch = self._read(batches, number)
      with self._meter.excluded("compile"):
        state, metrics = self._step(state, batch)
        jax.block_until_ready(metrics)
      logging.info(
        "First step, compiling included: %.1f s.", time.perf_counter() - begin
      )
    else:
      batch = self._read(batches, number)
      waited = time.perf_counter() - begin
      last: Any = self._pending[-1][1]["loss"] if self._pending else None
      idle = last is None or last.is_ready()
      state, metrics = self._step(state, batch)
      self._meter.step(waited if idle else 0.0, host=waited)
    self._pending.append((number, metrics))
    if len(self._pending) > _AHEAD:
      self._pending[-1 - _AHEAD][1]["loss"].block_until_ready()
    return state

  def _read(self, batches, number: int):
    """Returns the next batch as global arrays on their way to the devices."""
    try:
      batch = next(batches)
    except StopIteration as error:
      raise errors.UserError(
        f"config.data.path has no clips left at step {number} of "
        f"{self._config.steps}; use a loader that repeats the data."
      ) from error
    step_lib.check_batch(self._stage, batch, self._rows)
    return hosts.to_global(batch, self._layout, self._share)

  def _fetch_metrics(self) -> None:
    """Fetches pending metrics; raises NotFinite if one is not finite."""
    pending, self._pending = self._pending, []
    if not pending:
      return
    names = ("loss", "grad_norm")
    fetched = jax.device_get(
      [{name: metrics[name] for name in names} for _, metrics in pending]
    )
    for (number, _), values in zip(pending, fetched, strict=True):
      bad = [name for name in names if not math.isfinite(values[name])]
      if bad:
        self._skip(number, f"{bad[0]} is {values[bad[0]]} at step {number}")
        continue
      self._skipped = 0
      self._interval["loss_sum"] += float(values["loss"])
      self._interval["loss_count"] += 1
      if self._clip_norm:
        clipped = values["grad_norm"] > self._clip_norm
        self._interval["clipped_steps"] += int(clipped)
    # The metrics of the last step; of the loss, the sum is logged as well.
    self._values |= {
      name: float(x) for name, x in jax.device_get(pending[-1][1]).items()
    }

  def _new_interval(self) -> dict[str, float]:
    counts = {
      "skipped_steps": self._max_skipped,
      "clipped_steps": self._clip_norm,
    }
    return _NO_LOSSES | {name: 0.0 for name, is_on in counts.items() if is_on}

  def _skip(self, number: int, what: str) -> None:
    """Counts an update that was skipped; raises NotFinite after too many."""
    self._skipped += 1
    if self._skipped > self._max_skipped:
      limit = (
        f", after {self._max_skipped} skipped updates in a row"
        if self._max_skipped
        else ""
      )
      raise NotFinite(
        f"{what}{limit}; no step after the last checkpoint was saved, and a "
        "restart would end in the same way. To see why, add "
        f"--replay={number}. To go on without such updates, add "
        f"--config.optimizer.max_skipped={max(10, 2 * self._max_skipped)}; to "
        "train again, lower optimizer.peak_lr or set optimizer.clip_norm, and "
        "start in a new workdir."
      )
    self._interval["skipped_steps"] += 1
    logging.warning(
      "%s; this update is skipped (%d in a row, config.optimizer.max_skipped "
      "is %d).",
      what,
      self._skipped,
      self._max_skipped,
    )

  def _log(self, number: int, writer, bar) -> None:
    self._fetch_metrics()
    values = self._values | self._interval | self._meter.read()
    self._values, self._interval = values, self._new_interval()
    training = {n: x for n, x in values.items() if not n.startswith("eval/")}
    for name, message in self._alarms.watch(training).items():
      logging.warning("Step %d: %s.", number, message)
      training[f"alarm/{name}"] = 1
    writer.scalars(number, training)
    with bar.external_write_mode():
      logging.info(
        "%s", metrics_lib.summary(number, self._config.steps, training)
      )

  def _save(self, state, batches, target) -> None:
    self._fetch_metrics()
    clock = self._meter.note()
    with self._meter.excluded("checkpoint"):
      fields = state.fields()
      replicas.check(fields, int(state.step))
      target.save(
        fields,
        batches,
        {
          **self._note,
          "clock": clock,
          "interval": dict(self._interval),
          "skipped_in_a_row": self._skipped,
        },
      )
