"""Writes clips of another project as a clips folder, or resumes one.

Splits are kept where the project has them. Otherwise they are drawn by source:
in the order of the SHA-256 of the sources' names, one in twenty (at least one
of three or more sources) is for validation, as many are for the test, and the
others are for training.

An action of a game keeps its number. Actions that are lists are the place of
their only 1 if all of them have one; otherwise each different list is a number,
in sorted order, and `made_by.action_names` says which.
"""

import dataclasses
import functools
import hashlib
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import workers
from data_pipelines.imports import clips as clips_lib
from data_pipelines.imports import genieredux, jafar, jasmine
from genie_jax.core import errors, files, progress
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import (
  records,
  resumable,
  shards,
  stored_frames,
  video_codec,
)

FORMATS = {
  "genieredux": genieredux.FORMAT,
  "jafar": jafar.FORMAT,
  "jasmine": jasmine.FORMAT,
}
CODECS = {"zstd": None, "h264": video_codec.NAME}
FRAMES_PER_RECORD = 16

_VERSION = 1
_SPLITS = ("train", "validation", "test")
# One source in so many is for validation, and as many are for the test.
_HELD_OUT = 20
_LARGEST_ACTION = 65_535


@dataclasses.dataclass(frozen=True)
class Options:
  """What to import.

  Attributes:
    format: A key of `FORMATS`.
    name: Name of the data set; "" for that of the folder.
    fps: Frames per second; None for what the format knows.
    frame_size: (H, W) where the files do not state it; None for the rule of
      the format.
    codec: A key of `CODECS`: zstd keeps every bit, h264 is smaller.
    clips_per_shard: Most clips of one file.
  """

  format: str
  name: str = ""
  fps: float | None = None
  frame_size: tuple[int, int] | None = None
  codec: str = "zstd"
  clips_per_shard: int = 64

  def check(self) -> None:
    """Raises UserError if a field is out of range."""
    for flag, value, known in (
      ("format", self.format, FORMATS),
      ("codec", self.codec, CODECS),
    ):
      if value not in known:
        raise errors.UserError(
          f"--{flag} {value!r} is not known{errors.closest(value, known)}; "
          f"choose one of {', '.join(known)}."
        )
    if self.fps is not None and not 0 < self.fps <= 1000:
      raise errors.UserError(
        f"--fps {self.fps:g} must be above 0 and at most 1000."
      )
    if self.frame_size is not None and min(self.frame_size) < 1:
      raise errors.UserError(
        f"--frame-size {self.frame_size[0]}x{self.frame_size[1]} must be at "
        "least 1x1."
      )
    if self.clips_per_shard < 1:
      raise errors.UserError(
        f"--clips-per-shard must be at least 1, not {self.clips_per_shard}."
      )


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a call of `import_folder`.

  Attributes:
    manifest: Of the finished folder.
    clips: Clips of the folder.
    kept_clips: Those that earlier calls wrote.
    skipped: (name, reason) of what could not be read.
    seconds: Wall time of this call.
  """

  manifest: manifest_lib.Manifest
  clips: int
  kept_clips: int
  skipped: Sequence[tuple[str, str]]
  seconds: float


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What every process needs to write shards."""

  folder: pathlib.Path
  format: str
  manifest: manifest_lib.Manifest
  clips: Mapping[str, Sequence[clips_lib.Clip]]  # By split.
  numbers: Mapping[str, int]  # Source -> its number.
  actions: Mapping[clips_lib.Action, int] | None


def import_folder(
  folder: files.PathLike,
  out: files.PathLike,
  options: Options,
  num_workers: int = 1,
) -> Report:
  """Writes a clips folder from a folder of another project, or resumes one.

  Args:
    folder: The folder to read; it is not changed.
    out: The folder to write.
    options: Options.
    num_workers: Processes that read and encode; the bytes do not depend on it.

  Raises:
    UserError: An option is out of range, the folder has no clips of the format,
      a file became unreadable, or `out` was begun with another folder.
    OSError: The disk is full; the next run keeps finished shards.
  """
  began = time.monotonic()
  options.check()
  if num_workers < 1:
    raise errors.UserError(f"--workers must be at least 1, not {num_workers}.")
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise errors.UserError(f"--from {folder} is not a folder.")
  found = FORMATS[options.format]
  listing = found.list(folder, options.frame_size)
  clips, skipped = _of_one_shape(listing)
  if not clips:
    raise errors.UserError(
      f"--from {folder} has no clips of {found.title}"
      + (f": {': '.join(skipped[0])[:200]}" if skipped else "")
      + "; docs/imports.md describes the folders that are read."
    )
  plan = _plan(folder, clips, listing, options)
  writer = resumable.FolderWriter(
    out,
    plan.manifest,
    {split: range(len(part)) for split, part in plan.clips.items()},
    options.clips_per_shard,
  )
  if writer.folder.resolve() == folder.resolve():
    raise errors.UserError(
      f"--out {out} is the folder that is read; give another one."
    )
  with writer:
    count = lambda found: sum(len(shard.items) for shard in found)
    kept, missing = count(writer.kept), count(writer.missing)
    with progress.track(
      total=kept + missing, initial=kept, unit="clips", description="import"
    ) as bar:
      write = functools.partial(_write, plan, writer.folder)
      workers.run(write, writer.missing, num_workers, bar.update)
    manifest = writer.finish()
  return Report(
    manifest, kept + missing, kept, skipped, time.monotonic() - began
  )


def _of_one_shape(
  listing: clips_lib.Listing,
) -> tuple[list[clips_lib.Clip], list[tuple[str, str]]]:
  """Returns the clips with the first one's frames, and what is skipped."""
  skipped = list(listing.skipped)
  clips = []
  for clip in listing.clips:
    first = clips[0] if clips else clip
    if clip.frame_shape != first.frame_shape:
      skipped.append(
        (
          clip.name,
          f"its frames are {list(clip.frame_shape)}, those of {first.name} "
          f"are {list(first.frame_shape)}",
        )
      )
    elif (clip.actions is None) != (first.actions is None):
      skipped.append(
        (
          clip.name,
          f"it has {'no ' if clip.actions is None else ''}actions, but "
          f"{first.name} has {'none' if first.actions is None else 'some'}",
        )
      )
    else:
      clips.append(clip)
  return clips, skipped


def _plan(
  folder: pathlib.Path,
  clips: Sequence[clips_lib.Clip],
  listing: clips_lib.Listing,
  options: Options,
) -> _Plan:
  names = sorted({clip.source for clip in clips})
  stated = {clip.source: clip.split for clip in clips}
  drawn = _draw_splits([name for name in names if stated[name] is None])
  split_of = {name: stated[name] or drawn[name] for name in names}
  by_split = {
    split: [clip for clip in clips if split_of[clip.source] == split]
    for split in _SPLITS
  }
  actions, count, action_names = _number_actions(clips)
  made_by = {
    "importer": "data_pipelines.imports.folder",
    "importer_version": _VERSION,
    "project": FORMATS[options.format].title,
    # A changed folder must not be mixed with shards of the earlier one.
    "clips_sha256": _digest(clips),
    "splits": "of the project"
    if all(stated.values())
    else "by source, in the order of the SHA-256 of its name",
    "options": {
      name: value
      for name, value in dataclasses.asdict(options).items()
      if name not in ("fps", "name")
    },
  }
  if options.codec == "h264":
    made_by["frames"] = video_codec.made_by(video_codec.H264Options())
  if action_names is not None:
    made_by["action_names"] = action_names
  manifest = manifest_lib.Manifest(
    kind="clips",
    name=options.name or folder.resolve().name,
    fps=options.fps or listing.fps,
    frame_shape=tuple(clips[0].frame_shape),
    frames_per_record=FRAMES_PER_RECORD,
    splits={},
    num_actions=count and max(count, listing.num_actions or 0),
    action_aliases={},
    frames_codec=CODECS[options.codec],
    made_by=made_by,
  )
  numbers = {name: number for number, name in enumerate(names)}
  return _Plan(folder, options.format, manifest, by_split, numbers, actions)


def _digest(clips: Sequence[clips_lib.Clip]) -> str:
  digest = hashlib.sha256()
  for clip in clips:
    digest.update(repr(clip).encode(errors="surrogateescape"))
  return digest.hexdigest()


def _draw_splits(names: Sequence[str]) -> dict[str, str]:
  """Returns the split of each source; see the module's docstring."""
  order = sorted(
    names,
    key=lambda name: hashlib.sha256(
      name.encode(errors="surrogateescape")
    ).digest(),
  )
  held = max(1, len(order) // _HELD_OUT) if len(order) > 2 else 0
  return {
    name: "validation"
    if place < held
    else "test"
    if place < 2 * held
    else "train"
    for place, name in enumerate(order)
  }


def _number_actions(
  clips: Sequence[clips_lib.Clip],
) -> tuple[dict[clips_lib.Action, int] | None, int | None, list[str] | None]:
  """Returns each action's number, how many there are, and names of lists.

  Raises:
    UserError: An action has a number that is too large, or some are lists.
  """
  if clips[0].actions is None:
    return None, None, None
  found = {action for clip in clips for action in clip.actions or ()}
  numbers = sorted(action for action in found if isinstance(action, int))
  lists = sorted(action for action in found if isinstance(action, tuple))
  if numbers and lists:
    raise errors.UserError(
      "Some actions of the folder are numbers and others are lists; import "
      "them one after the other."
    )
  if numbers:
    for worst in (numbers[0], numbers[-1]):
      if not 0 <= worst <= _LARGEST_ACTION:
        raise errors.UserError(
          f"Actions are numbered from 0 to {_LARGEST_ACTION}, but the folder "
          f"has {worst}; number them from 0."
        )
    return {number: number for number in numbers}, numbers[-1] + 1, None
  length = len(lists[0])
  if all(sorted(action) == [0] * (length - 1) + [1] for action in lists):
    return {action: action.index(1) for action in lists}, length, None
  return (
    {action: number for number, action in enumerate(lists)},
    len(lists),
    [" ".join(map(str, action)) for action in lists],
  )


def _write(
  plan: _Plan,
  folder: pathlib.Path,
  shard: resumable.Shard,
  tick: workers.Tick,
) -> None:
  """Reads the clips of one shard and writes them; runs in any process."""
  codec = plan.manifest.frames_codec
  read = FORMATS[plan.format].read
  options = shards.CODED_OPTIONS if codec else shards.FRAMES_OPTIONS
  record = 0
  with resumable.ShardWriter(folder, shard, options) as writer:
    for place in shard.items:
      clip = plan.clips[shard.split][place]
      frames = read(plan.folder, clip)
      if frames.shape != (clip.length, *clip.frame_shape):
        raise errors.UserError(
          f"{plan.folder}: {clip.name} has frames {list(frames.shape)} where "
          f"{[clip.length, *clip.frame_shape]} were found before; give another "
          "--out."
        )
      number = plan.numbers[clip.source]
      writer.episodes.append([number, record, 0, clip.length])
      actions = None
      if clip.actions is not None and plan.actions is not None:
        actions = np.array(
          [plan.actions[action] for action in clip.actions], np.int32
        )
      for start in range(0, clip.length, FRAMES_PER_RECORD):
        piece = slice(start, start + FRAMES_PER_RECORD)
        arrays = stored_frames.store(frames[piece], codec)
        if actions is not None:
          arrays["actions"] = actions[piece]
        meta: dict[str, Any] = {
          "fps": plan.manifest.fps,
          "source": number,
          "start": start,
          "num_frames": len(frames[piece]),
        }
        if not start:
          meta["clip"] = {"source": clip.source, "name": clip.name}
        writer.write(records.pack(arrays, meta))
        record += 1
      tick(1)
