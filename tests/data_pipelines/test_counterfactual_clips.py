"""Tests of the collector of counterfactuals, in two games."""

import dataclasses
import hashlib

import numpy as np
import pytest

from data_pipelines.procgen import (
  client,
  collect,
  counterfactuals,
  state,
)
from genie_jax.cli import main
from genie_jax.core import errors
from genie_jax.data import counterfactuals as data_lib
from genie_jax.data import inspection, manifest, sources
from genie_jax.evals import scroll

HELD = counterfactuals.Options(moments=2, frames=5, history=4)


def options(game="coinrun", **changes):
  return collect.Options(
    **{
      "levels": 1,
      "validation_levels": 3,
      "test_levels": 2,
      "frames_per_level": 100,
      "levels_per_shard": 1,
      "game": game,
      "policy": "walker",
      **changes,
    }
  )


def digests(folder):
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def whole(procgen, tmp_path_factory):
  """Returns clips of CoinRun with counterfactuals, and the clips' digests."""
  folder = tmp_path_factory.mktemp("whole") / "clips"
  collect.collect(folder, options())
  before = digests(folder)
  report = counterfactuals.collect_moments(folder, options(), HELD)
  assert report.moments == 10 and report.bytes_per_moment > 1_000
  return folder, before


def all_moments(folder, split):
  found = data_lib.read_manifest(data_lib.address(folder))
  return data_lib.read(found, split, 1_000, seed=0)


@pytest.mark.parametrize("game", ["coinrun", "ninja"])
def test_futures_are_what_the_game_draws_from_the_moments_state(procgen, game):
  played = options(game)
  level = 10_001
  recorded = collect.play(level, dataclasses.replace(played, states=True))
  moments = counterfactuals.moments_of(level, played, HELD)
  assert len(moments) == HELD.moments
  assert len({moment.step for moment in moments}) == HELD.moments
  for moment in moments:
    # Without `set_state`: the whole recording is played up to the moment.
    past = slice(moment.step - HELD.history + 1, moment.step + 1)
    np.testing.assert_array_equal(moment.history, recorded.frames[past])
    np.testing.assert_array_equal(
      moment.history_keys, recorded.actions[past][:-1]
    )
    np.testing.assert_array_equal(
      moment.history_states, recorded.arrays["states"][past]
    )
    after = slice(moment.step + 1, moment.step + 1 + HELD.frames)
    np.testing.assert_array_equal(moment.future(-1), recorded.frames[after])
    np.testing.assert_array_equal(
      moment.states[-1], recorded.arrays["states"][after]
    )
    # No episode begins in the history after its first frame, or afterwards.
    assert not recorded.first[past.start + 1 : after.stop].any()
    assert len(moment.distinct) > 1
    assert moment.num_keys == client.NUM_ACTIONS


def test_standing_starts_have_room_on_both_sides(procgen):
  played = options(frames_per_level=300)
  held = counterfactuals.Options(
    moments=2, frames=counterfactuals.ROOM_FRAMES, standing=True
  )
  found = [
    moment
    for level in (10_000, 10_006, 10_010)
    for moment in counterfactuals.moments_of(level, played, held)
  ]
  # The first of these levels has only passages of three cells.
  levels = {moment.level for moment in found}
  assert levels and 10_000 not in levels
  for moment in found:
    x, _, vx, vy, support = moment.history_states[-1]
    assert abs(vx) < 0.01 and abs(vy) < 0.01 and support == 1
    moved = np.array([x - moment.states[1, -1, 0], moment.states[7, -1, 0] - x])
    assert moved.min() >= 1 and moved.max() >= 2.75
    # As the picture shows.
    for key, cells in zip((1, 7), moved, strict=True):
      shown = np.concatenate([moment.history[-1:], moment.future(key)])
      pixels = scroll.pair_shifts(shown[:-1], shown[1:]).sum(0)[0]
      assert abs(abs(pixels) - 4.9 * cells) < 4 and (pixels > 0) == (key == 7)
    np.testing.assert_array_equal(moment.future(-1), moment.future(4))


def test_a_key_is_held_from_exactly_the_saved_state(procgen):
  # Ninja's walker plays no restored states, so the actions alone lead there.
  played = options("ninja")
  level = 10_002
  recorded = collect.play(level, played)
  (moment, _) = counterfactuals.moments_of(level, played, HELD)
  for key in (1, 4, 8):
    with client.Env("ninja", level) as env:
      env.observe()
      for action in recorded.actions[: moment.step]:
        env.act(int(action))
        env.observe()
      np.testing.assert_array_equal(env.frame, moment.history[-1])
      for number in range(HELD.frames):
        env.act(key)
        _, first = env.observe()
        assert not first
        np.testing.assert_array_equal(env.frame, moment.future(key)[number])
        np.testing.assert_array_equal(
          np.float32(state.agent(env.get_state())), moment.states[key, number]
        )


def test_no_future_crosses_the_end_of_an_episode(procgen):
  # The agent soon dies in these levels if it runs to the right.
  played = options(mode="easy", policy="planner", frames_per_level=200)
  held = counterfactuals.Options(moments=3, frames=12, history=4)
  lost = 0
  for level in range(10_000, 10_004):
    first = collect.play(level, played).first
    allowed = counterfactuals.candidates(first, held.history, held.frames)
    moments = counterfactuals.moments_of(level, played, held)
    assert moments and {moment.step for moment in moments} <= set(
      allowed.tolist()
    )
    for moment in moments:
      # A restart puts the agent back to the start: a jump of several cells.
      path = np.concatenate(
        [
          np.repeat(moment.history_states[None, -1:, :2], 16, 0),
          moment.states[..., :2],
        ],
        1,
      )
      assert np.abs(np.diff(path[..., 0], axis=1)).max() < 0.75
    # There are steps from which a held key ends the episode.
    recorder_ends = _steps_that_end(level, played, held, allowed[::7])
    assert not {moment.step for moment in moments} & recorder_ends
    lost += len(recorder_ends)
  assert lost


def _steps_that_end(level, played, held, steps):
  """Returns the steps at which holding one of the keys ends the episode."""
  recorded = collect.play(level, played).actions
  found = set()
  with client.Env(played.game, level, played.mode) as env:
    env.observe()
    saved = {}
    for step, action in enumerate(recorded):
      saved[step] = env.get_state()
      env.act(int(action))
      env.observe()
    for step in steps.tolist():
      for key in range(client.NUM_ACTIONS):
        env.set_state(saved[step])
        for _ in range(held.frames):
          env.act(key)
          if env.observe()[1]:
            found.add(step)
  return found


def test_candidates_are_counted_as_by_hand():
  first = np.zeros(12, bool)
  first[[0, 6]] = True
  # Episodes 0 to 5 and 6 to 11; two frames up to the step and three after it.
  assert counterfactuals.candidates(first, 2, 3).tolist() == [1, 2, 7, 8]
  first[0] = False  # A recording that begins within an episode.
  assert counterfactuals.candidates(first, 1, 4).tolist() == [0, 1, 6, 7]
  assert counterfactuals.candidates(first[:3], 2, 3).tolist() == []


def test_clips_stay_the_same_and_read_as_before(whole):
  folder, before = whole
  after = digests(folder)
  assert {name: after[name] for name in before} == before
  assert {name.split("/")[0] for name in after.keys() - before.keys()} == {
    "counterfactuals"
  }
  inspection.verify(manifest.Manifest.read(folder))
  assert collect.collect(folder, options()).frames == 0
  assert len(sources.WindowSource(folder, "validation", 8)) > 100


def test_counterfactuals_pass_inspection_and_are_no_clips(whole, capsys):
  folder = data_lib.address(whole[0])
  found = data_lib.read_manifest(folder)
  assert set(found.splits) == {"validation", "test"}
  assert found.sources("test") == [10_100, 10_101]
  assert found.made_by["keys"]["jump"][5] == 1
  assert (
    found.made_by["clips_fingerprint"]
    == manifest.Manifest.read(whole[0]).fingerprint
  )
  inspection.verify(found)
  rows = inspection.contact_rows(found)
  assert len(rows) == 10 and all(len(row) > 2 for row in rows.values())
  with pytest.raises(errors.UserError, match="has counterfactuals, but clips"):
    sources.WindowSource(folder, "validation", 4)
  with pytest.raises(errors.UserError, match="has clips, but counterfactuals"):
    data_lib.read_manifest(whole[0])
  assert main.main(["data", "inspect", folder]) == 0
  assert "kind: counterfactuals" in capsys.readouterr().out


def test_moments_are_spread_over_the_recording(whole):
  steps = {}
  for moment in all_moments(whole[0], "validation"):
    steps.setdefault(moment.level, []).append(moment.step)
  assert sorted(steps) == [10_000, 10_001, 10_002]
  for found in steps.values():
    assert len(found) == 2
    assert min(found) >= HELD.history - 1
    assert max(found) - min(found) > 1


def test_a_stopped_run_resumes_with_other_workers_and_the_same_bytes(
  whole, tmp_path, monkeypatch
):
  out = tmp_path / "clips"
  collect.collect(out, options())
  play = counterfactuals.moments_of

  def dies(level, *rest):
    if level == 10_002:
      raise KeyboardInterrupt
    return play(level, *rest)

  with monkeypatch.context() as patch:
    patch.setattr(counterfactuals, "moments_of", dies)
    with pytest.raises(KeyboardInterrupt):
      counterfactuals.collect_moments(out, options(), HELD)
  moments = out / "counterfactuals"
  assert not (moments / "manifest.json").exists()
  kept = {p: p.stat().st_mtime_ns for p in moments.rglob("*.array_record")}
  assert len(kept) == 2
  counterfactuals.collect_moments(out, options(), HELD, num_workers=2)
  assert {path: path.stat().st_mtime_ns for path in kept} == kept
  assert digests(out) == digests(whole[0])


def test_other_options_for_the_same_folder_are_refused(whole):
  other = dataclasses.replace(HELD, moments=3)
  with pytest.raises(errors.UserError, match="begun with other settings"):
    counterfactuals.collect_moments(whole[0], options(), other)


def test_levels_without_a_moment_end_in_one_line(procgen, tmp_path):
  # In 100 frames of BigFish, one key or another ends the episode.
  played = options("bigfish", frames_per_level=120, test_levels=0)
  collect.collect(tmp_path, played)
  held = counterfactuals.Options(moments=1, frames=100)
  with pytest.raises(errors.UserError, match="give fewer frames"):
    counterfactuals.collect_moments(tmp_path, played, held)


@pytest.mark.parametrize(
  "words, said",
  [
    (["--counterfactuals", "0"], "--counterfactuals must be at least 1"),
    (
      ["--counterfactuals", "1", "--counterfactual-frames", "0"],
      "--counterfactual-frames must be at least 1",
    ),
    (
      ["--counterfactuals", "1", "--frames-per-level", "12"],
      "give at least 16",
    ),
    (
      [
        "--counterfactuals",
        "1",
        "--validation-levels",
        "0",
        "--test-levels",
        "0",
      ],
      "needs held-out levels",
    ),
    (["--standing", "0"], "--standing must be at least 1"),
    (
      ["--standing", "1", "--game", "ninja"],
      "but ninja does not; use one of coinrun",
    ),
  ],
)
def test_mistakes_end_in_one_line_before_anything_is_written(
  tmp_path, capsys, words, said
):
  out = tmp_path / "clips"
  code = main.main(
    ["data", "procgen", "--game", "coinrun", "--out", str(out), *words]
  )
  assert code == 2
  assert said in capsys.readouterr().err.strip().splitlines()[-1]
  assert not out.exists()


@pytest.mark.slow
def test_the_games_own_keys_are_named_by_what_they_do(procgen):
  held = counterfactuals.Options(moments=4)
  keys = {1: "left", 2: "left and jump", 4: "nothing", 5: "jump", 7: "right"}
  moments = [
    moment
    # The walker mostly runs right; in fewer levels, too few moments allow left.
    for level in range(10_000, 10_020)
    for moment in counterfactuals.moments_of(
      level, options(frames_per_level=200), held
    )
  ]
  moved = np.stack(
    [
      scroll.motion(
        np.stack(
          [
            np.concatenate([moment.history[-1:], moment.future(key)])
            for key in (*keys, 8)
          ]
        )
      )
      for moment in moments
    ]
  )
  named = scroll.name_buttons(
    moved, moved, np.array([moment.level for moment in moments]), seed=0
  )
  assert [row["name"] for row in named] == [*keys.values(), "right and jump"]


def test_the_scroll_of_frames_is_the_true_motion(procgen):
  # CoinRun shows 13 cells on 64 pixels.
  held = counterfactuals.Options(moments=4)
  found, true = [], []
  for level in (10_000, 10_003, 10_007):
    for moment in counterfactuals.moments_of(
      level, options(frames_per_level=200), held
    ):
      for key in (1, 4, 7, 8):
        frames = np.concatenate([moment.history[-1:], moment.future(key)])
        states = np.concatenate(
          [moment.history_states[-1:], moment.states[key]]
        )
        found.append(scroll.pair_shifts(frames[:-1], frames[1:]))
        true.append(np.diff(states[:, :2], axis=0) * 64 / 13)
  found, true = np.concatenate(found), np.concatenate(true)
  close = np.abs(found - true) <= 1
  assert close.mean() > 0.93
  for axis in range(2):
    moving = np.abs(true[:, axis]) > 1
    assert moving.sum() > 20
    assert close[moving, axis].mean() > 0.8
    assert np.polyfit(true[:, axis], found[:, axis], 1)[0] == pytest.approx(
      1, abs=0.15
    )


def test_each_place_is_tried_once():
  states = np.zeros((6, 5), np.float32)
  states[:, 0] = [1.0, 1.1, 3.0, 1.05, 3.1, 3.0]
  states[5, 1] = 4
  found = counterfactuals.one_of_each_place(np.array([4, 1, 0, 5, 3]), states)
  assert found.tolist() == [1, 4, 5]
