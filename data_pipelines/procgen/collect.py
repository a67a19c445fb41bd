r"""Collects clips of procgen's games.

Run:     genie data coinrun --out clips --levels 200 --validation-levels 60 \
             --test-levels 60 --frames-per-level 500
         genie data procgen --game ninja --policy walker --out clips
Source:  Genie, appendix F: CoinRun in hard mode, uniformly random actions
         without repeat, 1,000 steps per level, train levels 0 to 9,999.
         Validation levels 10,000 to 10,099 and test levels 10,100 to 10,199
         are our choice. Smaller runs use the first levels of each range.

Actions depend only on the game, the level, the policy and its seed.
`data_pipelines.games` writes the files, resumes and distributes the work.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from data_pipelines import games
from data_pipelines.procgen import client, planner, policies
from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards

# First level and number of levels of each split. Levels from 10,200 on are not
# used by anything.
SPLITS = {
  "train": (0, 10_000),
  "validation": (10_000, 100),
  "test": (10_100, 100),
}
# The special keys, and those that have an effect; the others do nothing, just
# like action 4. CoinRun uses none of them.
_SPECIAL_KEYS = range(9, 15)
_USED_KEYS = {
  "bossfight": (9,),
  "caveflyer": (9,),
  "dodgeball": (9,),
  "fruitbot": (9,),
  "ninja": tuple(_SPECIAL_KEYS),
  "plunder": (9,),
  "starpilot": tuple(_SPECIAL_KEYS),
}

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
    policy_seed: Seed of the policy; each level has its own generator,
      default_rng([policy_seed, level]).
    levels_per_shard: Levels per file.
    game: A name in `client.GAMES`.
    policy: A name in `policies.NAMES`.
    shares: For the policy "mix", pairs of another policy and its share of
      the levels.
    states: Whether records have the agent's true state as well, "states"
      float32 [n, 5] with the fields of `state.Agent`.
  """

  levels: int = 10_000
  validation_levels: int = 100
  test_levels: int = 100
  frames_per_level: int = 1_000
  mode: str = "hard"
  policy_seed: int = 0
  levels_per_shard: int = 50
  game: str = "coinrun"
  policy: str = "random"
  shares: tuple[tuple[str, float], ...] = ()
  states: bool = False

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
    if self.mode not in client.MODES:
      raise errors.UserError(
        f"--mode {self.mode!r} must be 'hard' or 'easy'"
        f"{errors.closest(self.mode, client.MODES)}."
      )
    if self.game not in client.GAMES:
      raise errors.UserError(
        f"--game {self.game!r} is not a game of procgen"
        f"{errors.closest(self.game, client.GAMES)}; use one of "
        f"{', '.join(client.GAMES)}."
      )
    self._check_policy()

  def _check_policy(self) -> None:
    for name in (self.policy, *dict(self.shares)):
      if name not in policies.NAMES:
        raise errors.UserError(
          f"--policy {name!r} is not a policy"
          f"{errors.closest(name, policies.NAMES)}; use one of "
          f"{', '.join(policies.NAMES)}."
        )
    if (self.policy == "mix") != bool(self.shares):
      raise errors.UserError(
        f"--policy {self.policy} and --shares do not fit together: a mix "
        "needs shares, for example --policy mix --shares "
        "random=0.2,walker=0.8, and other policies have none."
      )
    if "mix" in dict(self.shares) or not all(
      0 < share < float("inf") for _, share in self.shares
    ):
      raise errors.UserError(
        "--shares must give policies other than mix positive numbers, for "
        "example random=0.2,walker=0.8."
      )
    if "planner" in (self.policy, *dict(self.shares)) and (
      self.game not in planner.GAMES
    ):
      raise errors.UserError(
        f"--policy planner does not know the goal of {self.game}; it plays "
        f"{', '.join(planner.GAMES)}. Use --policy walker."
      )

  def counts(self) -> dict[str, int]:
    """Returns how many levels each split has."""
    return {
      "train": self.levels,
      "validation": self.validation_levels,
      "test": self.test_levels,
    }


def policy_of(level: int, options: Options) -> str:
  """Returns the policy that plays a level."""
  if options.policy != "mix":
    return options.policy
  # Not the generator of the actions, so that these do not depend on the mix.
  rng = np.random.default_rng([options.policy_seed, level, 1])
  return policies.choose(dict(options.shares), rng)


def play(level: int, options: Options) -> games.Played:
  """Plays one level."""
  policy = policy_of(level, options)
  rng = np.random.default_rng([options.policy_seed, level])
  with client.Env(options.game, level, options.mode) as env:
    recorder = policies.Recorder(env, options.frames_per_level, options.states)
    policies.play(policy, options.game, recorder, rng)
  return games.Played(
    recorder.frames,
    recorder.actions,
    recorder.first,
    arrays={"states": recorder.states} if options.states else {},
    metadata={} if _is_papers(options) else {"policy": policy},
  )


def action_aliases(game: str) -> dict[int, int]:
  """Returns the keys that have no effect in a game, as {key: 4}."""
  used = _USED_KEYS.get(game, ())
  return {key: 4 for key in _SPECIAL_KEYS if key not in used}


def _is_papers(options: Options) -> bool:
  """Whether these are the clips of the paper's case study.

  Their files are the same, byte for byte, as before there were other games and
  policies; their records do not state the policy, which the manifest states.
  """
  return (options.game, options.policy, options.states) == (
    "coinrun",
    "random",
    False,
  )


def _made_by(options: Options) -> dict[str, Any]:
  """Returns the manifest's fields about the origin of the frames."""
  fields = dataclasses.asdict(options)
  policy = {
    "random": "uniformly random over 15 actions, no repeat",
    "walker": "holds directions, jumps, and reacts when it is stuck",
    "planner": "follows a planner's path to the goal, with random pushes",
    "mix": "each level is played by one policy, drawn by its share",
  }[options.policy]
  fields["shares"] = dict(options.shares)
  if _is_papers(options):
    # As written before there were other games and policies.
    for name in ("game", "policy", "shares", "states"):
      del fields[name]
  keys = {"keys": keys_of(options.game)} if options.states else {}
  return {
    **keys,
    "collector": "data_pipelines.coinrun.collect"
    if _is_papers(options)
    else "data_pipelines.procgen.collect",
    "collector_version": _COLLECTOR_VERSION,
    "simulator": client.WHEEL,
    "simulator_sha256": client.WHEEL_SHA256,
    "policy": policy,
    "first_levels": {split: begin for split, (begin, _) in SPLITS.items()},
    "options": fields,
    "record_options": shards.FRAMES_OPTIONS,
    "licences": (
      "procgen code: MIT (OpenAI); drawn assets: CC0, CC-BY 3.0, CC-BY "
      "4.0 and OGA-BY 3.0; who publishes frames must credit the authors "
      "listed in data_pipelines/coinrun/ASSETS.md"
    ),
  }


def keys_of(game: str) -> dict[str, list[int]]:
  """Returns what each of the 15 actions means, for evaluations.

  Returns:
    "horizontal": -1 left, 0 neither, 1 right. "effect": actions with the same
    number do the same, in platformers "down" as no vertical key. In
    platformers also "jump": whether "up" is pressed.
  """
  platformer = game in policies.PLATFORMERS
  aliases = action_aliases(game)
  keys = [aliases.get(key, key) for key in range(client.NUM_ACTIONS)]
  known = {key: key for key in keys}
  if platformer:
    known |= {0: 1, 3: 4, 6: 7}
  found = {
    "horizontal": [key // 3 - 1 if key < 9 else 0 for key in keys],
    "effect": [known[key] for key in keys],
  }
  if platformer:
    found["jump"] = [int(key < 9 and key % 3 == 2) for key in keys]
  return found


def make_game(options: Options) -> games.Game:
  """Returns the game with these options, for `games.collect`."""
  name = f"{options.game}-{options.mode}"
  return games.Game(
    title=options.game,
    manifest=manifest_lib.Manifest(
      kind="clips",
      name=name if options.policy == "random" else f"{name}-{options.policy}",
      fps=client.FPS,
      frame_shape=client.FRAME_SHAPE,
      frames_per_record=games.FRAMES_PER_RECORD,
      splits={},
      num_actions=client.NUM_ACTIONS,
      action_aliases=action_aliases(options.game),
      made_by=_made_by(options),
    ),
    levels={
      split: range(SPLITS[split][0], SPLITS[split][0] + count)
      for split, count in options.counts().items()
    },
    frames_per_level=options.frames_per_level,
    play=functools.partial(play, options=options),
    load=client.load,
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
