"""Finds, verifies and reads checkpoints on disk, whole or a piece at a time.

A checkpoint is an Orbax step folder: the arrays of a `TrainState`, and a note
(Orbax's custom metadata) with the config, the state of the data iterator, a
fingerprint of every array, and a checksum of the note itself. Orbax restores
array data with flipped bits without an error; the fingerprints detect it.
"""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from genie_jax.checkpoints import fingerprint
from genie_jax.core import errors
from genie_jax.weights import lazy_array, param_tree

Tree = Any

FORMAT = 1  # docs/formats.md
FOLDER = "checkpoints"
STATE = "state"
GROUP_BYTES = 1 << 25  # Size of a group of small arrays read together.
_COMMITTED = "commit_success.txt"
# Number of values summed at once for a fingerprint; several copies of them are
# in memory.
_VALUES = 1 << 20


class Damaged(ValueError):
  """A checkpoint's bytes differ from those that were written."""


def valid_steps(workdir: epath.Path) -> list[int]:
  """Returns the steps of a run's finished checkpoints, in order."""
  return finished_steps(workdir / FOLDER)


def finished_steps(folder: epath.Path) -> list[int]:
  """Returns the steps of the finished checkpoints in a folder, in order.

  Orbax itself would count any folder whose name is a number, even an empty one.
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
  """Loads a model without optimizer state, on one process, to host memory.

  Args:
    workdir: A workdir of `genie train`, see `buckets.run_folder`.
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


def lazy_params(
  workdir: epath.Path,
  step: int | None = None,
  *,
  group_bytes: int = GROUP_BYTES,
) -> tuple[Tree, dict[str, Any]]:
  """Like `load_params`, for models larger than memory.

  Each read by Orbax takes tens of milliseconds, however small, so small arrays
  are read in groups. The last group stays in memory, because its arrays are
  used one after the other. An array larger than a group is read in boxes of
  whole chunks as stored by TensorStore: a chunk is one device's part of the
  array when it was saved, and at most 2 GB.

  All arrays are read and checked once by this function, piece by piece, and
  again when they are used later. In memory is one group, or for a larger array
  a piece of `lazy_array.PIECE_BYTES` (or one chunk if that is larger), and once
  or twice as much for decoding it.

  Args:
    workdir: A workdir of `genie train`, see `buckets.run_folder`.
    step: Step of the checkpoint; by default the newest undamaged one.
    group_bytes: Largest size of a group of arrays that are read together.

  Returns:
    Parameters as nested dicts of `lazy_array.Lazy`, and the run's config.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """

  def read(path):
    note = read_note(path)
    flat = param_tree.flatten(host_arrays(note, ("params",)))
    large = {
      name: like
      for name, like in flat.items()
      if _num_bytes(like) > group_bytes
    }
    groups = _Groups(
      path,
      _in_groups(
        {name: like for name, like in flat.items() if name not in large},
        group_bytes,
      ),
    )
    for group in groups.groups:
      groups.read(group)
    groups.forget()
    lazy: dict[str, lazy_array.Lazy] = {
      name: lazy_array.Deferred(
        like.shape, like.dtype, functools.partial(groups.get, name)
      )
      for name, like in flat.items()
      if name not in large
    }
    for name, like in large.items():
      chunks = _Chunks(path, name, like)
      chunks.check(note["fingerprints"][name])
      lazy[name] = lazy_array.Parted(
        like.shape, like.dtype, chunks.unit, chunks.get
      )
    return param_tree.unflatten(lazy)["params"], note["config"]

  return newest(workdir, step, read)


def sealed_config(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns the config in the newest undamaged note; None without checkpoint.

  The note has a checksum, so unlike config.json it cannot be edited.

  Args:
    workdir: A workdir of `genie train`, see `buckets.run_folder`.

  Raises:
    UserError: The notes of all checkpoints are damaged.
  """
  if not valid_steps(workdir):
    return None
  return newest(workdir, None, lambda path: read_note(path)["config"])


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
  workdir: epath.Path, step: int | None, read: Callable[[epath.Path], Any]
) -> Any:
  """Reads the newest undamaged checkpoint, or that of a given step.

  Args:
    workdir: A workdir of `genie train`, see `buckets.run_folder`.
    step: Step of the checkpoint; None for the newest undamaged one.
    read: Function from a checkpoint's folder to the result; raises `Damaged`.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  folder = workdir / FOLDER
  steps = finished_steps(folder)
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
  """Returns the note of a checkpoint, after verifying its checksum.

  Raises:
    Damaged: The note cannot be read, or has changed.
    UserError: The checkpoint has a newer format.
  """
  with Explain(cannot_read):
    found: Any = ocp.checkpointables_metadata(path).custom_metadata
    note: dict[str, Any] = dict(found)
  if note.pop("seal", None) != _checksum(note):
    raise Damaged("its note has changed")
  if note.get("format", 1) > FORMAT:
    raise errors.UserError(
      f"{path} has format {note['format']} of checkpoints, and this program "
      f"reads up to {FORMAT}; use the version of genie_jax that wrote it, or a "
      "newer one."
    )
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
  """Returns an error's type, and the start and the end of its message."""
  text = " ".join(str(error).split())
  if len(text) > 300:
    text = f"{text[:120]}...{text[-150:]}"
  return f"{type(error).__name__}: {text}"


def _num_bytes(like: Any) -> int:
  return math.prod(like.shape) * like.dtype.itemsize


def _in_groups(flat: dict[str, Any], group_bytes: int) -> list[dict[str, Any]]:
  groups, room = [], 0
  for name, like in flat.items():
    size = _num_bytes(like)
    if size > room or not groups:
      groups.append({})
      room = group_bytes
    groups[-1][name] = like
    room -= size
  return groups


class _Groups:
  """Reads arrays of one checkpoint, and caches the last group."""

  def __init__(self, path: Any, groups: list[dict[str, Any]]):
    self.groups = groups
    self._path = path
    self._owner = {
      name: number for number, group in enumerate(groups) for name in group
    }
    self._last: dict[str, np.ndarray] = {}

  def read(self, group: dict[str, Any]) -> None:
    self.forget()  # Frees the previous group before reading.
    fields, _ = load(self._path, param_tree.unflatten(group))
    self._last = param_tree.flatten(fields)

  def forget(self) -> None:
    self._last = {}

  def get(self, name: str) -> np.ndarray:
    if name not in self._last:
      try:
        self.read(self.groups[self._owner[name]])
      except Damaged as damage:
        raise _changed(self._path, damage) from damage
    return self._last[name]


class _Chunks:
  """Reads boxes of one array, and checks that they did not change.

  Attributes:
    unit: Shape of the array's chunks.
  """

  def __init__(self, path: Any, name: str, like: Any):
    """Opens an array in a checkpoint's folder, in Orbax's layout."""
    self._path, self._name = path, name
    place = str(path / STATE)
    with Explain(cannot_read):
      self._array = tensorstore.open(
        {
          "driver": "zarr3",
          "kvstore": {
            "driver": "ocdbt",
            "base": f"{place if '://' in place else f'file://{place}'}/",
            "path": f"{name.replace('/', '.')}/",
          },
          # Reads one chunk after the other, so that only one is in memory.
          "context": {
            "file_io_concurrency": {"limit": 1},
            "data_copy_concurrency": {"limit": 1},
          },
        },
        read=True,
        open=True,
      ).result()
    found = self._array.shape, self._array.dtype.numpy_dtype
    if found != (like.shape, like.dtype):
      raise Damaged(f"{name} has the wrong shape or type")
    chunk = self._array.chunk_layout.read_chunk.shape
    self.unit = tuple(size or 1 for size in chunk or like.shape)
    self._words: dict[Any, tuple[int, int]] = {}

  def check(self, digits: str) -> None:
    """Reads all boxes; raises `Damaged` if their fingerprint differs."""
    like = lazy_array.Parted(
      self._array.shape, self._array.dtype.numpy_dtype, self.unit, self._read
    )
    self._words = {
      key: words
      for box, block in lazy_array.each(like)
      for key, words in _sums(box, block)
    }
    if fingerprint.joined(self._words.values()) != digits:
      raise Damaged(f"the bits of {self._name} have changed")

  def get(self, box: Any) -> np.ndarray:
    try:
      block = self._read(box)
      if any(
        self._words.get(key, words) != words for key, words in _sums(box, block)
      ):
        raise Damaged(f"the bits of {self._name} have changed")
    except Damaged as damage:
      raise _changed(self._path, damage) from damage
    return block

  def _read(self, box: Any) -> np.ndarray:
    with Explain(cannot_read):
      return self._array[box].read().result()


def _sums(
  box: lazy_array.Box, block: np.ndarray
) -> Iterator[tuple[Any, tuple[int, int]]]:
  """Yields small boxes, and the contribution of each to a fingerprint."""
  for inner in lazy_array.boxes(block.shape, _VALUES):
    corner = tuple(
      outer.start + own.start for outer, own in zip(box, inner, strict=True)
    )
    yield (corner, block[inner].shape), fingerprint.part(block[inner], corner)


def _changed(path: Any, damage: Damaged) -> errors.UserError:
  return errors.UserError(
    f"{path} was damaged while it was read ({damage}); try again."
  )
