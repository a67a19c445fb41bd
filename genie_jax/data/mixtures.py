"""Several data sets that are read as one, each with a share of the clips.

A mixture's elements are those of its sets, one set after the other. Batches
take each set's elements in an order of its own, and the sets in the proportion
of their weights: after any number of clips, each set has given its share, to
within one clip for each other set. Small sets are repeated more often than
large ones.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.data import manifest, sources

# Sets of one mixture must agree on these, if any of the sets has them.
_SAME = {
  "fps": "frames per second",
  "frame_shape": "height, width and channels",
  "tokenizer_fingerprint": "tokenizer",
  "lam_fingerprint": "LAM",
}
# They need not agree on these unless true actions are read.
_SAME_ACTIONS = {
  "num_actions": "number of actions",
  "action_aliases": "aliases of actions",
}


def entries(data: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
  """Returns the folders and weights of the group `data` of a config.

  Args:
    data: `path` and `mixture`, of which one is empty. Configs of earlier
      versions have no `mixture`. The form of both was checked when the config
      was loaded, see `core.config_fields`.

  Returns:
    ((folder, weight), ...); weights are as given, and `path` has weight 1.

  Raises:
    UserError: Both are empty or neither is, or a folder is named twice.
  """
  path, mixture = data["path"], data.get("mixture", ())
  if not mixture:
    if not path:
      raise errors.UserError(
        "config.data.path is empty; give the folder of the data with "
        "--config.data.path=DIR, or several folders with "
        "--config.data.mixture."
      )
    return ((path, 1.0),)
  if path:
    raise errors.UserError(
      f"config.data has the path {path} and also a mixture; give one of them, "
      "with the folder of the path as one more part of the mixture."
    )
  found = tuple((folder, float(weight)) for folder, weight in mixture)
  folders = [folder for folder, _ in found]
  for folder in folders:
    if folders.count(folder) > 1:
      raise errors.UserError(
        f"config.data.mixture names {folder} {folders.count(folder)} times; "
        "name it once, with the sum of its weights."
      )
  return found


def main_folder(data: Mapping[str, Any]) -> str:
  """Returns the folder whose models and buttons are used, the first one.

  The sets of a mixture of tokens have the same tokenizer and the same LAM, so
  any of them would do.

  Args:
    data: The group `data` of a config, see `entries`.

  Returns:
    The folder; "" if none is given.
  """
  mixture = data.get("mixture", ())
  return mixture[0][0] if mixture else data["path"]


def fingerprint(data: Mapping[str, Any]) -> str:
  """Returns the fingerprint of `config.data` as a run on it states it.

  Args:
    data: The group `data` of a config, see `entries`.

  Raises:
    UserError: See `entries`; or a folder has no manifest.
  """
  found = entries(data)
  stated = [manifest.Manifest.read(folder).fingerprint for folder, _ in found]
  if not data.get("mixture", ()):
    return stated[0]
  return _combined(stated, _shares([weight for _, weight in found]))


def _shares(weights: Sequence[float]) -> list[float]:
  total = math.fsum(weights)
  return [weight / total for weight in weights]


def _combined(fingerprints: Sequence[str], shares: Sequence[float]) -> str:
  content = [list(pair) for pair in zip(fingerprints, shares, strict=True)]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def open_all(
  data: Mapping[str, Any], open_one: Callable[[str], sources.Source]
) -> sources.Source:
  """Returns the source of `config.data`: one set, or a mixture.

  Args:
    data: The group `data` of a config, see `entries`.
    open_one: folder -> its source.

  Raises:
    UserError: See `entries` and `Mixture`; or `open_one` raises it.
  """
  found = entries(data)
  if not data.get("mixture", ()):
    return open_one(found[0][0])
  return Mixture([(open_one(folder), weight) for folder, weight in found])


class Mixture(sources.Source):
  """Several sources, of which batches take shares; see the module.

  Attributes:
    manifest: Of the first set.

  Args:
    parts: (source, weight) of each set; weights are positive, and only their
      proportion matters.

  Raises:
    UserError: The sets differ in frames, rate, tokenizer, LAM or arrays, two
      of them have the same content, or a weight is not positive.
  """

  def __init__(self, parts: Sequence[tuple[sources.Source, float]]):
    for source, weight in parts:
      if not 0 < weight < math.inf:
        raise errors.UserError(
          f"{_place(source)} has weight {weight} in a mixture; weights are "
          "numbers above zero."
        )
    self._sources = [source for source, _ in parts]
    self.manifest = self._sources[0].manifest
    self._shares = _shares([weight for _, weight in parts])
    self._ends = np.cumsum([len(source) for source in self._sources])
    first = self._sources[0]
    form = _form(first)
    for number, other in enumerate(self._sources[1:], start=1):
      _compare(first, other, "actions" in form)
      if _form(other) != form:
        raise errors.UserError(
          f"{_place(first)} has elements of the form {form}, but those of "
          f"{_place(other)} have {_form(other)}; a mixture needs sets of one "
          "form."
        )
      for before in self._sources[:number]:
        if before.fingerprint == other.fingerprint:
          raise errors.UserError(
            f"{_place(before)} and {_place(other)} in config.data.mixture have "
            "the same content; name one of them, with the sum of the weights."
          )

  @property
  def fingerprint(self) -> str:
    """Of all sets, in order, and their shares."""
    return _combined(
      [source.fingerprint for source in self._sources], self._shares
    )

  @property
  def shares(self) -> list[tuple[int, float]]:
    """Number of elements and share of each set."""
    lengths = [len(source) for source in self._sources]
    return list(zip(lengths, self._shares, strict=True))

  def __len__(self) -> int:
    return int(self._ends[-1])

  def gather(self, indices: Sequence[int] | np.ndarray) -> sources.Batch:
    """Returns the elements at `indices`, whichever sets they are in.

    "source" is the number of a source within its set.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
      raise IndexError(f"Element {indices.max()} of {len(self)}.")
    which = np.searchsorted(self._ends, indices, side="right")
    out: sources.Batch = {}
    for number in np.unique(which):
      rows = np.flatnonzero(which == number)
      source = self._sources[number]
      start = self._ends[number] - len(source)
      found = source.gather(indices[rows] - start)
      if len(rows) == len(indices):
        return found
      for name, values in found.items():
        if name not in out:
          out[name] = np.empty((len(indices), *values.shape[1:]), values.dtype)
        out[name][rows] = values
    return out


def _place(source: sources.Source) -> str:
  return str(source.manifest.address or source.manifest.folder)


def _form(source: sources.Source) -> dict[str, str]:
  """Returns name -> type and shape of the arrays of an element."""
  return {
    name: f"{array.dtype}{list(array.shape)}"
    for name, array in source[0].items()
  }


def _compare(
  first: sources.Source, other: sources.Source, with_actions: bool
) -> None:
  """Checks that two sets can be in one mixture."""
  for name, words in (_SAME | (_SAME_ACTIONS if with_actions else {})).items():
    wanted = getattr(first.manifest, name)
    found = getattr(other.manifest, name)
    if wanted == found:
      continue
    short = lambda value: (
      value[:12] if isinstance(value, str) and len(value) == 64 else value
    )
    raise errors.UserError(
      f"config.data.mixture has sets that differ in their {words}: "
      f"{short(wanted)!r} in {_place(first)}, {short(found)!r} in "
      f"{_place(other)}; write one of them again with the other's, or train "
      "on one of them."
    )
