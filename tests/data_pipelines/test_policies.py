"""Tests of the policies, the planner and the true states behind them."""

import dataclasses
import hashlib

import numpy as np
import pytest

from data_pipelines.procgen import client, collect, planner, policies, state
from genie_jax.core import errors
from genie_jax.data import inspection, manifest, sources

FRAMES = 128


def play(level, **options):
  options = {"frames_per_level": FRAMES, "states": True, **options}
  return collect.play(level, collect.Options(**options))


def test_the_papers_clips_are_those_of_the_first_version(procgen):
  played = play(10_003, frames_per_level=60, states=False)
  digest = hashlib.sha256()
  for array in (played.frames, played.actions, played.first):
    digest.update(array.tobytes())
  assert digest.hexdigest() == (
    "d8109806043898cd0ec93236e275158b3fc4c21d993a1d0b4f23cda0c2218c35"
  )
  assert not played.metadata and not played.arrays


def test_a_restored_state_continues_bit_for_bit(procgen):
  actions = np.random.default_rng(0).integers(0, 15, 40).tolist()

  def frames(env):
    shown = []
    for action in actions:
      env.act(action)
      env.observe()
      shown.append(env.frame.copy())
    return np.stack(shown)

  for game in ("coinrun", "starpilot"):
    with client.Env(game, 10_000) as env:
      env.observe()
      frames(env)
      saved = env.get_state()
      wanted = frames(env)
      env.set_state(saved)
      np.testing.assert_array_equal(frames(env), wanted)


def test_the_true_state_follows_the_physics_of_the_game(procgen):
  with client.Env("coinrun", 10_003) as env:
    env.observe()
    agents = [state.agent(env.get_state())]
    for _ in range(12):
      env.act(7)
      env.observe()
      agents.append(state.agent(env.get_state()))
    assert all(agent.support == 1 for agent in agents[1:5])
    env.act(8)
    env.observe()
    jumped = state.agent(env.get_state())
  # It accelerates to the right, and each step adds the velocity after it.
  steps = np.diff([agent.x for agent in agents])[:4]
  np.testing.assert_allclose(steps, [agent.vx for agent in agents[1:5]], 1e-5)
  assert (np.diff(steps) > 0).all()
  assert jumped.vy > 0


@pytest.mark.parametrize("game", client.GAMES)
def test_every_game_is_played_by_the_walker(procgen, game):
  played = play(10_000, game=game, policy="walker")
  again = play(10_000, game=game, policy="walker")
  for name in ("frames", "actions", "first"):
    np.testing.assert_array_equal(getattr(played, name), getattr(again, name))
  assert played.first[0]
  assert played.metadata == {"policy": "walker"}
  assert len(set(played.actions.tolist())) > 3
  places = played.arrays["states"][:, :2]
  assert len(np.unique(places.round(1), axis=0)) > 5
  # Keys that the aliases call useless are not pressed.
  assert not set(played.actions.tolist()) & set(collect.action_aliases(game))


@pytest.mark.parametrize("game", ["bossfight", "climber", "coinrun", "maze"])
def test_aliases_are_exactly_the_keys_without_an_effect(procgen, game):
  aliases, effects = collect.action_aliases(game), dict.fromkeys(range(9, 15))
  rng = np.random.default_rng(0)

  def shown(env, saved, key):
    env.set_state(saved)
    frames = []
    for action in (key, 4, 4, 4):
      env.act(action)
      env.observe()
      frames.append(env.frame.tobytes())
    return frames

  with client.Env(game, 10_000) as env:
    env.observe()
    for _ in range(10):
      for action in rng.integers(0, 9, 7).tolist():
        env.act(action)
        env.observe()
      saved = env.get_state()
      for key in effects:
        if shown(env, saved, key) != shown(env, saved, 4):
          effects[key] = True
  assert set(aliases.values()) <= {4}
  assert set(aliases) == {key for key, effect in effects.items() if not effect}


def test_the_walker_moves_where_random_actions_do_not(procgen):
  def motion(policy):
    dx, dy = [], []
    for level in range(10_000, 10_006):
      played = play(level, policy=policy, frames_per_level=384)
      states, inside = played.arrays["states"], ~played.first[1:]
      dx.append(np.diff(states[:, 0])[inside])
      dy.append(np.abs(np.diff(states[:, 1]))[inside])
    return np.concatenate(dx), np.concatenate(dy)

  walked, lifted = motion("walker")
  drifted, _ = motion("random")
  assert np.median(np.abs(walked)) > 5 * np.median(np.abs(drifted))
  # It runs in both directions and jumps.
  assert (walked > 0.1).mean() > 0.15 and (walked < -0.1).mean() > 0.1
  assert (lifted > 0.1).mean() > 0.2


def test_without_a_planner_the_walker_does_not_run_to_its_death(procgen):
  moved, ends = [], 0
  for level in (10_000, 10_001, 10_003):
    played = play(level, game="ninja", policy="walker", frames_per_level=200)
    moved.append(np.diff(played.arrays["states"][:, 0])[~played.first[1:]])
    ends += played.first[1:].sum()
  moved = np.concatenate(moved)
  # It died every 24 steps, before it had ever turned around.
  assert ends <= 3
  assert (moved > 0.1).mean() > 0.1 and (moved < -0.1).mean() > 0.1


def test_on_the_ground_the_walkers_keys_can_be_seen(procgen):
  agree, pressed = 0, 0
  for level in range(10_000, 10_006):
    played = play(level, policy="walker", frames_per_level=512)
    states = played.arrays["states"]
    moved = np.diff(states[:, 0])
    key = (played.actions // 3 - 1)[:-1]
    seen = (states[:-1, 4] == 1) & (key != 0) & ~played.first[1:]
    agree += ((moved * key)[seen] > 0.02).sum()
    pressed += seen.sum()
  assert pressed > 500
  assert agree / pressed > 0.9


def test_the_planner_reaches_the_coin(procgen):
  solved = 0
  for level in range(10_000, 10_010):
    with client.Env("coinrun", level) as env:
      env.observe()
      before = env.get_state()
      path, found = planner.solve(env)
      assert env.get_state() == before
      rewards = []
      for action in path:
        env.act(action)
        rewards.append(env.observe()[0])
      assert (rewards[-1] > 0) == found
      assert not any(rewards[:-1])
      solved += found
  assert solved >= 9


def test_the_planners_clips_end_at_the_coin_again_and_again(procgen):
  played = play(10_001, policy="planner", frames_per_level=300)
  assert played.metadata == {"policy": "planner"}
  # Each episode but the last ends: the level restarts at its left end.
  starts = np.flatnonzero(played.first)
  assert len(starts) > 2
  x = played.arrays["states"][:, 0]
  np.testing.assert_allclose(x[starts], x[0])
  assert np.median(x[starts[1:] - 1]) > x[0] + 5


def test_a_mix_is_what_its_policies_play(procgen, tmp_path):
  options = collect.Options(
    levels=12,
    validation_levels=2,
    test_levels=1,
    frames_per_level=32,
    levels_per_shard=4,
    policy="mix",
    shares=(("random", 0.5), ("walker", 0.5)),
    states=True,
  )
  report = collect.collect(tmp_path / "clips", options)
  found = manifest.Manifest.read(tmp_path / "clips")
  inspection.verify(found)
  assert report.frames == 15 * 32
  assert found.made_by["options"]["shares"] == {"random": 0.5, "walker": 0.5}
  chosen = {level: collect.policy_of(level, options) for level in range(12)}
  assert set(chosen.values()) == {"random", "walker"}
  source = sources.WindowSource(
    tmp_path / "clips", "train", 16, keys=("frames", "actions", "states")
  )
  for index in range(0, len(source), 7):
    window = source[index]
    level, start = int(window["source"]), int(window["start"])
    alone = dataclasses.replace(options, policy=chosen[level], shares=())
    wanted = collect.play(level, alone)
    piece = slice(start, start + 16)
    np.testing.assert_array_equal(window["frames"], wanted.frames[piece])
    np.testing.assert_array_equal(
      window["states"], wanted.arrays["states"][piece]
    )
  shares = {"random": 0.25, "walker": 0.75}
  drawn = [
    policies.choose(shares, np.random.default_rng(i)) for i in range(400)
  ]
  assert 0.65 < drawn.count("walker") / 400 < 0.85


@pytest.mark.parametrize(
  "options, message",
  [
    ({"game": "coinrum"}, "--game 'coinrum'.*did you mean 'coinrun'"),
    ({"policy": "waker"}, "--policy 'waker'.*did you mean 'walker'"),
    ({"game": "maze", "policy": "planner"}, "does not know the goal of maze"),
    ({"policy": "mix"}, "a mix needs shares"),
    ({"shares": (("random", 1.0),)}, "do not fit together"),
    (
      {"policy": "mix", "shares": (("random", 0.0), ("walker", 1.0))},
      "positive numbers",
    ),
    (
      {"policy": "mix", "shares": (("radnom", 1.0),)},
      "--policy 'radnom'.*did you mean 'random'",
    ),
    (
      {
        "game": "maze",
        "policy": "mix",
        "shares": (("planner", 1.0), ("random", 1.0)),
      },
      "does not know the goal of maze",
    ),
  ],
)
def test_invalid_games_and_policies_are_refused(tmp_path, options, message):
  with pytest.raises(errors.UserError, match=message):
    collect.collect(tmp_path / "clips", collect.Options(**options))
  assert not (tmp_path / "clips").exists()
