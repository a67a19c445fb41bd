"""Collects clips folders of games with several processes, and resumes.

A game's collector provides a `Game`, which describes its clips and how a level
is played. Shards are fixed ranges of levels, and the frames of a level depend
only on the level, so the folder has the same bytes for any number of workers.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines import workers
from genie_jax.core import errors, files, progress
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import records, resumable

FRAMES_PER_RECORD = 16


@dataclasses.dataclass(frozen=True)
class Played:
  """What was recorded of one level.

  Attributes:
    frames: uint8 [n, H, W, C].
    actions: int32 [n], each taken at its frame.
    first: bool [n], whether an episode begins at the frame.
    arrays: Further arrays [n, ...] of the records, by name.
    metadata: Further metadata of the records, JSON values.
  """

  frames: np.ndarray
  actions: np.ndarray
  first: np.ndarray
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Play = Callable[[int], Played]


@dataclasses.dataclass(frozen=True)
class Game:
  """Describes a game; must be picklable, because other processes play it.

  Attributes:
    title: Short name for the progress bar.
    manifest: Of the clips, without splits; `made_by` contains everything that
      affects the frames.
    levels: The levels of each split.
    frames_per_level: Number of frames that `play` returns.
    play: Plays one level.
    load: Called once before levels are played, for example to download a game.
  """

  title: str
  manifest: manifest_lib.Manifest
  levels: Mapping[str, range]
  frames_per_level: int
  play: Play
  load: Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a call of `collect`.

  Attributes:
    manifest: Of the finished folder.
    frames: Frames written by this call.
    kept_frames: Frames written by earlier calls.
    seconds: Wall time of this call, including the first load of the game.
  """

  manifest: manifest_lib.Manifest
  frames: int
  kept_frames: int
  seconds: float

  @property
  def bytes_per_frame(self) -> float:
    """Bytes on disk per frame of the folder, including actions."""
    splits = self.manifest.splits.values()
    size = sum(s["bytes"] for split in splits for s in split["shards"])
    return size / sum(split["frames"] for split in splits)


def collect(
  out: files.PathLike,
  game: Game,
  levels_per_shard: int,
  num_workers: int = 1,
) -> Report:
  """Collects a clips folder, or resumes one that a stopped run began.

  Args:
    out: The folder to write.
    game: The game to play.
    levels_per_shard: Levels per file; each file is written by one worker.
    num_workers: Processes that play; the bytes do not depend on it.

  Raises:
    UserError: There are no workers, or the folder cannot be resumed.
    OSError: The disk is full; the next run keeps finished shards.
  """
  if num_workers < 1:
    raise errors.UserError(f"--workers must be at least 1, not {num_workers}.")
  began = time.monotonic()
  writer = resumable.FolderWriter(
    out, game.manifest, game.levels, levels_per_shard
  )
  game.load()  # Once, before several workers load it.
  with writer:
    count = lambda shards: (
      game.frames_per_level * sum(len(shard.items) for shard in shards)
    )
    kept, missing = count(writer.kept), count(writer.missing)
    with progress.track(
      total=kept + missing,
      initial=kept,
      unit="frames",
      description=game.title,
    ) as bar:
      write = functools.partial(_write_shard, game, writer.folder)
      workers.run(write, writer.missing, num_workers, bar.update)
    manifest = writer.finish()
  return Report(manifest, missing, kept, time.monotonic() - began)


def _write_shard(
  game: Game, folder: pathlib.Path, shard: resumable.Shard, tick: workers.Tick
) -> None:
  """Plays the levels of one shard and writes them; runs in any process."""
  record = 0
  with resumable.ShardWriter(folder, shard) as writer:
    for level in shard.items:
      played = game.play(level)
      arrays = {
        "frames": played.frames,
        "actions": played.actions,
        "first": played.first,
        **played.arrays,
      }
      writer.episodes += manifest_lib.episodes_of(level, record, played.first)
      for start in range(0, len(played.frames), FRAMES_PER_RECORD):
        piece = slice(start, start + FRAMES_PER_RECORD)
        writer.write(
          records.pack(
            {name: array[piece] for name, array in arrays.items()},
            {
              "fps": game.manifest.fps,
              "source": level,
              "start": start,
              **played.metadata,
            },
          )
        )
        record += 1
      tick(len(played.frames))
