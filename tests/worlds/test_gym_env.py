"""Tests of worlds as environments, with gymnasium's own checks."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils import env_checker

from genie_jax.core import errors
from genie_jax.sampling import maskgit
from genie_jax.worlds import gym_env
from genie_jax.worlds import world as world_lib
from tests.fixtures import tiny_world


@pytest.fixture(scope="module")
def world(parts):
  return world_lib.World(parts, sampling=maskgit.MaskGIT(refinements=2))


@pytest.fixture(scope="module")
def prompts():
  random = np.random.default_rng(0)
  return random.integers(0, 256, (3, *tiny_world.SHAPE), dtype=np.uint8)


@pytest.fixture
def registered(world, prompts):
  """The name of the environment in gymnasium's registry."""
  name = "genie_jax/Dream-v0"
  gymnasium.register(
    name,
    entry_point=lambda **options: gym_env.DreamEnv(
      world, prompts=prompts, **options
    ),
  )
  yield name
  del gymnasium.registry[name]


@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_the_environment_and_its_rendering(registered):
  env = gymnasium.make(registered, render_mode="rgb_array").unwrapped
  env_checker.check_env(env)
  assert env.action_space == gymnasium.spaces.Discrete(5)
  shown, _ = env.reset(seed=1)
  np.testing.assert_array_equal(env.render(), shown)
  frame, *_ = env.step(2)
  np.testing.assert_array_equal(env.render(), frame)


def play(env, actions, seed):
  shown, info = env.reset(seed=seed)
  return [shown] + [env.step(action)[0] for action in actions], info["prompt"]


def test_seed_and_actions_determine_all_frames_and_seeds_select_prompts(
  world, prompts
):
  env = gym_env.DreamEnv(world, prompts=prompts)
  first, _ = play(env, (0, 3, 1), seed=5)
  again, _ = play(env, (0, 3, 1), seed=5)
  np.testing.assert_array_equal(first, again)
  chosen = {env.reset(seed=seed)[1]["prompt"] for seed in range(12)}
  assert chosen == {0, 1, 2}
  assert env.reset(options={"prompt": 2})[1]["prompt"] == 2


def test_a_judge_or_the_length_ends_an_episode(world, prompts):
  env = gym_env.DreamEnv(
    world,
    prompts=prompts,
    max_steps=3,
    judge=lambda frame, action, after: (action / 2, action == 4),
  )
  env.reset(seed=0)
  assert env.step(1)[1:4] == (0.5, False, False)
  assert env.step(4)[1:4] == (2.0, True, False)
  assert env.step(0)[1:4] == (0.0, False, True)


def test_a_vector_has_the_observations_of_single_environments(world, prompts):
  judge = lambda frame, action, after: (1.0, action == 4)
  vector = gym_env.DreamVectorEnv(world, 3, prompts=prompts, judge=judge)
  singles = [
    gym_env.DreamEnv(world, prompts=prompts, judge=judge) for _ in range(3)
  ]
  frames, info = vector.reset(seed=7)
  assert frames in vector.observation_space
  over = [False] * 3
  for i, single in enumerate(singles):
    shown, told = single.reset(seed=7 + i)
    np.testing.assert_array_equal(frames[i], shown)
    assert info["prompt"][i] == told["prompt"]
  for actions in ((0, 1, 2), (3, 4, 3), (1, 1, 1), (0, 2, 4), (4, 0, 0)):
    assert np.array(actions) in vector.action_space
    frames, rewards, ended, cut, _ = vector.step(np.array(actions))
    assert frames in vector.observation_space and not cut.any()
    for i, single in enumerate(singles):
      if over[i]:
        wanted, reward, done = single.reset()[0], 0.0, False
      else:
        wanted, reward, done, _, _ = single.step(actions[i])
      np.testing.assert_array_equal(frames[i], wanted)
      assert (rewards[i], ended[i]) == (reward, done)
      over[i] = done


def test_a_vector_in_gymnasiums_wrappers_is_truncated_and_rendered(
  world, prompts
):
  vector = gym_env.DreamVectorEnv(
    world, 2, prompts=prompts, max_steps=2, render_mode="rgb_array"
  )
  assert vector.metadata["autoreset_mode"] is (
    gymnasium.vector.AutoresetMode.NEXT_STEP
  )
  counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
  counted.reset(seed=[3, 3])
  assert not counted.step(vector.action_space.sample())[3].any()
  *_, cut, info = counted.step(vector.action_space.sample())
  assert cut.all() and (info["episode"]["l"] == 2).all()
  frames = counted.step(vector.action_space.sample())[0]  # An automatic reset.
  np.testing.assert_array_equal(vector.render(), frames)


def test_rendered_frames_are_not_changed_by_the_next_step(world, prompts):
  vector = gym_env.DreamVectorEnv(
    world, 2, prompts=prompts, render_mode="rgb_array"
  )
  vector.reset(seed=0)
  shown = vector.render()
  kept = np.stack(shown)
  frames = vector.step([1, 2])[0]
  assert (frames != kept).any()
  np.testing.assert_array_equal(np.stack(shown), kept)


@pytest.mark.parametrize("seeds", ([3], [3, 3, 3]))
def test_a_vector_needs_one_seed_for_each_environment(world, prompts, seeds):
  vector = gym_env.DreamVectorEnv(world, 2, prompts=prompts)
  match = rf"^{len(seeds)} seeds were given for 2 environments; .*$"
  with pytest.raises(errors.UserError, match=match):
    vector.reset(seed=seeds)


@pytest.mark.parametrize("actions", ([0], [0, 0, 0], [[0, 0]], 0))
def test_a_vector_needs_one_action_for_each_environment(
  world, prompts, actions
):
  vector = gym_env.DreamVectorEnv(world, 2, prompts=prompts)
  vector.reset(seed=0)
  match = r"^Actions of shape .* for 2 environments; give one for each\.$"
  with pytest.raises(errors.UserError, match=match):
    vector.step(actions)
  vector.step([0, 0])  # The players can still be stepped.


def test_invalid_arguments_are_refused(world, prompts):
  with pytest.raises(errors.UserError, match="no prompts"):
    gym_env.DreamEnv(world)
  with pytest.raises(errors.UserError, match="max_steps is 0"):
    gym_env.DreamEnv(world, prompts=prompts, max_steps=0)
  with pytest.raises(errors.UserError, match="use 'rgb_array'"):
    gym_env.DreamEnv(world, prompts=prompts, render_mode="human")
  with pytest.raises(errors.UserError, match="num_envs is 0"):
    gym_env.DreamVectorEnv(world, 0, prompts=prompts)
  with pytest.raises(errors.UserError, match="prompts 0 to 2"):
    gym_env.DreamEnv(world, prompts=prompts).reset(options={"prompt": 3})
  env = gym_env.DreamEnv(world, prompts=prompts)
  env.reset(seed=0)
  with pytest.raises(errors.UserError, match="Action 5 is out of range"):
    env.step(5)
