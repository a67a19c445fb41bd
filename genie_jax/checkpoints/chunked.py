"""Checkpoints of models larger than host memory, read a piece at a time.

Each read of Orbax costs tens of milliseconds, however small, so small arrays
are read in groups; the last group stays in memory, as its arrays are asked for
one after the other. An array larger than a group is read in boxes of whole
chunks, as TensorStore stored them: a chunk is one device's part of the array
when it was saved, and Orbax makes none larger than 2 GB.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorstore
from etils import epath

from genie_jax.checkpoints import fingerprint, reader
from genie_jax.checkpoints import reader as reader_lib
from genie_jax.core import errors
from genie_jax.weights import lazy_array, param_tree

GROUP_BYTES = 1 << 25
# What is summed at once for a fingerprint; several copies of it are made.
_VALUES = 1 << 20


def params(
  workdir: epath.Path,
  step: int | None = None,
  *,
  group_bytes: int = GROUP_BYTES,
) -> tuple[reader_lib.Tree, dict[str, Any]]:
  """Like `reader.load_params`, for models larger than memory.

  All arrays are read and checked once here, piece by piece, and again when
  they are asked for later. In memory is a group, or of a larger array a piece
  of `lazy_array.PIECE_BYTES`, or one chunk of it if that is larger; and what it
  takes to decode that, which is as much again once or twice.

  Args:
    workdir: Where `genie train` wrote, see `buckets.run_folder`.
    step: Which checkpoint; the newest that is undamaged when left out.
    group_bytes: Most bytes of arrays that are read together and whole.

  Returns:
    Parameters as nested dicts of `lazy_array.Lazy`, and the run's config.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """

  def read(path):
    note = reader_lib.read_note(path)
    flat = param_tree.flatten(reader_lib.host_arrays(note, ("params",)))
    large = {
      name: like
      for name, like in flat.items()
      if _num_bytes(like) > group_bytes
    }
    reader = _Reader(
      path,
      _groups(
        {name: like for name, like in flat.items() if name not in large},
        group_bytes,
      ),
    )
    for group in reader.groups:
      reader.read(group)
    reader.forget()
    lazy: dict[str, lazy_array.Lazy] = {
      name: lazy_array.Deferred(
        like.shape, like.dtype, functools.partial(reader.get, name)
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

  return reader_lib.newest(workdir, step, read)


def _num_bytes(like: Any) -> int:
  return math.prod(like.shape) * like.dtype.itemsize


def _groups(flat: dict[str, Any], group_bytes: int) -> list[dict[str, Any]]:
  groups, room = [], 0
  for name, like in flat.items():
    size = _num_bytes(like)
    if size > room or not groups:
      groups.append({})
      room = group_bytes
    groups[-1][name] = like
    room -= size
  return groups


class _Reader:
  """Reads arrays of one checkpoint; keeps the group that was read last."""

  def __init__(self, path: Any, groups: list[dict[str, Any]]):
    self.groups = groups
    self._path = path
    self._owner = {
      name: number for number, group in enumerate(groups) for name in group
    }
    self._last: dict[str, np.ndarray] = {}

  def read(self, group: dict[str, Any]) -> None:
    self.forget()  # The one before first.
    fields, _ = reader_lib.load(self._path, param_tree.unflatten(group))
    self._last = param_tree.flatten(fields)

  def forget(self) -> None:
    self._last = {}

  def get(self, name: str) -> np.ndarray:
    if name not in self._last:
      try:
        self.read(self.groups[self._owner[name]])
      except reader_lib.Damaged as damage:
        raise _changed(self._path, damage) from damage
    return self._last[name]


class _Chunks:
  """Reads boxes of one array; what has been checked is checked again.

  Attributes:
    unit: Shape of the array's chunks.
  """

  def __init__(self, path: Any, name: str, like: Any):
    """Opens an array of a checkpoint's folder as Orbax lays it out."""
    self._path, self._name = path, name
    place = str(path / reader_lib.STATE)
    with reader.Explain(reader_lib.cannot_read):
      self._array = tensorstore.open(
        {
          "driver": "zarr3",
          "kvstore": {
            "driver": "ocdbt",
            "base": f"{place if '://' in place else f'file://{place}'}/",
            "path": f"{name.replace('/', '.')}/",
          },
          # One chunk after the other, or several would be in memory.
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
      raise reader_lib.Damaged(f"{name} has another shape or type")
    chunk = self._array.chunk_layout.read_chunk.shape
    self.unit = tuple(size or 1 for size in chunk or like.shape)
    self._words: dict[Any, tuple[int, int]] = {}

  def check(self, digits: str) -> None:
    """Reads all boxes; raises `Damaged` unless this is their fingerprint."""
    like = lazy_array.Parted(
      self._array.shape, self._array.dtype.numpy_dtype, self.unit, self._read
    )
    self._words = {
      key: words
      for box, block in lazy_array.each(like)
      for key, words in _sums(box, block)
    }
    if fingerprint.joined(self._words.values()) != digits:
      raise reader_lib.Damaged(f"the bits of {self._name} have changed")

  def get(self, box: Any) -> np.ndarray:
    try:
      block = self._read(box)
      if any(
        self._words.get(key, words) != words for key, words in _sums(box, block)
      ):
        raise reader_lib.Damaged(f"the bits of {self._name} have changed")
    except reader_lib.Damaged as damage:
      raise _changed(self._path, damage) from damage
    return block

  def _read(self, box: Any) -> np.ndarray:
    with reader.Explain(reader_lib.cannot_read):
      return self._array[box].read().result()


def _sums(
  box: lazy_array.Box, block: np.ndarray
) -> Iterator[tuple[Any, tuple[int, int]]]:
  """Yields small boxes and what each adds to a fingerprint."""
  for inner in lazy_array.boxes(block.shape, _VALUES):
    corner = tuple(
      outer.start + own.start for outer, own in zip(box, inner, strict=True)
    )
    yield (corner, block[inner].shape), fingerprint.part(block[inner], corner)


def _changed(path: Any, damage: reader_lib.Damaged) -> errors.UserError:
  return errors.UserError(
    f"{path} was damaged while it was read ({damage}); try again."
  )
