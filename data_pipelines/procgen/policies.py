"""Policies that play procgen's games, and a recorder of what they do.

  random   uniformly random actions, no repeat (Genie, appendix F)
  walker   long holds of a direction that react to standing still
  planner  the path of a planner to the goal, with random pushes
  mix      each level is played by one of the others, by shares

With random actions, CoinRun's agent stays at the left wall of nearly every
level, so videos of it contain hardly any horizontal motion. The walker holds
each direction for up to three seconds and jumps now and then. It sees walls: it
jumps over them if it can, and otherwise rests or turns around. In platformers
without a planner, where a death leads back to the start of the level, it does
the same where going on would end the episode.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.procgen import client, planner
from data_pipelines.procgen import state as state_lib

NAMES = ("random", "walker", "planner", "mix")

# An action of procgen is 3 * (horizontal + 1) + (vertical + 1), each -1, 0 or
# 1; 9 to 14 are the six special keys.
_NONE = 4
_FIRE = 9
_UP = 1

# Games in which the agent falls, and jumps with "up".
PLATFORMERS = ("climber", "coinrun", "jumper", "ninja")
# Games in which special keys fire or throw something.
_WITH_FIRE = (
  "bossfight",
  "caveflyer",
  "dodgeball",
  "fruitbot",
  "ninja",
  "plunder",
  "starpilot",
)

_SEGMENT = 128  # Steps before the walker continues from another state.
_FALL = 24  # Steps in which an agent in the air must land.
_STATES_EVERY = 4  # Steps of the planner's path between two start states.
_HOLDS = (16, 48)  # Steps for which a direction is held, inclusive.
_PAUSES = (4, 16)  # The same without a direction, in platformers.
_PAUSES_ABOVE = (1, 4)  # The same, seen from above.
_LEFT, _STILL = 0.37, 0.20  # Shares of directions; the rest is right.
_JUMPS = 0.02  # Probability per step that a jump begins.
_JUMP_HOLDS = (1, 5)
_STUCK_CELLS = 0.01  # Motion per step that counts as none, in cells.
# What the walker does in platformers at a wall. With the first probability it
# pushes for a step, with the second it takes the shortest of these jumps that
# leads past the wall, if there is one. Otherwise it rests with the third
# probability, or turns around. In the air it lets go until it can move.
_WALL_PUSHES = 0.1
_WALL_JUMPS = 0.5
_WALL_RESTS = 0.3
_WALL_JUMP_HOLDS = (3, 6, 10)
_WALL_JUMP_STEPS = 16  # Steps after which the result of a jump is judged.
_WALL_JUMP_CELLS = 2.0  # Cells by which it must lead forward.
# Steps for which the walker looks ahead where it does not begin anew elsewhere
# after a death, and sees a fall or a bomb.
_LOOK_AHEAD = 20
_FIRE_SHARE = 0.05

_PUSHES = 0.02  # Probability per step that the planner is pushed.
_PUSH_HOLDS = (2, 8)
_REPLAN_MACROS = 600  # Budget of a plan after a push.
_WANDER = 32  # Steps of the walker where no plan was found.


class Recorder:
  """Plays a level and records frames, actions, episodes and true states.

  Attributes:
    env: The game.
    frames: uint8 [n, 64, 64, 3].
    actions: int32 [n], the action taken at each frame.
    first: bool [n], whether an episode begins at the frame.
    states: float32 [n, 5], fields of `state.Agent` at each frame.
    saved: Complete states of the game at each frame, for `Env.set_state`;
      empty unless they are kept.
    step: Number of frames recorded so far.
    begins: Whether an episode begins at the current frame.
  """

  def __init__(
    self,
    env: client.Env,
    count: int,
    with_states: bool,
    keep_saved: bool = False,
  ):
    """Draws the first frame.

    Args:
      env: A new level.
      count: n, frames to record.
      with_states: Whether to record true states.
      keep_saved: Whether to keep complete states, 40 kB for each frame.
    """
    self.env = env
    self.frames = np.empty((count, *client.FRAME_SHAPE), np.uint8)
    self.actions = np.empty(count, np.int32)
    self.first = np.empty(count, bool)
    self.states = np.empty((count, len(state_lib.Agent._fields)), np.float32)
    self.step = 0
    self.saved: list[bytes] = []
    self._state: bytes | None = None  # Of the current frame, once it was read.
    self._with_states = with_states
    self._keep_saved = keep_saved
    _, self.begins = env.observe()

  @property
  def full(self) -> bool:
    """Whether all frames are recorded."""
    return self.step == len(self.frames)

  def act(self, action: int) -> None:
    """Records the current frame, takes an action, and draws the next frame."""
    self.frames[self.step] = self.env.frame
    self.first[self.step] = self.begins
    self.actions[self.step] = action
    if self._with_states:
      self.states[self.step] = self.agent()
    if self._keep_saved:
      self.saved.append(self.state())
    self._state = None
    self.step += 1
    self.env.act(action)
    _, self.begins = self.env.observe()

  def jump_to(self, saved: bytes) -> None:
    """Restores a state of the same level; the next frame begins an episode."""
    self._state = None
    self.env.set_state(saved)
    self.env.observe()
    self.begins = True

  def state(self) -> bytes:
    """Returns the complete state of the game at the current frame."""
    if self._state is None:
      self._state = self.env.get_state()
    return self._state

  def agent(self) -> state_lib.Agent:
    """Returns the agent's true state."""
    return state_lib.agent(self.state())

  def try_out(self, actions: Sequence[int]) -> state_lib.Agent | None:
    """Plays actions without recording them, and puts the game back.

    Returns:
      The agent's state after them; None if an episode ends before.
    """
    start = self.state()
    after = None
    for action in actions:
      self.env.act(action)
      _, ended = self.env.observe()
      if ended:
        break
    else:
      after = state_lib.agent(self.env.get_state())
    self.env.set_state(start)
    self.env.observe()
    return after


def direction_key(horizontal: int, vertical: int = 0) -> int:
  """Returns the action of a direction, each -1, 0 or 1."""
  return 3 * (horizontal + 1) + vertical + 1


def play(
  policy: str, game: str, recorder: Recorder, rng: np.random.Generator
) -> None:
  """Plays until the recorder is full.

  Args:
    policy: "random", "walker" or "planner".
    game: The game's name.
    recorder: The level.
    rng: All randomness of the policy.
  """
  if policy == "random":
    _random(recorder, rng)
  elif policy == "walker":
    _walker(game, recorder, rng)
  else:
    _planner(game, recorder, rng)


def choose(shares: Mapping[str, float], rng: np.random.Generator) -> str:
  """Returns one of the policies of a mix."""
  names = sorted(shares)
  weights = np.array([shares[name] for name in names])
  return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _random(recorder: Recorder, rng: np.random.Generator) -> None:
  count = len(recorder.frames)
  actions = rng.integers(0, client.NUM_ACTIONS, size=count, dtype=np.int32)
  for action in actions.tolist():
    recorder.act(action)


def _walker(game: str, recorder: Recorder, rng: np.random.Generator) -> None:
  starts = []
  if game in planner.GAMES:
    start = recorder.env.get_state()
    path, _ = planner.solve(recorder.env)
    states = planner.path_states(recorder.env, path, _STATES_EVERY)
    starts = [
      landed
      for state in states
      if (landed := _let_fall(recorder.env, state)) is not None
    ] or states
    recorder.env.set_state(start)
    recorder.env.observe()
  while not recorder.full:
    if starts:
      recorder.jump_to(starts[int(rng.integers(len(starts)))])
    _walk(game, recorder, rng, _SEGMENT)


def _let_fall(env: client.Env, saved: bytes) -> bytes | None:
  """Returns the state in which an agent lands; None if he never does.

  A planner's path is mostly in the air, and a walker starts on the ground.
  """
  env.set_state(saved)
  env.observe()
  for _ in range(_FALL):
    now = env.get_state()
    if state_lib.agent(now).support:
      return now
    env.act(_NONE)
    _, ended = env.observe()
    if ended:
      return None
  return None


@dataclasses.dataclass
class _Held:
  """The keys that a walker holds.

  Attributes:
    horizontal: -1, 0 or 1.
    vertical: -1, 0 or 1.
    steps: Steps for which the direction is still held.
    jump: Steps for which "up" is still held, in platformers.
  """

  horizontal: int = 0
  vertical: int = 0
  steps: int = 0
  jump: int = 0


def _walk(
  game: str, recorder: Recorder, rng: np.random.Generator, steps: int
) -> None:
  """Walks until an episode ends, the steps are over or the recorder is full."""
  platformer, fires = game in PLATFORMERS, game in _WITH_FIRE
  careful = platformer and game not in planner.GAMES
  held, stuck = _Held(), False
  _turn(held, platformer, rng)
  before = recorder.agent()
  for _ in range(steps):
    if recorder.full:
      return
    # In the air a player hardly changes direction, so a walker that turns there
    # presses keys that cannot be seen. Games that do not say where the ground
    # is (support -1) are played as if all was ground.
    grounded = before.support != 0
    if stuck or (held.steps <= 0 and (grounded or not platformer)):
      _turn(held, platformer, rng)
    if platformer and held.jump == 0 and rng.random() < _JUMPS:
      held.jump = _between(_JUMP_HOLDS, rng)
    horizontal = held.horizontal
    if (
      platformer
      and _at_wall(horizontal, recorder)
      and rng.random() >= _WALL_PUSHES
    ):
      if grounded and not held.jump:
        _react_to_wall(held, recorder, rng)
      # The first step away from a wall may still press him against it.
      horizontal = held.horizontal
      if _at_wall(horizontal, recorder):
        horizontal = 0
    if careful and _ends(horizontal, held.jump, recorder):
      horizontal = _evade(held, recorder, rng)
    up = _UP if platformer and held.jump else held.vertical
    action = direction_key(horizontal, up)
    if fires and rng.random() < _FIRE_SHARE:
      action = _FIRE
    held.steps -= 1
    held.jump = max(0, held.jump - 1)
    recorder.act(action)
    if recorder.begins:
      return
    now = recorder.agent()
    if not platformer:
      stuck = bool(held.horizontal or held.vertical) and (
        abs(now.x - before.x) + abs(now.y - before.y) < _STUCK_CELLS
      )
    before = now


def _turn(held: _Held, platformer: bool, rng: np.random.Generator) -> None:
  """Chooses a new direction and for how long to hold it."""
  held.steps = _between(_HOLDS, rng)
  if platformer:
    held.horizontal = int(
      rng.choice((-1, 0, 1), p=(_LEFT, _STILL, 1 - _LEFT - _STILL))
    )
    if not held.horizontal:
      held.steps = _between(_PAUSES, rng)
    return
  held.horizontal, held.vertical = 0, 0
  if rng.random() < _STILL:
    held.steps = _between(_PAUSES_ABOVE, rng)
  else:
    while held.horizontal == 0 and held.vertical == 0:
      held.horizontal = int(rng.integers(-1, 2))
      held.vertical = int(rng.integers(-1, 2))


def _react_to_wall(
  held: _Held, recorder: Recorder, rng: np.random.Generator
) -> None:
  """Chooses between a jump over the wall, a rest and the other direction.

  Blind jumps would mostly end at the same wall, with keys pressed that move
  nothing.
  """
  jump = 0
  if rng.random() < _WALL_JUMPS:
    jump = _jump_past(held.horizontal, recorder)
  if jump:
    held.jump = jump
    held.steps = max(held.steps, _WALL_JUMP_STEPS)
  elif rng.random() < _WALL_RESTS:
    held.horizontal = 0
    held.steps = _between(_PAUSES, rng)
  else:
    held.horizontal = -held.horizontal
    held.steps = max(held.steps, _HOLDS[0])


def _at_wall(horizontal: int, recorder: Recorder) -> bool:
  """Returns whether a direction would not move the agent in the next step.

  A player sees walls. A walker that walked against them would press keys that
  cannot be seen in the video.
  """
  if not horizontal:
    return False
  after = recorder.try_out([direction_key(horizontal)])
  return (
    after is not None
    and abs(after.x - recorder.agent().x) < _STUCK_CELLS
    and abs(after.vx) < _STUCK_CELLS
  )


def _ends(horizontal: int, jump: int, recorder: Recorder) -> bool:
  """Returns whether the next step leads where the episode ends soon.

  It does if the agent can neither go on nor turn back after it.
  """
  key, back = direction_key(horizontal), direction_key(-horizontal)
  onward = [key + _UP] * jump + [key] * max(0, _LOOK_AHEAD - jump)
  first = [key + _UP if jump else key]
  return (
    recorder.try_out(onward) is None
    and recorder.try_out(first + [back] * _LOOK_AHEAD) is None
  )


def _evade(held: _Held, recorder: Recorder, rng: np.random.Generator) -> int:
  """Chooses what does not end the episode; returns the direction.

  That is a jump onwards, the other direction or a rest, in random order of the
  first two. If there is none, the agent goes on as before.
  """
  ahead = held.horizontal or int(rng.choice((-1, 1)))
  ways = [(ahead, hold) for hold in _WALL_JUMP_HOLDS] + [(-ahead, 0), (0, 0)]
  if rng.random() >= _WALL_JUMPS:
    ways = [(-ahead, 0), *ways]
  for horizontal, jump in ways:
    if not _ends(horizontal, jump, recorder):
      held.horizontal, held.jump = horizontal, jump
      held.steps = _between(_HOLDS if horizontal else _PAUSES, rng)
      return horizontal
  return held.horizontal


def _jump_past(horizontal: int, recorder: Recorder) -> int:
  """Returns the steps to hold "up" to get past a wall; 0 if no jump does."""
  key, start = direction_key(horizontal), recorder.agent()
  for hold in _WALL_JUMP_HOLDS:
    rest = _WALL_JUMP_STEPS - hold
    after = recorder.try_out([key + _UP] * hold + [key] * rest)
    if after and (after.x - start.x) * horizontal > _WALL_JUMP_CELLS:
      return hold
  return 0


def _planner(game: str, recorder: Recorder, rng: np.random.Generator) -> None:
  """Follows plans to the goal; after a push it plans again from there."""
  assert game in planner.GAMES, game
  from_start = planner.solve(recorder.env)[0]
  while not recorder.full:
    if recorder.begins:
      plan = from_start
    else:
      plan = planner.solve(recorder.env, _REPLAN_MACROS)[0]
    pushed = _follow(plan, recorder, rng)
    if not pushed and not (plan and recorder.begins):
      # The plan does not reach the goal.
      _walk(game, recorder, rng, _WANDER)


def _follow(
  plan: Sequence[int], recorder: Recorder, rng: np.random.Generator
) -> bool:
  """Follows a plan until an episode ends, or a push leads away from it.

  Returns:
    Whether there was a push: a random action, held for some steps.
  """
  for action in plan:
    if recorder.full:
      return False
    if rng.random() < _PUSHES:
      push = int(rng.integers(client.NUM_ACTIONS))
      for _ in range(_between(_PUSH_HOLDS, rng)):
        if not recorder.full:
          recorder.act(push)
        if recorder.begins:
          break
      return True
    recorder.act(action)
    if recorder.begins:
      break
  return False


def _between(limits: tuple[int, int], rng: np.random.Generator) -> int:
  return int(rng.integers(limits[0], limits[1] + 1))
