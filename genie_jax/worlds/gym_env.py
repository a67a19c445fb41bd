"""Worlds as `gymnasium` environments, to train agents in a learned world.

    env = DreamEnv(genie_jax.load_world("world"), max_steps=64)
    observation, info = env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(3)

A world predicts neither rewards nor the end of an episode: `judge` returns
both. Without a judge all rewards are 0, and an episode is truncated after
`max_steps`. Needs gymnasium (`pip install genie_jax[rl]`).

Shapes:
  P  prompt frames      A  buttons      S  environments
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import utils as vector_utils

from genie_jax.core import errors, images
from genie_jax.worlds import world as world_lib

# `judge(frame, action, next_frame) -> (reward, terminated)`; frames are uint8
# [H, W, C].
Judge = Callable[[np.ndarray, int, np.ndarray], tuple[float, bool]]

_SEEDS = 1 << 31


class DreamEnv(gymnasium.Env):
  """An environment with one player.

  Observations are frames, actions are buttons. The seed of `reset` determines
  the prompt and all noise: equal seeds and actions give equal frames.
  """

  metadata: dict[str, Any] = {  # noqa: RUF012  As gymnasium declares it.
    "render_modes": ["rgb_array"],
    "render_fps": 10,
  }

  def __init__(
    self,
    world: world_lib.World,
    *,
    prompts: Sequence[np.ndarray] | None = None,
    max_steps: int = 256,
    judge: Judge | None = None,
    render_mode: str | None = None,
  ):
    """Creates an environment for a world.

    Args:
      world: The world.
      prompts: Paths, or uint8 frames [H, W, C] or [P, H, W, C], to start from;
        by default the world's prompts.
      max_steps: Number of steps after which an episode is truncated.
      judge: Computes reward and termination.
      render_mode: "rgb_array" or None.

    Raises:
      UserError: There are no prompts, or a value is out of range.
    """
    _check(max_steps, render_mode)
    self.metadata = dict(self.metadata, render_fps=world.fps)
    self.render_mode = render_mode
    self.observation_space, self.action_space = _spaces(world)
    self._world, self._judge = world, judge
    self._prompts = _prompts(world, prompts)
    self._max_steps = max_steps
    self._state, self._steps, self._frame = None, 0, None

  def reset(
    self,
    *,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Starts an episode.

    Args:
      seed: Determines the prompt and all noise; None continues with the random
        generator of the last episode.
      options: {"prompt": index} selects the prompt.

    Returns:
      The reconstruction of the prompt by the tokenizer, uint8 [H, W, C], and
      {"prompt": index}.
    """
    super().reset(seed=seed)
    number, noise = _draw(self.np_random, len(self._prompts), options)
    self._state = self._world.reset(self._prompts[number], seed=noise)
    self._steps, self._frame = 0, self._world.show(self._state)
    return self._frame, {"prompt": number}

  def step(
    self, action: int
  ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """Presses a button.

    Args:
      action: In [0, A).

    Returns:
      Frame uint8 [H, W, C], reward, terminated (by the judge), truncated (by
      `max_steps`), {}.

    Raises:
      UserError: The action is out of range, or `reset` was not called.
    """
    if self._state is None or self._frame is None:
      raise errors.UserError("No episode has started; call reset first.")
    self._state, frame = self._world.step(self._state, action)
    self._steps += 1
    reward, ended = _judged(self._judge, self._frame, action, frame)
    self._frame = frame
    return frame, reward, ended, self._steps >= self._max_steps, {}

  def render(self) -> np.ndarray | None:
    """Returns the newest frame in mode "rgb_array", else None."""
    return self._frame if self.render_mode == "rgb_array" else None


class DreamVectorEnv(gymnasium.vector.VectorEnv):
  """Several players of a world, stepped together on the device.

  Each environment has its own seed (the seed of `reset` plus its index, as in
  gymnasium's vector environments) and the same observations as a `DreamEnv`
  with that seed. An environment whose episode has ended is reset by the next
  `step`, which ignores its action; the reward is 0 (`AutoresetMode.NEXT_STEP`).
  """

  metadata: dict[str, Any] = {  # noqa: RUF012  As gymnasium declares it.
    "render_modes": ["rgb_array"],
    "render_fps": 10,
    "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
  }

  def __init__(
    self,
    world: world_lib.World,
    num_envs: int,
    *,
    prompts: Sequence[np.ndarray] | None = None,
    max_steps: int = 256,
    judge: Judge | None = None,
    render_mode: str | None = None,
  ):
    """Creates environments for a world; arguments as in `DreamEnv`.

    Args:
      world: The world.
      num_envs: S; 1, 2, 4, 8 and 16 players need one compiled call per step,
        other numbers several.
      prompts: Paths or frames to start from.
      max_steps: Number of steps after which an episode is truncated.
      judge: Computes reward and termination.
      render_mode: "rgb_array" or None.

    Raises:
      UserError: There are no prompts, or a value is out of range.
    """
    _check(max_steps, render_mode)
    if num_envs < 1:
      raise errors.UserError(f"num_envs is {num_envs}; give at least 1.")
    self.metadata = dict(self.metadata, render_fps=world.fps)
    self.render_mode = render_mode
    self.num_envs = num_envs
    self.single_observation_space, self.single_action_space = _spaces(world)
    self.observation_space = vector_utils.batch_space(
      self.single_observation_space, num_envs
    )
    self.action_space = vector_utils.batch_space(
      self.single_action_space, num_envs
    )
    self._world, self._judge = world, judge
    self._prompts = _prompts(world, prompts)
    self._max_steps = max_steps
    self._generators = [np.random.default_rng() for _ in range(num_envs)]
    self._states: list[Any] = [None] * num_envs
    frames = (num_envs, *world.frame_shape)
    self._frames = np.zeros(frames, np.uint8)
    self._steps = np.zeros(num_envs, int)
    self._over = np.zeros(num_envs, bool)

  def reset(
    self,
    *,
    seed: int | Sequence[int | None] | None = None,
    options: Mapping[str, Any] | None = None,
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Starts an episode in every environment.

    Args:
      seed: Seed of the first environment, increased by 1 for each of the
        others; or a sequence with a seed for each.
      options: {"prompt": index} selects the prompt of all environments.

    Returns:
      Frames uint8 [S, H, W, C], and {"prompt": int [S]}.

    Raises:
      UserError: The number of seeds differs from that of environments.
    """
    if seed is None or isinstance(seed, int | np.integer):
      first, seed = seed, [None] * self.num_envs
      if first is not None:
        seed = [int(first) + i for i in range(self.num_envs)]
    if len(seed) != self.num_envs:
      raise errors.UserError(
        f"{len(seed)} seeds were given for {self.num_envs} environments; "
        "give one for each, or one number for all."
      )
    for i, one in enumerate(seed):
      if one is not None:
        self._generators[i], _ = seeding.np_random(one)
    numbers = [self._restart(i, options) for i in range(self.num_envs)]
    return self._frames.copy(), {"prompt": np.array(numbers)}

  def step(
    self, actions: npt.ArrayLike
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Presses a button in every environment.

    Args:
      actions: int [S].

    Returns:
      Frames uint8 [S, H, W, C], rewards float64 [S], terminated and truncated
      bool [S], {}.

    Raises:
      UserError: The number of actions differs from that of environments, or
        an action is out of range.
    """
    pressed = np.asarray(actions)
    if pressed.shape != (self.num_envs,):
      raise errors.UserError(
        f"Actions of shape {pressed.shape} were given for {self.num_envs} "
        "environments; give one for each."
      )
    rewards = np.zeros(self.num_envs)
    ended = np.zeros(self.num_envs, bool)
    alive = np.flatnonzero(~self._over)
    for i in np.flatnonzero(self._over):
      self._restart(int(i), None)
    states, frames = self._world.step_many(
      [self._states[i] for i in alive], pressed[alive].tolist()
    )
    for i, state, frame in zip(alive.tolist(), states, frames, strict=True):
      rewards[i], ended[i] = _judged(
        self._judge, self._frames[i], pressed[i], frame
      )
      self._states[i], self._frames[i] = state, frame
      self._steps[i] += 1
    cut = self._steps >= self._max_steps
    self._over = ended | cut
    return self._frames.copy(), rewards, ended, cut, {}

  def render(self) -> tuple[np.ndarray, ...] | None:
    """Returns the newest frames in mode "rgb_array", else None.

    The frames are copies that later steps do not change.
    """
    if self.render_mode != "rgb_array":
      return None
    return tuple(self._frames.copy())

  def _restart(self, i: int, options: Mapping[str, Any] | None) -> int:
    number, noise = _draw(self._generators[i], len(self._prompts), options)
    self._states[i] = self._world.reset(self._prompts[number], seed=noise)
    self._frames[i] = self._world.show(self._states[i])
    self._steps[i], self._over[i] = 0, False
    return number


def _spaces(
  world: world_lib.World,
) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete]:
  return (
    gymnasium.spaces.Box(0, 255, world.frame_shape, np.uint8),
    gymnasium.spaces.Discrete(world.num_actions),
  )


def _check(max_steps: int, render_mode: str | None) -> None:
  if max_steps < 1:
    raise errors.UserError(f"max_steps is {max_steps}; give at least 1.")
  if render_mode not in (None, "rgb_array"):
    raise errors.UserError(
      f"render_mode is {render_mode!r}; use 'rgb_array' or None."
    )


def _prompts(
  world: world_lib.World, prompts: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
  """Returns the prompts of the episodes as arrays."""
  given = world.prompts if prompts is None else prompts
  if not len(given):
    raise errors.UserError(
      "This world has no prompts to start from; give some as prompts=[...]."
    )
  return [
    images.load_prompt(prompt, *world.frame_shape[:2])
    if isinstance(prompt, str | pathlib.Path)
    else np.asarray(prompt)
    for prompt in given
  ]


def _draw(
  generator: np.random.Generator,
  count: int,
  options: Mapping[str, Any] | None,
) -> tuple[int, int]:
  """Returns the index of a prompt and a seed for the noise."""
  number = int(generator.integers(count))
  noise = int(generator.integers(_SEEDS))
  if options is not None and "prompt" in options:
    number = int(options["prompt"])
    if not 0 <= number < count:
      raise errors.UserError(
        f"options['prompt'] is {number}; there are prompts 0 to {count - 1}."
      )
  return number, noise


def _judged(
  judge: Judge | None, frame: np.ndarray, action: int, after: np.ndarray
) -> tuple[float, bool]:
  if judge is None:
    return 0.0, False
  reward, ended = judge(frame, int(action), after)
  return float(reward), bool(ended)
