"""Checkpoints that are whole, checked, and hold all that a run needs.

One checkpoint is one Orbax step folder: the arrays of a `TrainState`, and a
sealed note (its custom metadata) with the config, the state of the data
iterator, and a fingerprint of every array. Orbax restores flipped bits of
array data without an error; the fingerprints are what notices.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from genie_jax.core import arrays, errors
from genie_jax.sharding import hosts
from genie_jax.train import explain, failure, fingerprint, storage
from genie_jax.train import state as state_lib

Tree = Any
PathLike = storage.PathLike

FOLDER = "checkpoints"
_STATE = "state"
_COMMITTED = "commit_success.txt"
_FORMAT = 1


class Damaged(ValueError):
  """A checkpoint's bytes are not those that were written."""


def valid_steps(workdir: PathLike) -> list[int]:
  """Returns the steps of finished checkpoints, in order.

  Orbax counts any folder with a number for a name, also an empty one.
  """
  folder = storage.folder(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(
      int(path.name) for path in folder.iterdir()
      if path.name.isdecimal() and (path / _COMMITTED).is_file()
      and (path / _STATE / _COMMITTED).is_file())


class Checkpoints:
  """Saves and restores the checkpoints of one workdir.

  All processes must call each method together.
  """

  def __init__(self, workdir: PathLike, keep: int, keep_every: int = 0):
    """Opens `workdir`, and moves unfinished checkpoints out of the way.

    Args:
      workdir: Checkpoints lie in its folder "checkpoints".
      keep: How many of the newest to keep; 2 or more leave something to fall
        back to.
      keep_every: Also keeps for good each checkpoint whose step is a multiple
        of this; 0 for none.
    """
    if keep < 1:
      raise errors.UserError(
          f"config.keep_checkpoints is {keep}; it must be at least 1.")
    if keep_every < 0:
      raise errors.UserError(
          f"config.keep_every is {keep_every}; give a number of steps, or 0 "
          "to keep only the newest.")
    self._workdir = storage.folder(workdir)
    self._folder = self._workdir / FOLDER
    self._keep, self._keep_every = keep, keep_every
    self._pending: tuple[int, Any] | None = None
    self._orbax: ocp.training.Checkpointer | None = None
    # By one process: another may look when it is half done.
    if jax.process_index() == 0 and self._folder.is_dir():
      finished = valid_steps(self._workdir)
      for path in sorted(self._folder.iterdir()):
        if path.name.isdecimal() and int(path.name) not in finished:
          self._set_aside(int(path.name), "is unfinished")
    hosts.barrier("unfinished checkpoints")

  def save(
      self, state: state_lib.TrainState, data: Any, note: Mapping[str, Any]
  ) -> None:
    """Starts to write a checkpoint of `state.step`, and returns.

    The arrays are copied before it returns, so the state may be donated.

    Args:
      state: The state to save.
      data: Iterator with `get_state()`. Its state must be JSON and the same
        on all processes, as one copy is kept, whatever their number.
      note: JSON to keep beside the arrays, for example the config.

    Raises:
      RunFailed: This or the previous checkpoint could not be written.
    """
    self.wait()
    step = int(state.step)
    note = seal({
        **note,
        "format": _FORMAT,
        "iterator": data.get_state(),
        "arrays": _signatures(_fields(state)),
        "fingerprints": fingerprint.arrays(_fields(state)),
    })
    with explain.Explain(_cannot_write, step, self._workdir):
      response = self._open().save_checkpointables_async(
          step, {_STATE: _fields(state)}, custom_metadata=note)
    if response is None:
      raise failure.RunFailed(
          f"Orbax refused a checkpoint of step {step} in {self._folder}; a "
          "newer step is there, so use another workdir.")
    self._pending = step, response

  def wait(self) -> None:
    """Waits until the last checkpoint is whole on disk.

    Raises:
      RunFailed: It could not be written.
    """
    if self._pending is not None:
      step, response = self._pending
      self._pending = None
      with explain.Explain(_cannot_write, step, self._workdir):
        response.result()

  def restore(
      self, like: state_lib.TrainState, data: Any
  ) -> tuple[state_lib.TrainState, dict[str, Any]] | None:
    """Loads the newest checkpoint that is undamaged.

    Damaged ones are moved to the folder "damaged" with a line in the log.

    Args:
      like: The abstract state with the layouts to restore to; its mesh need
        not be the one that wrote.
      data: Iterator with `set_state()`, set to where the checkpoint was.

    Returns:
      The state and the note given to `save`, or None where there is no
      checkpoint.

    Raises:
      UserError: The checkpoint is of another model, or all are damaged.
    """
    steps = valid_steps(self._workdir)
    hosts.check_same(
        steps[-1] if steps else -1, f"The newest checkpoint in {self._workdir}",
        "--workdir must be on storage that all hosts share (-1 for none).")
    damaged = []
    for step in reversed(steps):
      found, error = None, None
      try:
        found = load(self._folder / str(step), _fields(like))
      except Damaged as damage:
        error = damage
      if hosts.agree(error is None):
        fields, note = found
        # Only now: where none can be read, all are left as they are.
        if jax.process_index() == 0:
          for bad in damaged:
            self._set_aside(bad, "is damaged")
        hosts.barrier("damaged checkpoints")
        data.set_state(note["iterator"])
        return state_lib.TrainState(**fields), note
      logging.warning(
          "Checkpoint of step %d is damaged (%s); falling back to the one "
          "before.", step, error or "seen by another process")
      damaged.append(step)
    if steps:
      raise errors.UserError(
          f"All checkpoints in {self._folder} are damaged ({steps}); start "
          "again in a new workdir.")
    return None

  def close(self) -> None:
    """Waits for the last checkpoint and lets Orbax go."""
    try:
      self.wait()
    finally:
      if self._orbax is not None:
        self._orbax.close()

  def _open(self) -> ocp.training.Checkpointer:
    # Late, as Orbax reads the folder once: damaged steps must be gone by then.
    if self._orbax is None:
      training = ocp.training
      self._orbax = training.Checkpointer(
          self._folder,
          save_decision_policy=(
              training.save_decision_policies.FixedIntervalPolicy(1)),
          preservation_policy=self._policy(),
          cleanup_tmp_directories=True)
    return self._orbax

  def _policy(self) -> Any:
    """Returns which checkpoints Orbax must not delete."""
    policies = ocp.training.preservation_policies
    newest = policies.LatestN(self._keep)
    if not self._keep_every:
      return newest
    return policies.AnyPreservationPolicy(
        [newest, policies.EveryNSteps(self._keep_every)])

  def _set_aside(self, step: int, why: str) -> None:
    """Moves a step out of the way, so that it can be written again."""
    target = self._workdir / "damaged" / str(step)
    target.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while target.exists():
      number += 1
      target = target.with_name(f"{step}.{number}")
    (self._folder / str(step)).rename(target)
    logging.warning(
        "Checkpoint of step %d %s; it was moved to %s.", step, why, target)


def load_params(
    workdir: PathLike, step: int | None = None
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Loads a model without its optimizer, on one process, to host memory.

  Args:
    workdir: Where `genie train` wrote.
    step: Which checkpoint; the newest that is undamaged when left out.

  Returns:
    Parameters and the stage's extra arrays, as nested dicts of numpy arrays
    (also where the stage keeps `extra` in a class of its own), and the config
    of the run as a plain dict.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  def read(path):
    note = read_note(path)
    fields, note = load(path, host_arrays(note, ("params", "extra")))
    return fields["params"], fields.get("extra", {}), note["config"]

  return newest(workdir, step, read)


def host_arrays(note: Mapping[str, Any], groups: tuple[str, ...]) -> Tree:
  """Returns what asks Orbax for these groups of arrays, in host memory."""
  return arrays.unflatten({
      name: _abstract_array(signature)
      for name, signature in note["arrays"].items()
      if name.split("/")[0] in groups})


def newest(
    workdir: PathLike, step: int | None, read: Callable[[epath.Path], Any]
) -> Any:
  """Returns what `read` finds in the newest checkpoint that is undamaged.

  Args:
    workdir: Where `genie train` wrote.
    step: Which checkpoint; the newest that is undamaged when left out.
    read: Given a checkpoint's folder; raises `Damaged`.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  steps = valid_steps(workdir)
  folder = storage.folder(workdir) / FOLDER
  if not steps or (step is not None and step not in steps):
    which = "" if step is None else f" of step {step}"
    raise errors.UserError(
        f"{workdir} has no checkpoint{which} (finished steps: "
        f"{steps or 'none'}); give a workdir that `genie train` wrote.")
  for number in reversed(steps) if step is None else [step]:
    path = folder / str(number)
    try:
      return read(path)
    except Damaged as damage:
      if step is not None:
        raise errors.UserError(
            f"{path} is damaged ({damage}); use another step of "
            f"{steps}.") from damage
      logging.warning(
          "Checkpoint of step %d in %s is damaged (%s); trying the one "
          "before.", number, workdir, damage)
  raise errors.UserError(
      f"All checkpoints in {folder} are damaged ({steps}); train again.")


def seal(note: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON note with a checksum of itself."""
  note = json.loads(json.dumps(note, allow_nan=False))
  return {**note, "seal": _checksum(note)}


def load(path: epath.Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
  """Loads and checks those arrays of a checkpoint that `like` has."""
  note = read_note(path)
  # Parameters first: the optimizer's moments only repeat what is wrong there.
  for name, wanted in sorted(
      _signatures(like).items(), key=lambda item: item[0][:7] != "params/"):
    if note["arrays"].get(name) != wanted:
      raise errors.UserError(
          f"Checkpoint {path} is of another model: it has {name} as "
          f"{note['arrays'].get(name, 'nothing')}, this config needs {wanted}; "
          "use the config that made it, or another workdir.")
  context = ocp.Context()
  context.pytree.loading.partial_load = True  # `like` may lack the optimizer
  with context, explain.Explain(_cannot_read):
    fields = ocp.load_checkpointables(path, {_STATE: like})[_STATE]
  found = fingerprint.arrays(fields)
  wrong = [name for name, digits in found.items()
           if note["fingerprints"][name] != digits]
  if wrong:
    raise Damaged(f"the bits of {', '.join(wrong[:3])} have changed")
  return fields, note


def read_note(path: epath.Path) -> dict[str, Any]:
  """Returns the sealed note of a checkpoint."""
  with explain.Explain(_cannot_read):
    note = dict(ocp.checkpointables_metadata(path).custom_metadata)
  if note.pop("seal", None) != _checksum(note):
    raise Damaged("its note has changed")
  return note


def _checksum(note: Mapping[str, Any]) -> str:
  text = json.dumps(note, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _fields(state: state_lib.TrainState) -> dict[str, Any]:
  return {field.name: getattr(state, field.name)
          for field in dataclasses.fields(state)}


def _signatures(tree: Tree) -> dict[str, str]:
  """Returns path -> for example "float32[64,8]"."""
  return {
      state_lib.path_name(path): f"{x.dtype}[{','.join(map(str, x.shape))}]"
      for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _abstract_array(signature: str) -> np.ndarray:
  """Returns an array that asks Orbax for host memory, itself without any."""
  dtype, shape = signature[:-1].split("[")
  shape = tuple(int(size) for size in shape.split(",") if size)
  return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)


def _cannot_read(error: Exception) -> Damaged:
  return Damaged(f"it cannot be read, {explain.one_line(error)}")


def _cannot_write(
    error: Exception, step: int, workdir: epath.Path
) -> failure.RunFailed:
  steps = valid_steps(workdir)
  return failure.RunFailed(
      f"The checkpoint of step {step} could not be written to {workdir} "
      f"({explain.one_line(error)}); free some space and run the same command, "
      f"which goes on from step {steps[-1] if steps else 0}.")
