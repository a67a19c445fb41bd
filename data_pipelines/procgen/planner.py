"""A planner that solves CoinRun levels by searching in the game itself.

Weighted A* over held actions: from a saved state, each macro (an action held
for a few steps) is played in the game, and the search continues from the
resulting state that is nearest to the coin. The planner is privileged: it saves
and restores the game's true state, which no learner sees.
"""

import heapq
from collections.abc import Sequence

from data_pipelines.procgen import client
from data_pipelines.procgen import state as state_lib

# Games whose goal is known to the planner.
GAMES = ("coinrun",)

_HOLD = 4  # Steps for which each action is held.
_LEFT, _LEFT_JUMP, _WAIT, _JUMP, _RIGHT, _RIGHT_JUMP = 1, 2, 4, 5, 7, 8
_MACROS = (_RIGHT, _RIGHT_JUMP, _JUMP, _LEFT, _LEFT_JUMP, _WAIT)
_SPEED = 0.5  # Cells per step, the largest horizontal speed of the agent.
_WEIGHT = 2.0  # Of the remaining distance, against steps already taken.
_MOST = 3_000  # Macros that are tried before a level is given up.


def solve(env: client.Env, most: int = _MOST) -> tuple[list[int], bool]:
  """Searches for actions that lead from the current state to the coin.

  Args:
    env: The game; left at the state in which it was.
    most: Number of macros to try.

  Returns:
    The actions, and whether they reach the coin; otherwise they lead to the
    state nearest to it that was found.
  """
  start = env.get_state()
  goal, _ = state_lib.coin(start)
  agent = state_lib.agent(start)
  # (cost and estimate, order of insertion, state, actions)
  queue: list[tuple[float, int, bytes, tuple[int, ...]]] = [(0.0, 0, start, ())]
  seen = {_place(agent)}
  nearest: tuple[float, tuple[int, ...]] = (abs(goal - agent.x), ())
  tried = 0
  while queue and tried < most:
    _, _, saved, actions = heapq.heappop(queue)
    for macro in _MACROS:
      tried += 1
      env.set_state(saved)
      taken, ended, reward = _hold(env, macro)
      path = (*actions, *[macro] * taken)
      if reward > 0:
        env.set_state(start)
        env.observe()
        return list(path), True
      if ended:
        continue  # The agent died.
      after = env.get_state()
      agent = state_lib.agent(after)
      place = _place(agent)
      if place in seen:
        continue
      seen.add(place)
      left = abs(goal - agent.x)
      nearest = min(nearest, (left, path))
      cost = len(path) + _WEIGHT * left / _SPEED
      heapq.heappush(queue, (cost, tried, after, path))
  env.set_state(start)
  env.observe()
  return list(nearest[1]), False


def _hold(env: client.Env, action: int) -> tuple[int, bool, float]:
  """Holds an action; returns steps taken, whether the episode ended, reward."""
  for step in range(1, _HOLD + 1):
    env.act(action)
    reward, first = env.observe()
    if first or reward > 0:
      return step, True, reward
  return _HOLD, False, 0.0


def _place(agent: state_lib.Agent) -> tuple[int, ...]:
  """Returns a coarse description of a state, to recognise similar ones."""
  return (
    round(2 * agent.x),
    round(2 * agent.y),
    round(4 * agent.vx),
    round(4 * agent.vy),
    int(agent.support),
  )


def path_states(
  env: client.Env, actions: Sequence[int], every: int
) -> list[bytes]:
  """Returns states along a path, from its start on.

  Args:
    env: The game at the start of the path; left at its end.
    actions: The actions of the path.
    every: Steps between two states.
  """
  states = [env.get_state()]
  for step, action in enumerate(actions, 1):
    env.act(action)
    _, first = env.observe()
    if first:
      break  # The coin was reached: the level has restarted.
    if step % every == 0:
      states.append(env.get_state())
  return states
