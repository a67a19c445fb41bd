"""Counterfactuals: what a game draws after each key, from the same state.

A moment is a state in the middle of a level that a policy reached. Its record
has the frames that led to it, and the frames that follow when each key is held
from exactly this state. A world that is given the same frames can so be
compared with the game key by key.

The moments of a clips folder are in its sub-folder `counterfactuals`, a folder
of shards with a manifest of its own (kind "counterfactuals"; one row of the
episode table is one moment: level, record, step, and the number of frames that
the record describes). A record has these arrays:

  history         uint8 [P, H, W, C], the frames up to the moment
  history_keys    int32 [P-1], the keys that led from one to the next
  history_states  float32 [P, 5], true states at the frames
  keys            int32 [R, F], the keys of each future: row k < K holds key k,
                  the last row has the policy's own keys
  distinct        uint8 [D, F, H, W, C], futures without repeats
  future_of       int32 [R], the row of `distinct` that each future equals
  states          float32 [R, F, 5], true states at each future's frames

True states are the position x and y and the velocity, in cells and cells per
step, and whether the player stands on something (1, 0, or -1 if that is not
known). Futures with equal frames are stored once, because many keys do the
same; their states are stored for each.

Shapes:
  P  frames of the history     F  frames of a future     K  keys of the game
  R  futures, K + 1            D  distinct futures
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from genie_jax.core import buckets, errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import records, shards

KIND = "counterfactuals"
FOLDER = "counterfactuals"  # Inside a clips folder.
# The same in moments in which the player stands with room on both sides.
STANDING = "standing"
VERSION = 1  # Of the arrays above; stated in the manifest's `made_by`.
STATE_FIELDS = 5


@dataclasses.dataclass(frozen=True)
class Moment:
  """A state of a game, and what follows after each key.

  Attributes:
    level: The level (source).
    step: The frame of the level's recording at which the moment is.
    history: uint8 [P, H, W, C].
    history_keys: int32 [P-1].
    history_states: float32 [P, 5].
    keys: int32 [R, F].
    distinct: uint8 [D, F, H, W, C].
    future_of: int32 [R].
    states: float32 [R, F, 5].
  """

  level: int
  step: int
  history: np.ndarray
  history_keys: np.ndarray
  history_states: np.ndarray
  keys: np.ndarray
  distinct: np.ndarray
  future_of: np.ndarray
  states: np.ndarray

  @property
  def num_keys(self) -> int:
    """K, the number of keys that are held."""
    return len(self.keys) - 1

  @property
  def num_frames(self) -> int:
    """Frames that the record describes: P + R * F."""
    return len(self.history) + self.keys.size

  def future(self, row: int) -> np.ndarray:
    """Returns the frames of one future, uint8 [F, H, W, C]."""
    return self.distinct[self.future_of[row]]

  def classes(self, num_frames: int) -> np.ndarray:
    """Groups the keys whose first frames are equal.

    Args:
      num_frames: Number of frames to compare, 1 to F.

    Returns:
      int [K], for each key the lowest key with the same frames.
    """
    starts = [future[:num_frames].tobytes() for future in self.distinct]
    of_key = [starts[row] for row in self.future_of[: self.num_keys]]
    lowest: dict[bytes, int] = {}
    for key, frames in enumerate(of_key):
      lowest.setdefault(frames, key)
    return np.array([lowest[frames] for frames in of_key])


_ARRAYS = tuple(
  field.name
  for field in dataclasses.fields(Moment)
  if field.name not in ("level", "step")
)


def merge_equal(futures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distinct futures in order of appearance, and which is whose.

  Args:
    futures: uint8 [R, F, H, W, C].

  Returns:
    uint8 [D, F, H, W, C] and int32 [R].
  """
  rows: dict[bytes, int] = {}
  of = [rows.setdefault(future.tobytes(), len(rows)) for future in futures]
  firsts = [of.index(row) for row in range(len(rows))]
  return futures[firsts], np.array(of, np.int32)


def pack(moment: Moment, fps: float) -> bytes:
  """Returns a moment as a record."""
  return records.pack(
    {name: getattr(moment, name) for name in _ARRAYS},
    {"fps": fps, "source": moment.level, "start": moment.step},
  )


def made_by(history: int, frames: int, keys: int) -> dict[str, Any]:
  """Returns the field `counterfactuals` of the manifest's `made_by`.

  Args:
    history: P.
    frames: F.
    keys: K.
  """
  return {
    "version": VERSION,
    "history": history,
    "frames": frames,
    "keys": keys,
  }


def address(clips: files.PathLike, folder: str = FOLDER) -> str:
  """Returns where the counterfactuals of a clips folder are.

  Args:
    clips: The clips folder.
    folder: `FOLDER` or `STANDING`.
  """
  if buckets.is_remote(clips):
    return f"{os.fspath(clips).rstrip('/')}/{folder}"
  return os.path.join(os.fspath(clips), folder)


def read_manifest(folder: files.PathLike) -> manifest_lib.Manifest:
  """Reads the manifest of counterfactuals.

  Raises:
    UserError: There is no manifest, it is of another kind, or of a version
      that this program does not know.
  """
  found = manifest_lib.Manifest.read(folder)
  if found.kind != KIND:
    raise errors.UserError(
      f"{os.fspath(folder)} has {found.kind}, but counterfactuals are needed; "
      "use a folder made by `genie data procgen --counterfactuals N`."
    )
  version = form(found)["version"]
  if version != VERSION:
    raise errors.UserError(
      f"{os.fspath(folder)} has counterfactuals of version {version}, but this "
      f"program reads version {VERSION}; write the folder again."
    )
  return found


def form(manifest: manifest_lib.Manifest) -> dict[str, Any]:
  """Returns version, history (P), frames (F) and keys (K) of a folder.

  Raises:
    UserError: The manifest does not state them.
  """
  try:
    found = dict(manifest.made_by[KIND])
    for name in ("version", "history", "frames", "keys"):
      found[name] = int(found[name])
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(
      f"The manifest of {manifest.folder} does not state the form of its "
      f"counterfactuals ({error}); write the folder again."
    ) from error
  return found


def read(
  manifest: manifest_lib.Manifest, split: str, num_moments: int, seed: int
) -> list[Moment]:
  """Reads moments evenly from the levels of a split.

  Levels take turns, in random order: the first moments are one of each level.

  Args:
    manifest: From `read_manifest`.
    split: Name of the split.
    num_moments: Most moments to read.
    seed: Of the choice.

  Raises:
    UserError: There is no such split, it is empty, or a shard is damaged.
  """
  rng = np.random.default_rng(seed)
  by_level: dict[int, list[tuple[int, int]]] = {}
  readers = []
  for number, (path, entry) in enumerate(manifest.shards(split)):
    reader = shards.ShardReader(path, entry)
    reader.check_size()
    readers.append(reader)
    for level, record, *_ in entry["episodes"]:
      by_level.setdefault(level, []).append((number, record))
  turns = [
    [rows[place] for place in rng.permutation(len(rows))]
    for rows in (by_level[level] for level in rng.permutation(sorted(by_level)))
  ]
  longest = max((len(rows) for rows in turns), default=0)
  order = [rows[n] for n in range(longest) for rows in turns if n < len(rows)]
  found = []
  for number, record in order[:num_moments]:
    arrays, meta = readers[number].read([record])[0]
    check(manifest, arrays, meta, f"{readers[number].path} record {record}")
    found.append(unpack(arrays, meta))
  return found


def unpack(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Moment:
  """Returns the moment of a record that `check` accepts."""
  return Moment(
    level=meta["source"],
    step=meta["start"],
    **{name: arrays[name] for name in _ARRAYS},
  )


def check(
  manifest: manifest_lib.Manifest,
  arrays: dict[str, np.ndarray],
  meta: dict[str, Any],
  where: str,
  row: Sequence[int] | None = None,
) -> int:
  """Checks a record against the manifest.

  Args:
    manifest: Of the folder.
    arrays: The record's arrays.
    meta: The record's metadata.
    where: Name of the record in messages.
    row: Its row of the episode table, if it is to be compared.

  Returns:
    The number of frames that the record describes.

  Raises:
    UserError: An array is missing, or has another shape or value than the
      manifest needs.
  """

  def needs(what: str, found: Any, needed: Any) -> None:
    if found != needed:
      raise errors.UserError(
        f"{where} has {what} {found}, but its manifest needs {needed}; write "
        "the folder again."
      )

  stated = form(manifest)
  past, frames, keys = stated["history"], stated["frames"], stated["keys"]
  shape = tuple(manifest.frame_shape)
  needs("arrays", sorted(arrays), sorted(_ARRAYS))
  num_distinct = len(arrays["distinct"])
  for name, needed in {
    "history": (past, *shape),
    "history_keys": (past - 1,),
    "history_states": (past, STATE_FIELDS),
    "keys": (keys + 1, frames),
    "distinct": (num_distinct, frames, *shape),
    "future_of": (keys + 1,),
    "states": (keys + 1, frames, STATE_FIELDS),
  }.items():
    needs(f"{name} of shape", arrays[name].shape, needed)
  held = np.repeat(np.arange(keys)[:, None], frames, 1)
  needs("held keys", arrays["keys"][:-1].tolist(), held.tolist())
  pressed = np.concatenate([arrays["history_keys"], arrays["keys"][-1]])
  needs("unknown keys", [k for k in pressed.tolist() if not 0 <= k < keys], [])
  needs(
    "futures", sorted(set(arrays["future_of"].tolist())),
    list(range(num_distinct)),
  )  # fmt: skip
  length = past + arrays["keys"].size
  if row is not None:
    found = (meta["source"], meta["start"], length)
    needs("source, start and length", found, (row[0], row[2], row[3]))
  return length
