"""Checkpoints of models larger than host memory, read a few arrays at a time.

Each read of Orbax costs tens of milliseconds, however small, so arrays are
read in groups; the last group stays in memory, as its arrays are asked for
one after the other.
"""

import math
from typing import Any

import numpy as np

from genie_jax.core import arrays, errors, tensors
from genie_jax.train import stored

GROUP_BYTES = 1 << 28


def params(
    workdir: stored.PathLike,
    step: int | None = None,
    *,
    group_bytes: int = GROUP_BYTES,
) -> tuple[stored.Tree, dict[str, Any]]:
  """Like `stored.load_params`, for models larger than memory.

  All arrays are read and checked once here, group by group, and again when
  they are asked for later.

  Args:
    workdir: Where `genie train` wrote.
    step: Which checkpoint; the newest that is undamaged when left out.
    group_bytes: Most bytes in memory at once, or one array if it is larger.

  Returns:
    Parameters as nested dicts of `tensors.Deferred`, and the run's config.

  Raises:
    UserError: There is no such checkpoint, or it is damaged.
  """
  def read(path):
    note = stored.read_note(path)
    flat = arrays.flatten(stored.host_arrays(note, ("params",)))
    reader = _Reader(path, _groups(flat, group_bytes))
    for group in reader.groups:
      reader.read(group)
    lazy = {
        name: tensors.Deferred(
            like.shape, like.dtype, lambda name=name: reader.get(name))
        for name, like in flat.items()}
    return arrays.unflatten(lazy)["params"], note["config"]

  return stored.newest(workdir, step, read)


def _groups(
    flat: dict[str, Any], group_bytes: int
) -> list[dict[str, Any]]:
  groups, room = [], 0
  for name, like in flat.items():
    size = math.prod(like.shape) * like.dtype.itemsize
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
        name: number for number, group in enumerate(groups) for name in group}
    self._last: dict[str, np.ndarray] = {}

  def read(self, group: dict[str, Any]) -> None:
    self._last = {}  # Let go of the one before first.
    fields, _ = stored.load(self._path, arrays.unflatten(group))
    self._last = arrays.flatten(fields)

  def get(self, name: str) -> np.ndarray:
    if name not in self._last:
      try:
        self.read(self.groups[self._owner[name]])
      except stored.Damaged as damage:
        raise errors.UserError(
            f"{self._path} was damaged while it was read ({damage}); try "
            "again.") from damage
    return self._last[name]
