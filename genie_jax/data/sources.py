"""Random access to windows of clips and to token records.

Shapes:
  T  frames of a window       H W C  rows, columns, channels of a frame
  h w  token grid             n      elements gathered by one call
"""

import abc
import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards, stored_frames

Batch = dict[str, np.ndarray]

# These lead from one frame to the next, so there is one fewer than frames.
_BETWEEN_FRAMES = ("actions", "latent_actions")


class Source(abc.ABC):
  """A finite sequence of elements with the same form.

  Attributes:
    manifest: Describes the data.
  """

  manifest: manifest_lib.Manifest

  @property
  def fingerprint(self) -> str:
    """64 hexadecimal digits that differ if the data differ."""
    return self.manifest.fingerprint

  @property
  def shares(self) -> list[tuple[int, float]]:
    """Length and share of a batch of each set that the elements come from.

    The sets' elements follow one another; the shares' sum is 1.
    """
    return [(len(self), 1.0)]

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns the number of elements."""

  def __getitem__(self, index: int) -> Batch:
    return {name: array[0] for name, array in self.gather([index]).items()}

  @abc.abstractmethod
  def gather(self, indices: Sequence[int] | np.ndarray) -> Batch:
    """Returns the elements at `indices`, stacked along a new first axis."""


def _readers(
  manifest: manifest_lib.Manifest,
  split: str,
) -> list[shards.ShardReader]:
  readers = [
    shards.ShardReader(path, entry) for path, entry in manifest.shards(split)
  ]
  for reader in readers:
    # Detects a truncated copy now, not hours after the start of a run.
    reader.check_size()
  return readers


def _needs_kind(manifest: manifest_lib.Manifest, kind: str, maker: str) -> None:
  if manifest.kind != kind:
    raise errors.UserError(
      f"{manifest.address or manifest.folder} has {manifest.kind}, but "
      f"{kind} are needed; use a folder made by `{maker}`."
    )


class WindowSource(Source):
  """All windows of T frames that are within one episode.

  A window may start at any frame, so its frames are in one or several adjacent
  records. Records are short, so that few unneeded frames are decompressed.

  Elements: {"frames": uint8 [T, H, W, C], "actions": int32 [T - 1] (action t
  leads from frame t to t + 1), "first": bool [T], "source": int32,
  "start": int32 (frame of the source at which the window starts)}; the first
  three only if they are in `keys`.

  Args:
    folder: A clips folder.
    split: "train", "validation" or "test".
    num_frames: T.
    stride: Frames from the start of one window to the start of the next.
    keys: Names of the arrays to read.

  Raises:
    UserError: There is no such folder or split, a shard is damaged, the clips
      do not have an array, or no episode has T frames.
  """

  def __init__(
    self,
    folder: files.PathLike,
    split: str,
    num_frames: int,
    stride: int = 1,
    keys: Sequence[str] = ("frames", "actions"),
  ):
    self.manifest = manifest_lib.Manifest.read(folder)
    _needs_kind(self.manifest, "clips", "genie data")
    if num_frames < 1 or stride < 1:
      raise errors.UserError(
        f"Windows need num_frames and stride of at least 1, not "
        f"{num_frames} and {stride}; change them in config.data."
      )
    self._readers = _readers(self.manifest, split)
    self._num_frames, self._stride = num_frames, stride
    self._record_frames = self.manifest.frames_per_record
    self._episodes = [
      (number, *episode)
      for number, (_, entry) in enumerate(self.manifest.shards(split))
      for episode in entry["episodes"]
      if episode[3] >= num_frames
    ]
    if not self._episodes:
      raise errors.UserError(
        f"Split {split!r} of {folder} has no episode of "
        f"{num_frames} frames; use shorter windows or collect longer "
        "levels."
      )
    # Number of windows up to and including each episode.
    self._ends = list(
      itertools.accumulate(
        (length - num_frames) // stride + 1 for *_, length in self._episodes
      )
    )
    number, _, record, *_ = self._episodes[0]
    arrays, _ = self._readers[number].read([record])[0]
    available = stored_frames.names(arrays, self.manifest.frames_codec)
    unknown = [name for name in keys if name not in available]
    if unknown:
      raise errors.UserError(
        f"{folder} has no {unknown[0]!r}"
        f"{errors.closest(unknown[0], available)}; its records have "
        f"{', '.join(available)}."
      )
    self._layout = {}
    for name in keys:
      if name == stored_frames.FRAMES and self.manifest.frames_codec:
        shape, dtype = self.manifest.frame_shape, np.dtype(np.uint8)
      else:
        shape, dtype = arrays[name].shape[1:], arrays[name].dtype
      self._layout[name] = (
        (num_frames - (name in _BETWEEN_FRAMES), *shape),
        np.int32 if name in _BETWEEN_FRAMES else dtype,
      )

  def __len__(self) -> int:
    return self._ends[-1]

  def gather(self, indices: Sequence[int] | np.ndarray) -> Batch:
    """Returns stacked windows: the arrays of elements, with a first axis n."""
    out: Batch = {
      name: np.empty((len(indices), *shape), dtype)
      for name, (shape, dtype) in self._layout.items()
    }
    out["source"] = np.empty(len(indices), np.int32)
    out["start"] = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
      self._fill(out, row, int(index))
    return out

  def _locate(self, index: int) -> tuple[int, int, int, int]:
    """Returns shard, first record, source and start frame of a window."""
    if not 0 <= index < len(self):
      raise IndexError(f"Window {index} of {len(self)}.")
    place = bisect.bisect_right(self._ends, index)
    before = self._ends[place - 1] if place else 0
    shard, source, record, start, _ = self._episodes[place]
    return shard, record, source, start + (index - before) * self._stride

  def _fill(self, out: Batch, row: int, index: int) -> None:
    shard, record, source, start = self._locate(index)
    size = self._record_frames
    head = start // size
    tail = (start + self._num_frames - 1) // size
    found = self._readers[shard].read(range(record + head, record + tail + 1))
    for number, (arrays, meta) in enumerate(found, start=head):
      self._check(shard, source, number, meta)
      # Copies the window's frames in this record, from the record's frame `low`
      # to the window's frames from `at` on.
      low = max(start - number * size, 0)
      at = number * size + low - start
      count = min(size - low, self._num_frames - at)
      for name, (shape, _) in self._layout.items():
        into = out[name][row, at : min(at + count, shape[0])]
        if name == stored_frames.FRAMES:
          self._frames(shard, record + number, arrays, meta, low, into)
        else:
          into[...] = stored_frames.part(
            arrays,
            name,
            low,
            low + len(into),
            shape[1:],
            f"{self._readers[shard].path} record {record + number}",
          )
    out["source"][row], out["start"][row] = source, start

  def _frames(
    self,
    shard: int,
    record: int,
    arrays: dict[str, np.ndarray],
    meta: dict[str, Any],
    begin: int,
    out: np.ndarray,
  ) -> None:
    """Writes a record's frames from `begin` on to `out`."""
    stored_frames.load(
      arrays,
      meta,
      self.manifest.frames_codec,
      self.manifest.frame_shape,
      begin,
      begin + len(out),
      f"{self._readers[shard].path} record {record}",
      out,
    )

  def _check(
    self,
    shard: int,
    source: int,
    number: int,
    meta: dict[str, Any],
  ) -> None:
    start = number * self._record_frames
    if meta["source"] != source or meta["start"] != start:
      raise errors.UserError(
        f"{self._readers[shard].path} has frame {meta['start']} of source "
        f"{meta['source']} where its manifest says frame {start} of source "
        f"{source}; `genie data inspect` the folder, then write it again."
      )


class TokenSource(Source):
  """Token records; each is a clip that was encoded from its first frame.

  Elements: {"tokens": int32 [T, h, w], "latent_actions": int32 [T - 1],
  "actions": int32 [T - 1], "frames": uint8 [T, H, W, C], "source": int32,
  "start": int32}; latent actions, actions and frames only if the records have
  them.

  Args:
    folder: A token folder.
    split: "train", "validation" or "test".
    num_frames: T, the first frames of each record; None for all. Frames cannot
      be left out at the start, because the codes of a frame depend on where
      encoding began.
    keys: Names of the arrays to read; None for all.
    merge_aliases: Whether to replace true actions by the action with the same
      effect, according to the manifest's `action_aliases`.

  Raises:
    UserError: There is no such folder or split, a shard is damaged, records are
      shorter than T, or they do not have an array.
  """

  def __init__(
    self,
    folder: files.PathLike,
    split: str,
    num_frames: int | None = None,
    keys: Sequence[str] | None = None,
    merge_aliases: bool = False,
  ):
    self.manifest = manifest_lib.Manifest.read(folder)
    _needs_kind(self.manifest, "tokens", "genie tokenize")
    self._readers = _readers(self.manifest, split)
    self._ends = list(itertools.accumulate(len(r) for r in self._readers))
    arrays, _ = self._readers[0].read([0])[0]
    available = len(arrays["tokens"])
    self._num_frames = available if num_frames is None else num_frames
    if not 1 <= self._num_frames <= available:
      raise errors.UserError(
        f"{folder} has clips of {available} frames, but "
        f"{num_frames} are needed; tokenize again with --num-frames "
        f"{num_frames}, or set config.data.num_frames to at most {available}."
      )
    keys = tuple(arrays) if keys is None else tuple(keys)
    for name in keys:
      if name not in arrays:
        raise errors.UserError(
          f"{folder} has no {name!r}"
          f"{errors.closest(name, arrays)}; its records have "
          f"{', '.join(arrays)}; tokenize again with --lam for latent "
          "actions and --keep-frames for frames."
        )
    self._layout = {
      name: (
        (self._num_frames - (name in _BETWEEN_FRAMES), *arrays[name].shape[1:]),
        np.uint8 if name == "frames" else np.int32,
      )
      for name in keys
    }
    self._merged = None
    if merge_aliases and "actions" in keys and self.manifest.num_actions:
      self._merged = np.arange(self.manifest.num_actions, dtype=np.int32)
      for action, same in self.manifest.action_aliases.items():
        self._merged[int(action)] = int(same)

  def __len__(self) -> int:
    return self._ends[-1]

  def gather(self, indices: Sequence[int] | np.ndarray) -> Batch:
    """Returns stacked records: the arrays of elements, with a first axis n."""
    out: Batch = {
      name: np.empty((len(indices), *shape), dtype)
      for name, (shape, dtype) in self._layout.items()
    }
    out["source"] = np.empty(len(indices), np.int32)
    out["start"] = np.empty(len(indices), np.int32)
    for row, index in enumerate(indices):
      index = int(index)
      if not 0 <= index < len(self):
        raise IndexError(f"Record {index} of {len(self)}.")
      shard = bisect.bisect_right(self._ends, index)
      before = self._ends[shard - 1] if shard else 0
      arrays, meta = self._readers[shard].read([index - before])[0]
      for name, (shape, _) in self._layout.items():
        out[name][row] = stored_frames.part(
          arrays,
          name,
          0,
          shape[0],
          shape[1:],
          f"{self._readers[shard].path} record {index - before}",
        )
      if self._merged is not None:
        out["actions"][row] = self._merged[out["actions"][row]]
      out["source"][row], out["start"][row] = meta["source"], meta["start"]
    return out
