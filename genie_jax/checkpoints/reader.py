"""Finds, verifies and reads checkpoints on disk.

A checkpoint is an Orbax step folder: the arrays of a `TrainState`, and a note
(Orbax's custom metadata) with the config, the state of the data iterator, a
fingerprint of every array, and a checksum of the note itself. Orbax restores
array data with flipped bits without an error; the fingerprints detect it.
"""

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

from genie_jax.checkpoints import fingerprint
from genie_jax.core import buckets, errors, files
from genie_jax.weights import param_tree

Tree = Any
PathLike = files.PathLike

FOLDER = "checkpoints"
STATE = "state"
_COMMITTED = "commit_success.txt"


class Damaged(ValueError):
  """A checkpoint's bytes differ from those that were written."""


def valid_steps(workdir: PathLike) -> list[int]:
  """Returns the steps of finished checkpoints, in order.

  Orbax itself would count any folder whose name is a number, even an empty one.
  """
  folder = buckets.run_folder(workdir) / FOLDER
  if not folder.is_dir():
    return []
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdecimal()
    and (path / _COMMITTED).is_file()
    and (path / STATE / _COMMITTED).is_file()
  )


def load_params(
  workdir: PathLike, step: int | None = None
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Loads a model without optimizer state, on one process, to host memory.

  Args:
    workdir: A workdir of `genie train`.
    step: Step of the checkpoint; by default the newest undamaged one.

  Returns:
    Parameters and the stage's extra arrays, as nested dicts of numpy arrays
    (even if the stage's `extra` has its own classes), and the config of the
    run as a plain dict.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """

  def read(path):
    note = read_note(path)
    fields, note = load(path, host_arrays(note, ("params", "extra")))
    return fields["params"], fields.get("extra", {}), note["config"]

  return newest(workdir, step, read)


def host_arrays(note: Mapping[str, Any], groups: tuple[str, ...]) -> Tree:
  """Returns a tree with which Orbax loads these groups to host memory."""
  return param_tree.unflatten(
    {
      name: _abstract_array(signature)
      for name, signature in note["arrays"].items()
      if name.split("/")[0] in groups
    }
  )


def newest(
  workdir: PathLike, step: int | None, read: Callable[[epath.Path], Any]
) -> Any:
  """Reads the newest undamaged checkpoint, or that of a given step.

  Args:
    workdir: A workdir of `genie train`.
    step: Step of the checkpoint; None for the newest undamaged one.
    read: Function from a checkpoint's folder to the result; raises `Damaged`.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  steps = valid_steps(workdir)
  folder = buckets.run_folder(workdir) / FOLDER
  if not steps or (step is not None and step not in steps):
    which = "" if step is None else f" of step {step}"
    raise errors.UserError(
      f"{workdir} has no checkpoint{which} (finished steps: "
      f"{steps or 'none'}); use a workdir that `genie train` wrote."
    )
  for number in reversed(steps) if step is None else [step]:
    path = folder / str(number)
    try:
      return read(path)
    except Damaged as damage:
      if step is not None:
        raise errors.UserError(
          f"{path} is damaged ({damage}); use another step of {steps}."
        ) from damage
      logging.warning(
        "Checkpoint of step %d in %s is damaged (%s); trying the one before.",
        number,
        workdir,
        damage,
      )
  raise errors.UserError(
    f"All checkpoints in {folder} are damaged ({steps}); train again."
  )


def load(path: epath.Path, like: Tree) -> tuple[Tree, dict[str, Any]]:
  """Loads and verifies the arrays of a checkpoint that are in `like`."""
  note = read_note(path)
  # Parameters first: their mismatches also appear in the optimizer state.
  for name, wanted in sorted(
    signatures(like).items(), key=lambda item: item[0][:7] != "params/"
  ):
    if note["arrays"].get(name) != wanted:
      raise errors.UserError(
        f"Checkpoint {path} is of another model: it has {name} as "
        f"{note['arrays'].get(name, 'no array')}, this config needs {wanted}; "
        "use the config that made it, or another workdir."
      )
  context = ocp.Context()
  # `like` may have no optimizer state.
  context.pytree.loading.partial_load = True
  with context, Explain(cannot_read):
    fields = ocp.load_checkpointables(path, {STATE: like})[STATE]
  found = fingerprint.arrays(fields)
  wrong = [
    name
    for name, digits in found.items()
    if note["fingerprints"][name] != digits
  ]
  if wrong:
    raise Damaged(f"the bits of {', '.join(wrong[:3])} have changed")
  return fields, note


def read_note(path: epath.Path) -> dict[str, Any]:
  """Returns the note of a checkpoint, after verifying its checksum."""
  with Explain(cannot_read):
    found: Any = ocp.checkpointables_metadata(path).custom_metadata
    note: dict[str, Any] = dict(found)
  if note.pop("seal", None) != _checksum(note):
    raise Damaged("its note has changed")
  return note


def seal(note: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON note with a checksum of its content added."""
  note = json.loads(json.dumps(note, allow_nan=False))
  return {**note, "seal": _checksum(note)}


def signatures(tree: Tree) -> dict[str, str]:
  """Returns path -> dtype and shape, for example "float32[64,8]"."""
  return {
    param_tree.path_name(path): f"{x.dtype}[{','.join(map(str, x.shape))}]"
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _checksum(note: Mapping[str, Any]) -> str:
  text = json.dumps(note, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _abstract_array(signature: str) -> np.ndarray:
  """Returns a numpy array, which makes Orbax load to host memory.

  The array itself uses no memory.
  """
  dtype, shape = signature[:-1].split("[")
  shape = tuple(int(size) for size in shape.split(",") if size)
  return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)


def cannot_read(error: Exception) -> Damaged:
  """Returns the exception to raise if a checkpoint cannot be read."""
  return Damaged(f"it cannot be read, {one_line(error)}")


class Explain:
  """Context that passes file errors to a function and raises its result.

  Truncated arrays raise a bare Exception, damaged indices ValueError, a full
  disk one of several types. So all exceptions count as file errors, except
  types that indicate an error in the program.
  """

  _PASS = (
    AssertionError,
    AttributeError,
    MemoryError,
    PermissionError,
    RuntimeError,
    TypeError,
  )

  def __init__(self, explain, *details):
    """Prepares to raise `explain(error, *details)`."""
    self._explain, self._details = explain, details

  def __enter__(self):
    pass

  def __exit__(self, kind, error, traceback):
    del kind, traceback
    if isinstance(error, Exception) and not isinstance(error, self._PASS):
      raise self._explain(error, *self._details) from error


def one_line(error: Exception) -> str:
  """Returns an error's type and the start of its message."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
