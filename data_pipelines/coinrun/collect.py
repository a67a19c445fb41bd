r"""Collects CoinRun clips as Genie does (Genie, appendix F).

Run:     genie data coinrun --out clips --levels 200 --validation-levels 60 \
             --test-levels 60 --frames-per-level 500
Source:  hard mode, uniformly random actions without repeat, 1,000 steps a
         level; train levels 0 to 9,999; ours are validation levels 10,000 to
         10,099 and test levels 10,100 to 10,199. Small runs take prefixes.

Shards are fixed ranges of levels and actions depend on the level alone, so
the folder is byte for byte the same for any number of workers. A shard gets
its name when it is whole; what a killed run finished is checked and kept.
"""

import dataclasses
import fcntl
import functools
import pathlib
import shutil
import time
from typing import Any

import numpy as np

from data_pipelines.coinrun import procgen_client, workers
from genie_jax.core import buckets, errors, files, progress
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import records, shards

# First level and number of levels of each split.
SPLITS = {
  "train": (0, 10_000),
  "validation": (10_000, 100),
  "test": (10_100, 100),
}
FRAMES_PER_RECORD = 16
# The six special keys do nothing in CoinRun, exactly as action 4.
ACTION_ALIASES = dict.fromkeys(range(9, 15), 4)

_COLLECTOR_VERSION = 1
_PROGRESS = ".progress"


@dataclasses.dataclass(frozen=True)
class Options:
  """What is collected; the same options give the same bytes.

  Attributes:
    levels: Train levels, from seed 0 on.
    validation_levels: Validation levels, from seed 10,000 on.
    test_levels: Test levels, from seed 10,100 on.
    frames_per_level: Steps played in each level.
    mode: "hard", as in the paper, or "easy".
    policy_seed: Actions of a level come from default_rng([it, level]).
    levels_per_shard: Levels in a file.
  """

  levels: int = 10_000
  validation_levels: int = 100
  test_levels: int = 100
  frames_per_level: int = 1_000
  mode: str = "hard"
  policy_seed: int = 0
  levels_per_shard: int = 50

  def check(self) -> None:
    """Raises UserError where a value is out of range."""
    for split, count in self.counts().items():
      name = "levels" if split == "train" else f"{split}_levels"
      if not 0 <= count <= SPLITS[split][1]:
        raise errors.UserError(
          f"--{name.replace('_', '-')} {count}: {split} has 0 to "
          f"{SPLITS[split][1]} levels, so that splits stay disjoint."
        )
    if not self.levels:
      raise errors.UserError("--levels 0: collect at least one train level.")
    for name in ("frames_per_level", "levels_per_shard"):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f"--{name.replace('_', '-')} must be at least 1, not "
          f"{getattr(self, name)}."
        )
    if self.policy_seed < 0:
      raise errors.UserError(
        f"--policy-seed must not be negative, as {self.policy_seed} is."
      )
    if self.mode not in procgen_client.MODES:
      raise errors.UserError(
        f"--mode {self.mode!r} must be 'hard' or 'easy'"
        f"{errors.closest(self.mode, procgen_client.MODES)}."
      )

  def counts(self) -> dict[str, int]:
    """Returns how many levels each split has."""
    return {
      "train": self.levels,
      "validation": self.validation_levels,
      "test": self.test_levels,
    }


@dataclasses.dataclass(frozen=True)
class Job:
  """One shard to be written."""

  split: str
  name: str
  levels: range


@dataclasses.dataclass(frozen=True)
class Report:
  """What one call of `collect` did.

  Attributes:
    manifest: Of the finished folder.
    frames: Frames written by this call.
    kept_frames: Frames that an earlier call had written.
    seconds: Wall time of this call, the first load of the game included.
  """

  manifest: manifest_lib.Manifest
  frames: int
  kept_frames: int
  seconds: float

  @property
  def bytes_per_frame(self) -> float:
    """Bytes on disk for each frame of the folder, actions included."""
    splits = self.manifest.splits.values()
    size = sum(s["bytes"] for split in splits for s in split["shards"])
    return size / sum(split["frames"] for split in splits)


def play(
  level: int,
  options: Options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Plays one level with uniformly random actions.

  Returns:
    frames [n, 64, 64, 3] uint8, actions [n] int32 (taken at each frame), and
    first [n] bool (an episode begins at the frame), n = frames_per_level.
  """
  count = options.frames_per_level
  actions = np.random.default_rng([options.policy_seed, level]).integers(
    0, procgen_client.NUM_ACTIONS, size=count, dtype=np.int32
  )
  frames = np.empty((count, *procgen_client.FRAME_SHAPE), np.uint8)
  first = np.empty(count, bool)
  with procgen_client.CoinRun(level, options.mode) as game:
    for step, action in enumerate(actions.tolist()):
      _, first[step] = game.observe()
      frames[step] = game.frame
      game.act(action)
  return frames, actions, first


def plan(options: Options) -> list[Job]:
  """Returns the shards of all splits, in order."""
  jobs = []
  for split, count in options.counts().items():
    begin, size = SPLITS[split][0], options.levels_per_shard
    number = -(-count // size)
    jobs += [
      Job(
        split,
        shards.shard_name(index, number),
        range(begin + index * size, begin + min((index + 1) * size, count)),
      )
      for index in range(number)
    ]
  return jobs


def write_shard(
  job: Job,
  tick: workers.Tick,
  out: pathlib.Path,
  options: Options,
) -> dict[str, Any]:
  """Writes one shard, notes that it is done, and returns its entry.

  Args:
    job: Which shard.
    out: The clips folder.
    options: How to play.
    tick: Called with the number of frames after each level.
  """
  episodes, record = [], 0
  with shards.ShardWriter(out / job.split / job.name) as writer:
    for level in job.levels:
      frames, actions, first = play(level, options)
      episodes += manifest_lib.episodes_of(level, record, first)
      for start in range(0, len(frames), FRAMES_PER_RECORD):
        piece = slice(start, start + FRAMES_PER_RECORD)
        writer.write(
          records.pack(
            {
              "frames": frames[piece],
              "actions": actions[piece],
              "first": first[piece],
            },
            {"fps": procgen_client.FPS, "source": level, "start": start},
          )
        )
        record += 1
      tick(len(frames))
  entry = {**writer.entry, "episodes": episodes}
  files.write_json(_note(out, job), entry)
  return entry


def _note(out: pathlib.Path, job: Job) -> pathlib.Path:
  return out / _PROGRESS / f"{job.split}-{job.name}.json"


def _made_by(options: Options) -> dict[str, Any]:
  """Returns the manifest's account of where the frames come from."""
  return {
    "collector": "data_pipelines.coinrun.collect",
    "collector_version": _COLLECTOR_VERSION,
    "simulator": procgen_client.WHEEL,
    "simulator_sha256": procgen_client.WHEEL_SHA256,
    "policy": "uniformly random over 15 actions, no repeat",
    "first_levels": {split: begin for split, (begin, _) in SPLITS.items()},
    "options": dataclasses.asdict(options),
    "record_options": shards.FRAMES_OPTIONS,
    "licences": (
      "procgen code: MIT (OpenAI); drawn assets: CC0, CC-BY 3.0, CC-BY "
      "4.0 and OGA-BY 3.0; who publishes frames must credit the authors "
      "listed in data_pipelines/coinrun/ASSETS.md"
    ),
  }


def _earlier(
  out: pathlib.Path,
  options: Options,
) -> dict[tuple[str, str], dict[str, Any]]:
  """Returns entries of shards that earlier runs finished, by split and name.

  Raises:
    UserError: The folder holds something else.
  """
  request = out / _PROGRESS / "request.json"
  entries = {}
  if (out / manifest_lib.FILE_NAME).exists():
    manifest = manifest_lib.Manifest.read(out)
    found = manifest.made_by
    entries = {
      (split, entry["file"]): entry
      for split, summary in manifest.splits.items()
      for entry in summary["shards"]
    }
  elif request.exists():
    found = files.read_json(request)
  elif out.is_dir() and any(out.iterdir()):
    raise errors.UserError(
      f"--out {out} is not empty and holds no CoinRun clips; give a new or "
      "empty folder."
    )
  else:
    return {}
  wanted = _made_by(options)
  if found != wanted:
    old, new = found.get("options", {}), wanted["options"]
    different = [
      f"{name} {old.get(name)!r} there, {value!r} now"
      for name, value in new.items()
      if old.get(name) != value
    ]
    raise errors.UserError(
      f"--out {out} was begun with other options "
      f"({'; '.join(different) or 'another collector'}); give the same "
      "options to go on, or another folder."
    )
  for job in plan(options):
    if _note(out, job).exists():
      entries[job.split, job.name] = files.read_json(_note(out, job))
  return entries


def _still_whole(path: pathlib.Path, entry: dict[str, Any]) -> bool:
  return path.is_file() and files.sha256(path) == entry["sha256"]


def collect(
  out: files.PathLike,
  options: Options,
  num_workers: int = 1,
) -> Report:
  """Collects a clips folder, or finishes one that a killed run began.

  Args:
    out: The folder to write.
    options: What to collect.
    num_workers: Processes that play; the bytes do not depend on it.

  Raises:
    UserError: Options out of range, a folder with other contents, another
      collector at work in it, or no procgen.
    OSError: The disk is full; finished shards stay for the next run.
  """
  options.check()
  if num_workers < 1:
    raise errors.UserError(f"--workers must be at least 1, not {num_workers}.")
  out, began = buckets.disk(out, "--out"), time.monotonic()
  entries = _earlier(out, options)
  procgen_client.load()  # Fetched once, before the workers want it.
  (out / _PROGRESS).mkdir(parents=True, exist_ok=True)
  with open(out / _PROGRESS / "lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise errors.UserError(
        f"Another process is collecting into {out}; wait for it or give "
        "another folder."
      ) from error
    files.write_json(out / _PROGRESS / "request.json", _made_by(options))
    for left in out.glob("*/.*.tmp"):  # Of a killed writer; we hold the lock.
      left.unlink()
    jobs = plan(options)
    done = {
      job: entries[job.split, job.name]
      for job in jobs
      if (job.split, job.name) in entries
      and _still_whole(out / job.split / job.name, entries[job.split, job.name])
    }
    for job, entry in done.items():
      files.write_json(_note(out, job), entry)
    missing = [job for job in jobs if job not in done]
    if missing:
      # Until all shards are whole again the folder must not look finished.
      (out / manifest_lib.FILE_NAME).unlink(missing_ok=True)
    sizes = {job: len(job.levels) * options.frames_per_level for job in jobs}
    kept = sum(sizes[job] for job in done)
    with progress.track(
      total=sum(sizes.values()),
      initial=kept,
      unit="frames",
      description="coinrun",
    ) as bar:
      write = functools.partial(write_shard, out=out, options=options)
      done |= workers.run(write, missing, num_workers, bar.update)
    manifest = _summarise(options, {job: done[job] for job in jobs})
    manifest.write(out)
    shutil.rmtree(out / _PROGRESS)
  return Report(
    manifest, sum(sizes[job] for job in missing), kept, time.monotonic() - began
  )


def _summarise(
  options: Options,
  done: dict[Job, dict[str, Any]],
) -> manifest_lib.Manifest:
  return manifest_lib.Manifest(
    kind="clips",
    name=f"coinrun-{options.mode}",
    fps=procgen_client.FPS,
    frame_shape=procgen_client.FRAME_SHAPE,
    frames_per_record=FRAMES_PER_RECORD,
    splits={
      split: manifest_lib.split_summary(
        [entry for job, entry in done.items() if job.split == split],
        count * options.frames_per_level,
      )
      for split, count in options.counts().items()
    },
    num_actions=procgen_client.NUM_ACTIONS,
    action_aliases=ACTION_ALIASES,
    made_by=_made_by(options),
  )
