r"""Collects counterfactuals: each key held from the same states of a game.

Run:     genie data procgen --game coinrun --policy walker --out clips \
             --counterfactuals 4

The held-out levels of a clips folder are played again as they were recorded,
and N moments of each level are taken from this recording. From the saved state
of each moment all 15 keys are held in turn. The format is that of
`genie_jax.data.counterfactuals`; the clips themselves stay the same.

A moment is only used if its history lies within one episode, and no episode
ends while any of the keys is held or the policy plays on: otherwise it is drawn
again. So no future shows another episode, and a level has fewer than N moments
where too few of its states allow that.

Standing starts (`--standing N`, in the folder `standing`) are moments from
which a world should walk: the agent stands still, with room on both sides, and
on one of them enough to run. The walker itself stands still at walls, so these
are states of his on the ground, in which he was then left to rest.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines import workers
from data_pipelines.procgen import client, collect, policies
from data_pipelines.procgen import state as state_lib
from genie_jax.core import errors, files, progress
from genie_jax.data import counterfactuals, resumable
from genie_jax.data import manifest as manifest_lib

SPLITS = ("validation", "test")  # Nothing is trained on counterfactuals.
# From a standing start each of the keys left and right moves the agent by the
# first number of cells in so many frames, and one of them by the second. In
# CoinRun's frames a cell has 4.9 pixels; most of its passages are 3 cells long.
ROOM_FRAMES, ROOM_CELLS = 12, (1.0, 2.75)
_STANDING_SPEED = 0.01  # Cells per step.
_REST = 12  # Steps without a key after which a running agent stands.


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the counterfactuals of a clips folder.

  Attributes:
    moments: N, most moments of each level.
    frames: F, frames for which each key is held.
    history: P, frames up to the moment, itself included.
    standing: Whether to use standing starts only.
  """

  moments: int
  frames: int = 8
  history: int = 8
  standing: bool = False

  @property
  def folder(self) -> str:
    """The folder's name in the clips folder."""
    return counterfactuals.STANDING if self.standing else counterfactuals.FOLDER

  def check(self, clips: collect.Options) -> None:
    """Raises UserError if the options do not fit those of the clips."""
    flag = f"--{self.folder}"
    if self.moments < 1:
      raise errors.UserError(
        f"{flag} must be at least 1, not {self.moments}; leave it out to "
        "collect none."
      )
    if self.standing and clips.game not in state_lib.WITH_SUPPORT:
      raise errors.UserError(
        f"--standing needs a game that saves whether the agent stands, but "
        f"{clips.game} does not; use one of "
        f"{', '.join(state_lib.WITH_SUPPORT)}, or leave it out."
      )
    if self.frames < 1:
      raise errors.UserError(
        f"--counterfactual-frames must be at least 1, not {self.frames}."
      )
    if not any(clips.counts()[split] for split in SPLITS):
      raise errors.UserError(
        f"{flag} needs held-out levels; give --validation-levels or "
        "--test-levels."
      )
    needed = self.history + self.frames
    if clips.frames_per_level < needed:
      raise errors.UserError(
        f"--frames-per-level {clips.frames_per_level} is too short for "
        f"counterfactuals: a moment needs {self.history} frames before it and "
        f"{self.frames} after it, so give at least {needed}."
      )


@dataclasses.dataclass(frozen=True)
class Report:
  """Result of a call of `collect_moments`.

  Attributes:
    manifest: Of the finished folder.
    moments: Number of moments in it.
    seconds: Wall time of this call.
  """

  manifest: manifest_lib.Manifest
  moments: int
  seconds: float

  @property
  def bytes_per_moment(self) -> float:
    """Bytes on disk per moment."""
    splits = self.manifest.splits.values()
    size = sum(entry["bytes"] for split in splits for entry in split["shards"])
    return size / self.moments


def candidates(first: np.ndarray, history: int, frames: int) -> np.ndarray:
  """Returns the steps whose history and recorded future are in one episode.

  Args:
    first: bool [n], whether an episode begins at each frame.
    history: P, frames up to the step, itself included.
    frames: F, frames after the step.

  Returns:
    int [m], in ascending order.
  """
  count = len(first)
  begins = np.append(0, np.cumsum(first))  # Episodes begun before each frame.
  steps = np.arange(history - 1, count - frames)
  # No episode begins after the first frame of the history.
  return steps[begins[steps + frames + 1] == begins[steps - history + 2]]


def moments_of(
  level: int, clips: collect.Options, options: Options
) -> list[counterfactuals.Moment]:
  """Plays a level and returns its moments, in order of their steps."""
  with client.Env(clips.game, level, clips.mode) as env:
    recorder = policies.Recorder(
      env, clips.frames_per_level, with_states=True, keep_saved=True
    )
    policies.play(
      collect.policy_of(level, clips),
      clips.game,
      recorder,
      np.random.default_rng([clips.policy_seed, level]),
    )
    # Not the generators of the actions and of the mix.
    rng = np.random.default_rng([clips.policy_seed, level, 2])
    steps = candidates(recorder.first, options.history, options.frames)
    if options.standing:
      steps = one_of_each_place(
        rng.permutation(steps[recorder.states[steps, 4] == 1]),
        recorder.states,
      )
    found = []
    # One moment of each part, so that they are spread over the recording.
    for part in np.array_split(steps, options.moments):
      for step in rng.permutation(part):
        moment = _moment(level, recorder, int(step), options)
        if moment is not None:
          found.append(moment)
          break
  return found


def one_of_each_place(steps: np.ndarray, states: np.ndarray) -> np.ndarray:
  """Returns the first step at each place, in ascending order.

  A player who walks to and fro has the same room wherever he comes again.

  Args:
    steps: int [m].
    states: float32 [n, 5], the states at all steps.
  """
  cells = np.round(states[steps, :2] * (2, 1))  # Half a cell wide.
  _, firsts = np.unique(cells, axis=0, return_index=True)
  return np.sort(steps[firsts])


def stands(states: np.ndarray) -> np.ndarray:
  """Returns whether the agent stands still on something, bool [n].

  Args:
    states: float32 [n, 5], fields of `state.Agent`.
  """
  slow = np.abs(states[:, 2:4]).max(1, initial=0.0) < _STANDING_SPEED
  return slow & (states[:, 4] == 1)


@dataclasses.dataclass(frozen=True)
class _Past:
  """What led to a moment.

  Attributes:
    saved: The complete state at the moment.
    frames: uint8 [P, 64, 64, 3], the moment's frame last.
    keys: int32 [P-1].
    states: float32 [P, 5].
    own: int32 [F], the keys that the policy presses next.
  """

  saved: bytes
  frames: np.ndarray
  keys: np.ndarray
  states: np.ndarray
  own: np.ndarray


def _recorded(
  recorder: policies.Recorder, step: int, options: Options
) -> _Past:
  """Returns what led to a step of the recording."""
  past = slice(step - options.history + 1, step + 1)
  return _Past(
    recorder.saved[step],
    recorder.frames[past],
    recorder.actions[past][:-1],
    recorder.states[past],
    recorder.actions[step : step + options.frames],
  )


def _rested(
  recorder: policies.Recorder, step: int, options: Options
) -> _Past | None:
  """Lets the agent rest from a step on; None if he then has no room."""
  env, rest = recorder.env, policies.direction_key(0)
  count = max(_REST, options.history - 1)
  played = _press(env, recorder.saved[step], [rest] * count)
  if played is None:
    return None
  frames = np.concatenate([recorder.frames[step][None], played[0]])
  states = np.concatenate([recorder.states[step][None], played[1]])
  saved = env.get_state()
  if not stands(states[-1:])[0]:
    return None
  moved = []
  for side in (-1, 1):
    held = [policies.direction_key(side)] * ROOM_FRAMES
    played = _press(env, saved, held)
    if played is None:
      return None
    moved.append(side * (played[1][-1, 0] - states[-1, 0]))
  if min(moved) < ROOM_CELLS[0] or max(moved) < ROOM_CELLS[1]:
    return None
  return _Past(
    saved,
    frames[-options.history :],
    np.full(options.history - 1, rest, np.int32),
    states[-options.history :],
    np.full(options.frames, rest, np.int32),
  )


def _moment(
  level: int, recorder: policies.Recorder, step: int, options: Options
) -> counterfactuals.Moment | None:
  """Returns the moment at a step; None if there is none or an episode ends."""
  find = _rested if options.standing else _recorded
  past = find(recorder, step, options)
  if past is None:
    return None
  keys = np.full((client.NUM_ACTIONS + 1, options.frames), past.own, np.int32)
  keys[:-1] = np.arange(client.NUM_ACTIONS)[:, None]
  futures, states = [], []
  for row in keys:
    played = _press(recorder.env, past.saved, row.tolist())
    if played is None:
      return None
    futures.append(played[0])
    states.append(played[1])
  if not options.standing:
    # The same state and keys must give the same frames as the recording.
    after = slice(step + 1, step + 1 + options.frames)
    assert np.array_equal(futures[-1], recorder.frames[after]), (level, step)
  distinct, future_of = counterfactuals.merge_equal(np.stack(futures))
  return counterfactuals.Moment(
    level=level,
    step=step,
    history=past.frames,
    history_keys=past.keys,
    history_states=past.states,
    keys=keys,
    distinct=distinct,
    future_of=future_of,
    states=np.stack(states),
  )


def _press(
  env: client.Env, saved: bytes, keys: Sequence[int]
) -> tuple[np.ndarray, np.ndarray] | None:
  """Plays keys from a state.

  Returns:
    Frames, uint8 [F, 64, 64, 3], and true states, float32 [F, 5]; None if an
    episode ends.
  """
  env.set_state(saved)
  frames, states = [], []
  for key in keys:
    env.act(key)
    _, first = env.observe()
    if first:
      return None
    frames.append(env.frame.copy())
    states.append(state_lib.agent(env.get_state()))
  return np.stack(frames), np.array(states, np.float32)


def make_manifest(
  clips: manifest_lib.Manifest, game: str, options: Options
) -> manifest_lib.Manifest:
  """Returns the manifest of a clips folder's counterfactuals, without splits.

  Args:
    clips: The finished clips.
    game: The game's name.
    options: What to collect.
  """
  rows = client.NUM_ACTIONS + 1
  return dataclasses.replace(
    clips,
    kind=counterfactuals.KIND,
    frames_per_record=options.history + rows * options.frames,
    splits={},
    made_by={
      **clips.made_by,
      "keys": collect.keys_of(game),
      "clips_fingerprint": clips.fingerprint,
      counterfactuals.KIND: {
        **counterfactuals.made_by(
          options.history, options.frames, client.NUM_ACTIONS
        ),
        "moments_per_level": options.moments,
        **({"standing": True} if options.standing else {}),
      },
    },
    folder=None,
  )


def collect_moments(
  out: files.PathLike,
  clips: collect.Options,
  options: Options,
  num_workers: int = 1,
) -> Report:
  """Collects the counterfactuals of a finished clips folder, or resumes.

  Args:
    out: The clips folder; they are written to its folder `counterfactuals`,
      or `standing`.
    clips: The options with which the clips were collected.
    options: What to collect.
    num_workers: Processes that play; the bytes do not depend on it.

  Raises:
    UserError: An option is out of range, the folder has other counterfactuals,
      or the levels of a shard have no moment.
    OSError: The disk is full; the next run keeps finished shards.
  """
  options.check(clips)
  began = time.monotonic()
  counts = clips.counts()
  writer = resumable.FolderWriter(
    counterfactuals.address(out, options.folder),
    make_manifest(manifest_lib.Manifest.read(out), clips.game, options),
    {
      split: range(collect.SPLITS[split][0], collect.SPLITS[split][0] + count)
      for split in SPLITS
      if (count := counts[split])
    },
    clips.levels_per_shard,
  )
  client.load()  # Once, before several workers load it.
  with writer:
    levels = lambda shards: sum(len(shard.items) for shard in shards)
    kept, missing = levels(writer.kept), levels(writer.missing)
    with progress.track(
      total=kept + missing,
      initial=kept,
      unit="levels",
      description=options.folder,
    ) as bar:
      write = functools.partial(_write_shard, clips, options, writer.folder)
      workers.run(write, writer.missing, num_workers, bar.update)
    manifest = writer.finish()
  moments = sum(split["records"] for split in manifest.splits.values())
  return Report(manifest, moments, time.monotonic() - began)


def _write_shard(
  clips: collect.Options,
  options: Options,
  folder: pathlib.Path,
  shard: resumable.Shard,
  tick: workers.Tick,
) -> None:
  """Plays the levels of one shard and writes them; runs in any process."""
  with resumable.ShardWriter(folder, shard) as writer:
    for moment in _moments(clips, options, shard.items, tick):
      writer.episodes.append(
        [moment.level, len(writer.episodes), moment.step, moment.num_frames]
      )
      writer.write(counterfactuals.pack(moment, client.FPS))
    if not writer.episodes:
      raise errors.UserError(
        f"Levels {shard.items[0]} to {shard.items[-1]} have no state from "
        f"which every key can be held for {options.frames} frames without the "
        "end of an episode"
        + (", and in which the agent stands" if options.standing else "")
        + "; give fewer frames, another --policy, or more --frames-per-level."
      )


def _moments(
  clips: collect.Options, options: Options, levels: range, tick: workers.Tick
) -> Iterator[counterfactuals.Moment]:
  for level in levels:
    yield from moments_of(level, clips, options)
    tick(1)
