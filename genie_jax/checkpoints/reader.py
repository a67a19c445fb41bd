"""Checkpoints as they lie on disk: found, checked and read.

One checkpoint is one Orbax step folder: the arrays of a `TrainState`, and a
sealed note (its custom metadata) with the config, the state of the data
iterator, and a fingerprint of every array. Orbax restores flipped bits of
array data without an error; the fingerprints are what notices.
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
from genie_jax.core import errors
from genie_jax.weights import param_tree

Tree = Any

FOLDER = "checkpoints"
STATE = "state"
_COMMITTED = "commit_success.txt"


class Damaged(ValueError):
  """A checkpoint's bytes are not those that were written."""


def valid_steps(workdir: epath.Path) -> list[int]:
  """Returns the steps of a run's finished checkpoints, in order."""
  return finished_steps(workdir / FOLDER)


def finished_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of the finished checkpoints in a folder, in order.

  Orbax counts any folder with a number for a name, also an empty one.
  """
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
  workdir: epath.Path, step: int | None = None
) -> tuple[Tree, Tree, dict[str, Any]]:
  """Loads a model without its optimizer, on one process, to host memory.

  Args:
    workdir: Where `genie train` wrote, see `buckets.run_folder`.
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
  return param_tree.unflatten(
    {
      name: _abstract_array(signature)
      for name, signature in note["arrays"].items()
      if name.split("/")[0] in groups
    }
  )


def newest(
  workdir: epath.Path, step: int | None, read: Callable[[epath.Path], Any]
) -> Any:
  """Returns what `read` finds in the newest checkpoint that is undamaged.

  Args:
    workdir: Where `genie train` wrote, see `buckets.run_folder`.
    step: Which checkpoint; the newest that is undamaged when left out.
    read: Given a checkpoint's folder; raises `Damaged`.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  folder = workdir / FOLDER
  steps = finished_steps(folder)
  if not steps or (step is not None and step not in steps):
    which = "" if step is None else f" of step {step}"
    raise errors.UserError(
      f"{workdir} has no checkpoint{which} (finished steps: "
      f"{steps or 'none'}); give a workdir that `genie train` wrote."
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
  """Loads and checks those arrays of a checkpoint that `like` has."""
  note = read_note(path)
  # Parameters first: the optimizer's moments only repeat what is wrong there.
  for name, wanted in sorted(
    signatures(like).items(), key=lambda item: item[0][:7] != "params/"
  ):
    if note["arrays"].get(name) != wanted:
      raise errors.UserError(
        f"Checkpoint {path} is of another model: it has {name} as "
        f"{note['arrays'].get(name, 'nothing')}, this config needs {wanted}; "
        "use the config that made it, or another workdir."
      )
  context = ocp.Context()
  context.pytree.loading.partial_load = True  # `like` may lack the optimizer
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
  """Returns the sealed note of a checkpoint."""
  with Explain(cannot_read):
    found: Any = ocp.checkpointables_metadata(path).custom_metadata
    note: dict[str, Any] = dict(found)
  if note.pop("seal", None) != _checksum(note):
    raise Damaged("its note has changed")
  return note


def seal(note: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a JSON note with a checksum of itself."""
  note = json.loads(json.dumps(note, allow_nan=False))
  return {**note, "seal": _checksum(note)}


def signatures(tree: Tree) -> dict[str, str]:
  """Returns path -> for example "float32[64,8]", as a note has it."""
  return {
    param_tree.path_name(path): f"{x.dtype}[{','.join(map(str, x.shape))}]"
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _checksum(note: Mapping[str, Any]) -> str:
  text = json.dumps(note, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _abstract_array(signature: str) -> np.ndarray:
  """Returns an array that asks Orbax for host memory, itself without any."""
  dtype, shape = signature[:-1].split("[")
  shape = tuple(int(size) for size in shape.split(",") if size)
  return np.broadcast_to(np.zeros((), jnp.dtype(dtype)), shape)


def cannot_read(error: Exception) -> Damaged:
  """Returns what to raise where a checkpoint cannot be read."""
  return Damaged(f"it cannot be read, {one_line(error)}")


class Explain:
  """Context that passes errors of files to a function and raises its result.

  Truncated arrays raise a bare Exception, damaged indices ValueError, a full
  disk one of several: only what tells of the program can be told apart.
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
  """Returns an error's kind and the start of its message."""
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
