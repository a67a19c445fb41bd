"""Saves and restores checkpoints, and verifies that they are complete.

The content of a checkpoint, and how it is read, is described in `reader`.
"""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from genie_jax.checkpoints import fingerprint, reader
from genie_jax.core import errors
from genie_jax.sharding import hosts


class Checkpoints:
  """Saves and restores the checkpoints of one workdir.

  All processes must call each method together.
  """

  def __init__(self, workdir: epath.Path, keep: int, keep_every: int = 0):
    """Opens `workdir`, and moves unfinished checkpoints out of the way.

    Args:
      workdir: The run's folder, see `buckets.run_folder`; checkpoints are
        stored in its folder "checkpoints".
      keep: Number of newest checkpoints to keep; with 2 or more a damaged one
        can be replaced by an earlier one.
      keep_every: Checkpoints whose step is a multiple of this are never
        deleted; 0 for none.
    """
    if keep < 1:
      raise errors.UserError(
        f"config.keep_checkpoints is {keep}; it must be at least 1."
      )
    if keep_every < 0:
      raise errors.UserError(
        f"config.keep_every is {keep_every}; use a number of steps, or 0 "
        "to keep only the newest."
      )
    self._workdir = workdir
    self._folder = workdir / reader.FOLDER
    self._keep, self._keep_every = keep, keep_every
    self._pending: tuple[int, Any] | None = None
    self._orbax: ocp.training.Checkpointer | None = None
    self._failed = False  # Whether a save has raised.
    # Only on process 0; the others wait at the barrier.
    if jax.process_index() == 0 and self._folder.is_dir():
      finished = self.steps()
      for path in sorted(self._folder.iterdir()):
        if path.name.isdecimal() and int(path.name) not in finished:
          self._set_aside(int(path.name), "is unfinished")
    hosts.barrier("unfinished checkpoints")

  def steps(self) -> list[int]:
    """Returns the steps of finished checkpoints, in order."""
    return reader.finished_steps(self._folder)

  def save(
    self, fields: Mapping[str, Any], data: Any, note: Mapping[str, Any]
  ) -> None:
    """Starts writing the checkpoint of `fields["step"]`, and returns.

    The arrays are copied before it returns, so they may be donated.

    Args:
      fields: Trees of arrays by name, including the scalar "step".
      data: Iterator with `get_state()`. Its state must be JSON and the same
        on all processes, because only one copy is saved.
      note: JSON to store next to the arrays, for example the config.

    Raises:
      RunFailed: This or the previous checkpoint could not be written.
    """
    self.wait()
    step = int(fields["step"])
    note = reader.seal(
      {
        **note,
        "format": reader.FORMAT,
        "iterator": data.get_state(),
        "arrays": reader.signatures(fields),
        "fingerprints": fingerprint.arrays(fields),
      }
    )
    with reader.Explain(self._cannot_write, step):
      response = self._open().save_checkpointables_async(
        step, {reader.STATE: dict(fields)}, custom_metadata=note
      )
    if response is None:
      raise errors.RunFailed(
        f"Orbax refused a checkpoint of step {step} in {self._folder}, which "
        "has a newer step; use another workdir."
      )
    self._pending = step, response

  def wait(self) -> None:
    """Waits until the last checkpoint is complete on disk.

    Raises:
      RunFailed: It could not be written.
    """
    if self._pending is not None:
      step, response = self._pending
      self._pending = None
      with reader.Explain(self._cannot_write, step):
        response.result()

  def restore(
    self, like: Mapping[str, Any], data: Any
  ) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Loads the newest undamaged checkpoint.

    Damaged checkpoints are moved to the folder "damaged", and this is logged.

    Args:
      like: Abstract trees by name with the layouts to restore to; their mesh
        may differ from that of the checkpoint.
      data: Iterator with `set_state()`, which is set to the checkpoint's state.

    Returns:
      The trees by name, and the note given to `save`; None if there is no
      checkpoint.

    Raises:
      UserError: The checkpoint is of another model, or all are damaged.
    """
    steps = self.steps()
    hosts.check_same(
      steps[-1] if steps else -1,
      f"The newest checkpoint in {self._workdir}",
      "--workdir must be on storage that all hosts share (-1 for none).",
    )
    damaged = []
    for step in reversed(steps):
      found, error = None, None
      try:
        found = reader.load(self._folder / str(step), dict(like))
      except reader.Damaged as damage:
        error = damage
      if hosts.agree(found is not None) and found is not None:
        fields, note = found
        # Only now: if no checkpoint can be read, none is moved.
        if jax.process_index() == 0:
          for bad in damaged:
            self._set_aside(bad, "is damaged")
        hosts.barrier("damaged checkpoints")
        data.set_state(note["iterator"])
        return fields, note
      logging.warning(
        "Checkpoint of step %d is damaged (%s); falling back to the one "
        "before.",
        step,
        error or "detected by another process",
      )
      damaged.append(step)
    if steps:
      raise errors.UserError(
        f"All checkpoints in {self._folder} are damaged ({steps}); start "
        "again in a new workdir."
      )
    return None

  def close(self) -> None:
    """Waits for the last checkpoint and closes Orbax.

    Raises:
      RunFailed: The last checkpoint could not be written.
    """
    try:
      self.wait()
    finally:
      orbax, self._orbax = self._orbax, None
      try:
        if orbax is not None:
          orbax.close()
      except Exception as error:
        # A save that has failed is raised once more here.
        if not self._failed:
          raise
        logging.debug("Closing Orbax: %s", reader.one_line(error))

  def _open(self) -> ocp.training.Checkpointer:
    # Opened as late as possible: Orbax lists the folder once, and damaged steps
    # must have been moved by then.
    if self._orbax is None:
      training = ocp.training
      # Any, because Orbax's class does not match its own protocol.
      every_step: Any = training.save_decision_policies.FixedIntervalPolicy(1)
      self._orbax = training.Checkpointer(
        self._folder,
        save_decision_policy=every_step,
        preservation_policy=self._policy(),
        cleanup_tmp_directories=True,
      )
    return self._orbax

  def _policy(self) -> Any:
    """Returns the policy for checkpoints that Orbax must not delete."""
    policies = ocp.training.preservation_policies
    newest = policies.LatestN(self._keep)
    if not self._keep_every:
      return newest
    return policies.AnyPreservationPolicy(
      [newest, policies.EveryNSteps(self._keep_every)]
    )

  def _set_aside(self, step: int, why: str) -> None:
    """Moves a checkpoint to "damaged", so that its step can be saved again."""
    target = self._workdir / "damaged" / str(step)
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while target.exists():
      number += 1
      target = target.with_name(f"{step}.{number}")
    (self._folder / str(step)).rename(target)
    logging.warning(
      "Checkpoint of step %d %s; it was moved to %s.", step, why, target
    )

  def _cannot_write(self, error: Exception, step: int) -> errors.RunFailed:
    self._failed = True
    steps = self.steps()
    return errors.RunFailed(
      f"The checkpoint of step {step} could not be written to "
      f"{self._workdir} ({reader.one_line(error)}); free some space and run "
      "the same command, which resumes from step "
      f"{steps[-1] if steps else 0}."
    )
