r"""Collects CoinRun clips as Genie does (Genie, appendix F).

Run:     genie data coinrun --out clips --levels 200 --validation-levels 60 \
             --test-levels 60 --frames-per-level 500
Source:  hard mode, uniformly random actions without repeat, 1,000 steps per
         level, train levels 0 to 9,999. Validation levels 10,000 to 10,099
         and test levels 10,100 to 10,199 are our choice. Smaller runs use the
         first levels of each range.

Actions depend only on the level and the policy's seed. `data_pipelines.games`
writes the files, resumes and distributes the work.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from data_pipelines import games
from data_pipelines.coinrun import procgen_client
from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards

# First level and number of levels of each split.
SPLITS = {
  "train": (0, 10_000),
  "validation": (10_000, 100),
  "test": (10_100, 100),
}
# The six special keys have no effect in CoinRun, just like action 4.
ACTION_ALIASES = dict.fromkeys(range(9, 15), 4)

_COLLECTOR_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the collector; the same options give the same bytes.

  Attributes:
    levels: Number of train levels, whose seeds start at 0.
    validation_levels: Number of validation levels, from seed 10,000.
    test_levels: Number of test levels, from seed 10,100.
    frames_per_level: Steps played in each level.
    mode: "hard", as in the paper, or "easy".
    policy_seed: Actions of a level are drawn with
      default_rng([policy_seed, level]).
    levels_per_shard: Levels per file.
  """

  levels: int = 10_000
  validation_levels: int = 100
  test_levels: int = 100
  frames_per_level: int = 1_000
  mode: str = "hard"
  policy_seed: int = 0
  levels_per_shard: int = 50

  def check(self) -> None:
    """Raises UserError if a value is out of range."""
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
        f"--policy-seed is {self.policy_seed}; it must not be negative."
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


def _made_by(options: Options) -> dict[str, Any]:
  """Returns the provenance of the frames, for the manifest."""
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


def make_game(options: Options) -> games.Game:
  """Returns CoinRun as a `Game`."""
  return games.Game(
    title="coinrun",
    manifest=manifest_lib.Manifest(
      kind="clips",
      name=f"coinrun-{options.mode}",
      fps=procgen_client.FPS,
      frame_shape=procgen_client.FRAME_SHAPE,
      frames_per_record=games.FRAMES_PER_RECORD,
      splits={},
      num_actions=procgen_client.NUM_ACTIONS,
      action_aliases=ACTION_ALIASES,
      made_by=_made_by(options),
    ),
    levels={
      split: range(SPLITS[split][0], SPLITS[split][0] + count)
      for split, count in options.counts().items()
    },
    frames_per_level=options.frames_per_level,
    play=functools.partial(play, options=options),
    load=procgen_client.load,
  )


def collect(
  out: files.PathLike,
  options: Options,
  num_workers: int = 1,
) -> games.Report:
  """Collects a clips folder, or resumes one that a stopped run began.

  Args:
    out: The folder to write.
    options: What to collect.
    num_workers: Processes that play; the bytes do not depend on it.

  Raises:
    UserError: An option is out of range, the folder has other content,
      another collector is writing to it, or procgen cannot be loaded.
    OSError: The disk is full; the next run keeps finished shards.
  """
  options.check()
  return games.collect(
    out, make_game(options), options.levels_per_shard, num_workers
  )
