"""Tests of the judge that compares latent actions with keys and true states."""

import dataclasses
import types

import numpy as np
import pytest
from sklearn import metrics

from data_pipelines import games
from genie_jax.data import manifest
from genie_jax.evals import button_names, control, metric, registry
from genie_jax.evals import clips as clips_lib
from genie_jax.worlds import buttons

CLIPS, FRAMES, LEVELS = 60, 9, 12


@pytest.fixture(scope="module")
def played():
  """Returns keys that are held, motion that follows them late, and states."""
  rng = np.random.default_rng(0)
  # Direction -1, 0 or 1, held for three transitions.
  held = rng.integers(-1, 2, (CLIPS, FRAMES // 3 + 1)).repeat(3, 1)
  keys = held[:, : FRAMES - 1] + 1
  states = np.zeros((CLIPS, FRAMES, 5), np.float32)
  # The player moves as the key of the transition before told it to.
  moved = np.concatenate([np.zeros((CLIPS, 1)), keys[:, :-1] - 1], 1)
  states[:, 1:, 0] = moved.cumsum(1)
  states[..., 4] = rng.integers(0, 2, (CLIPS, FRAMES))
  levels = np.arange(CLIPS) % LEVELS
  return keys, states, levels


def judged(played, codes, num_codes=3):
  keys, states, levels = played
  found = control.transitions(codes, keys, states, levels)
  return found, control.judge(found, keys, num_codes, seed=0)


def test_a_code_that_is_the_key_is_perfect_everywhere(played):
  _, figures = judged(played, 2 - played[0])
  assert set(figures) == {"all", "after_change", "ground", "air"}
  for found in figures.values():
    assert found.nmi.value == pytest.approx(1)
    assert found.accuracy.value == 1
    assert found.previous_nmi.value < 0.75
  # After a change of the key, the code before is of little use.
  after = figures["after_change"]
  assert after.previous_accuracy.value < figures["all"].previous_accuracy.value
  assert after.majority.value < 0.6


def test_a_code_of_velocity_looks_good_until_the_key_changes(played):
  keys, states, levels = played
  velocity = np.diff(states[..., 0], axis=1).astype(int) + 1
  _, figures = judged(played, velocity)
  assert figures["all"].nmi.value > 0.2
  # It is what the true motion says, and no more.
  for found in figures.values():
    assert found.supervised_nmi is None and found.supervised_accuracy is None
    assert found.attainable_nmi == found.motion_nmi
    assert found.nmi.value == pytest.approx(found.attainable_nmi.value)
    assert found.accuracy.value == found.attainable_accuracy.value
  changed = np.zeros(keys.shape, bool)
  changed[:, 1:] = keys[:, 1:] != keys[:, :-1]
  wrong = (velocity != keys)[changed]
  assert wrong.all()
  del levels


def test_a_code_that_repeats_the_one_before_is_no_better_than_it(played):
  keys, *_ = played
  late = np.concatenate([keys[:, :1], keys[:, :-1]], 1)
  _, figures = judged(played, late)
  found = figures["all"]
  assert found.nmi.value < 1
  exact = np.concatenate([late[:, :1], late[:, :-1]], 1)
  assert found.previous_nmi.value == pytest.approx(
    metrics.normalized_mutual_info_score(
      keys[:, 1:].ravel(), exact[:, 1:].ravel()
    )
  )


def test_figures_equal_an_independent_computation(played):
  keys, states, levels = played
  rng = np.random.default_rng(1)
  codes = np.where(
    rng.random(keys.shape) < 0.4, keys, rng.integers(0, 5, keys.shape)
  )
  found, figures = judged(played, codes, num_codes=5)
  ground = states[:, :-1, 4] > 0
  seen = np.ones(keys.shape, bool)
  seen[:, 0] = False
  recent = np.zeros(keys.shape, bool)
  for clip, row in enumerate(keys):
    for i in range(1, len(row)):
      recent[clip, i] = any(
        row[j] != row[j - 1] for j in range(max(1, i - 3), i + 1)
      )
  masks = {
    "all": seen,
    "ground": seen & ground,
    "air": seen & ~ground,
    "after_change": seen & recent,
  }
  best = [
    np.bincount(keys[seen & (codes == code)], minlength=3).argmax()
    for code in range(5)
  ]
  guessed = np.array(best)[codes]
  for name, mask in masks.items():
    row = figures[name]
    assert row.transitions == mask.sum()
    assert row.nmi.value == pytest.approx(
      metrics.normalized_mutual_info_score(keys[mask], codes[mask])
    )
    assert row.accuracy.value == pytest.approx(
      metrics.accuracy_score(keys[mask], guessed[mask])
    )
    assert row.majority.value == np.bincount(keys[mask]).max() / mask.sum()
    assert row.nmi.low <= row.nmi.value <= row.nmi.high
    gain = row.nmi.value - row.previous_nmi.value
    assert row.gain_nmi.value == pytest.approx(gain)
    assert row.gain_nmi.low < gain < row.gain_nmi.high
  del found, levels


@pytest.mark.parametrize("skill", [0.05, 0.9])
def test_attainable_is_the_larger_of_motion_and_supervised(played, skill):
  keys, states, levels = played
  rng = np.random.default_rng(3)
  # Labels that are read: right with probability `skill`, or else any.
  supervised = np.where(
    rng.random(keys.shape) < skill, keys, rng.integers(0, 3, keys.shape)
  )
  found = control.transitions(keys, keys, states, levels)
  figures = control.judge(found, keys, 3, seed=0, supervised=supervised)
  seen = np.ones(keys.shape, bool)
  seen[:, 0] = False
  masks = {
    "all": seen,
    "after_change": seen & control.after_change(keys),
    "ground": seen & (states[:, :-1, 4] > 0),
    "air": seen & (states[:, :-1, 4] == 0),
  }
  assert set(figures) == set(masks)
  winners = set()
  for name, mask in masks.items():
    row = figures[name]
    for side, values in (
      ("motion", found.motion),
      ("supervised", supervised),
    ):
      assert getattr(row, f"{side}_nmi").value == pytest.approx(
        metrics.normalized_mutual_info_score(keys[mask], values[mask])
      )
      best = np.array([
        np.bincount(keys[seen & (values == value)], minlength=3).argmax()
        for value in range(9)
      ])  # fmt: skip
      assert getattr(row, f"{side}_accuracy").value == pytest.approx(
        metrics.accuracy_score(keys[mask], best[values][mask])
      )
    for figure in ("nmi", "accuracy"):
      sides = [
        getattr(row, f"{side}_{figure}") for side in ("motion", "supervised")
      ]
      larger = max(sides, key=lambda side: side.value)
      assert getattr(row, f"attainable_{figure}") == larger
      winners.add(sides.index(larger))
  assert winners == {1} if skill > 0.5 else 0 in winners


def moving(codes, directions):
  """Returns transitions in which the player moves by [n, T-1, 2]."""
  states = np.zeros((len(codes), codes.shape[1] + 1, 5), np.float32)
  states[:, 1:, :2] = np.cumsum(directions, 1)
  return control.transitions(
    codes, np.zeros_like(codes), states, np.arange(len(codes)) % LEVELS
  )


def test_codes_are_named_by_what_the_player_does():
  rng = np.random.default_rng(4)
  codes = rng.integers(0, 7, (CLIPS, FRAMES - 1))
  by_code = np.array(
    [(-1, 0), (1, 0), (0, 1), (0, -1), (0, 0), (1, 1), (-1, 1)]
  )
  rows = control.name_codes(moving(codes, by_code[codes]), 8, seed=0)
  assert [row["name"] for row in rows] == [
    "left", "right", "jump", "fall", "nothing", "right and jump",
    "left and jump", "unclear",
  ]  # fmt: skip
  assert {row["name"] for row in rows} <= set(button_names.NAMES)
  assert [row["button"] for row in rows] == list(range(8))
  for row in rows[:7]:
    assert row["share"] == 1 and row["interval"] == [1, 1]
  goes_left = np.isin(codes, (0, 6)).mean()
  assert rows[0]["effects"]["left"]["chance"] == pytest.approx(goes_left)
  assert rows[0]["transitions"] == (codes == 0).sum()
  assert sum(row["usage"] for row in rows) == pytest.approx(1)
  # A code that never occurs has no name.
  assert rows[7]["transitions"] == 0
  assert rows[7]["share"] is None and rows[7]["interval"] is None


def test_a_code_without_relation_to_the_motion_is_unclear():
  rng = np.random.default_rng(5)
  codes = rng.integers(0, 3, (CLIPS, FRAMES - 1))
  # Right most of the time, whatever the code: no more often than usual.
  right = np.where(rng.random(codes.shape) < 0.8, 1, -1)
  directions = np.stack([right, 0 * right], -1)
  rows = control.name_codes(moving(codes, directions), 3, seed=0)
  assert {row["name"] for row in rows} == {"unclear"}
  for row in rows:
    mine = right[codes == row["button"]]
    assert row["effects"]["right"]["value"] == pytest.approx((mine > 0).mean())
    assert row["effects"]["right"]["chance"] == (right > 0).mean()


def test_names_of_codes_can_be_stored_in_a_world():
  codes = np.tile([0, 1], (CLIPS, (FRAMES - 1) // 2))
  directions = np.array([(-1, 0), (1, 0)])[codes]
  rows = control.name_codes(moving(codes, directions), 2, seed=0)
  named = buttons.from_metrics({"details": {"control": {"buttons": rows}}})
  buttons.check("here", named)
  assert [row["name"] for row in named] == ["left", "right"]
  assert {row["source"] for row in named} == {"clips"}


def test_random_codes_are_at_chance(played):
  codes = np.random.default_rng(2).integers(0, 3, played[0].shape)
  _, figures = judged(played, codes)
  for row in figures.values():
    assert row.nmi.low < 0.02
    assert row.accuracy.value < 0.6


def test_without_support_there_is_no_ground(played):
  keys, states, levels = played
  unknown = states.copy()
  unknown[..., 4] = -1
  _, figures = judged((keys, unknown, levels), keys)
  assert set(figures) == {"all", "after_change"}


@pytest.fixture
def folder(played, tmp_path):
  """Returns a clips folder of a game whose keys and states are known."""
  keys, states, _ = played

  def play(level):
    clip = level % CLIPS
    actions = np.append(keys[clip], 1).astype(np.int32)
    frames = np.zeros((FRAMES, 4, 4, 3), np.uint8)
    frames[:, 0, 0, 0] = actions  # 0, 1 or 2.
    frames[:, 1:, 1:] = 100 * actions[:, None, None, None]
    return games.Played(
      frames,
      actions,
      np.arange(FRAMES) == 0,
      arrays={"states": states[clip]},
    )

  game = games.Game(
    title="toy",
    manifest=manifest.Manifest(
      kind="clips",
      name="toy",
      fps=5,
      frame_shape=(4, 4, 3),
      frames_per_record=games.FRAMES_PER_RECORD,
      splits={},
      num_actions=3,
      action_aliases={},
      made_by={"keys": {"horizontal": [-1, 0, 1], "effect": [0, 1, 2]}},
    ),
    levels={"train": range(59), "test": range(60, 60 + 24)},
    frames_per_level=FRAMES,
    play=play,
    load=lambda: None,
  )
  games.collect(tmp_path / "clips", game, 8)
  return tmp_path / "clips"


def test_the_metric_judges_clips_that_have_states(folder):
  read = manifest.Manifest.read(folder)
  subject = types.SimpleNamespace(
    num_frames=FRAMES,
    num_buttons=3,
    # The frames show the keys.
    infer=lambda frames: frames[:, :-1, 0, 0, 0].astype(np.int64),
  )
  nothing = np.zeros(0, np.int32)
  work = metric.Work(
    subject,
    folder,
    read,
    metric.Options(num_levels=24, num_action_clips=24, idm_steps=60),
    clips=clips_lib.Clips(nothing, None, nothing),
    tokens=nothing,
    rebuilt=nothing,
    buttons=nothing,
  )
  found = registry.METRICS.get("control", where="test")
  assert found.applies(work)
  result = found.measure(work)
  assert set(result.details) == {"buttons", "horizontal", "effect"}
  assert len(result.details["buttons"]) == 3
  assert [row.name for row in result.rows[:3]] == [
    f"Code {code} in real clips" for code in range(3)
  ]
  assert result.details["horizontal"]["all"]["nmi"]["value"] == pytest.approx(1)
  # The model learns to see the keys that the frames show.
  found_by_model = result.details["horizontal"]["all"]["supervised_accuracy"]
  assert found_by_model["value"] > 0.9
  assert any("previous code" in row.compared_with for row in result.rows)
  plain = dataclasses.replace(read, made_by={})
  work.manifest = plain
  assert not found.applies(work)
