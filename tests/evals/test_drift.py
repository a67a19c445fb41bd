import dataclasses

import grey_game
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.evals import drift, long_clips, metric, run

OPTIONS = dataclasses.replace(
  grey_game.OPTIONS, num_levels=5, drift_frames=64, drift_levels=6
)
SHORT = 52  # A level whose episodes are too short for 64 frames.


@pytest.fixture(scope="module")
def long_levels(tmp_path_factory):
  lengths = {number: [200] for number in range(50, 57)} | {SHORT: [40, 30, 40]}
  return grey_game.write_clips(tmp_path_factory.mktemp("long"), lengths)


def pick(folder, num_levels=7):
  return long_clips.pick(
    folder,
    "test",
    lengths=[17, 65],
    window=6,
    num_references=8,
    num_levels=num_levels,
    seed=0,
  )


def test_clips_are_real_and_references_lie_outside_them(long_levels):
  found = pick(long_levels)
  lengths = {number: [200] for number in range(50, 57)} | {SHORT: [40, 30, 40]}
  for row, number in enumerate(found.levels):
    whole, _ = grey_game.level(number, sum(lengths[number]))
    # The episodes of the level, each with the number of its first frame.
    begins = np.cumsum([0, *lengths[number]])
    places = lambda piece, whole=whole: [
      start
      for start in range(len(whole) - len(piece) + 1)
      if np.array_equal(whole[start : start + len(piece)], piece)
    ]
    length = found.lengths[row]
    (start,) = places(found.frames[row, :length])
    assert not found.frames[row, length:].any()
    episode = np.searchsorted(begins, start, side="right")
    assert start + length <= begins[episode]
    for reference in found.references[row]:
      # Where a reference may come from: outside the clip and its neighbours.
      fine = [
        place
        for place in places(reference)
        if np.searchsorted(begins, place, side="right") != episode
        or place + 6 + long_clips.GAP <= start
        or place >= start + length + long_clips.GAP
      ]
      assert fine, (number, start, length)


def test_a_level_with_short_episodes_gives_a_shorter_clip(long_levels):
  found = pick(long_levels)
  expected = np.where(found.levels == SHORT, 17, 65)
  np.testing.assert_array_equal(found.lengths, expected)
  assert SHORT in found.levels
  # Longer clips come first, so the short one is taken only if it is needed.
  assert SHORT not in pick(long_levels, num_levels=6).levels


def test_too_few_levels_are_refused_with_both_numbers(long_levels):
  with pytest.raises(errors.UserError, match=r"has 7 levels.*measured on 9"):
    pick(long_levels, num_levels=9)


def rows(world, folder, **options):
  found = run.evaluate(
    world, folder, dataclasses.replace(OPTIONS, **options)
  ).metrics
  return found, found["details"]["drift"]["horizons"]


@pytest.fixture(scope="module")
def quiet(long_levels):
  return rows(grey_game.world(True, noise=False), long_levels, drift_levels=7)


def test_a_perfect_world_is_like_the_game_and_trivial_ones_are_not(quiet):
  metrics, found = quiet
  assert list(found) == ["16", "64"]
  assert metrics["drift_frames"] == 64
  for part in found.values():
    likeness = part["likeness"]
    assert likeness["tokenizer"]["value"] == pytest.approx(1.0, abs=0.1)
    # A frozen world keeps its colours and tokens, but it does not move.
    assert likeness["frozen"]["value"] == 0.0
    assert part["ratios"]["motion"]["frozen"]["value"] == 0.0
    assert part["ratios"]["palette_from_first"]["frozen"]["value"] == 0.0
    assert part["ratios"]["tokens"]["other_level"]["low"] > 1.5
    assert likeness["world"]["low"] > likeness["other_level"]["high"]


def test_a_horizon_uses_the_levels_whose_clips_reach_it(quiet):
  _, found = quiet
  assert (found["16"]["levels"], found["64"]["levels"]) == (7, 6)


def test_a_world_that_drifts_is_less_like_the_game(quiet, long_levels):
  _, good = quiet

  def strange(obeys):
    world = grey_game.world(obeys, noise=False)

    def rollout(prompt, buttons, clip_ids, seed):
      tokens = world.rollout(prompt, buttons, clip_ids, seed).copy()
      # From frame 30 on, everything turns darker.
      tokens[:, 30:] = tokens[:, 30:] // 4
      return tokens

    return dataclasses.replace(world, rollout=rollout)

  _, found = rows(strange(True), long_levels, drift_levels=7)
  assert found["16"]["likeness"] == good["16"]["likeness"]
  assert (
    found["64"]["likeness"]["world"]["high"]
    < good["64"]["likeness"]["world"]["low"]
  )
  assert found["64"]["ratios"]["palette"]["world"]["low"] > 2


def test_drift_is_left_out_unless_asked_for(clips):
  found = run.evaluate(grey_game.world(True), clips, grey_game.OPTIONS).metrics
  assert "drift" not in found["details"]
  assert "drift_likeness" not in found


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"drift_frames": 7}, "--drift-frames is 7"),
    ({"drift_frames": -1}, "--drift-frames is -1"),
    ({"drift_levels": 1}, "--drift-levels is 1"),
  ],
)
def test_options_that_measure_nothing_are_refused(fields, message):
  with pytest.raises(errors.UserError, match=message):
    metric.Options(**fields)


def test_divergence_is_zero_for_equal_and_one_for_disjoint_histograms():
  assert drift.divergence(np.array([2, 2, 0]), np.array([1, 1, 0])) == 0.0
  assert drift.divergence(
    np.array([2, 2, 0]), np.array([0, 0, 5])
  ) == pytest.approx(1.0)


def test_rare_codes_make_up_at_most_their_share():
  counts = np.array([1000, 0, 3, 500, 4, 60])
  rare = drift.rare_codes(counts)
  np.testing.assert_array_equal(rare, [False, True, True, False, True, False])
  assert counts[rare].sum() <= drift.RARE_SHARE * counts.sum()


def test_the_centre_is_the_middle_quarter():
  frames = np.zeros((1, 64, 64, 3), np.uint8)
  frames[:, 24:40, 24:40] = 7
  found = drift.centre(frames)
  assert found.shape == (1, 16, 16, 3)
  assert (found == 7).all()
  assert found.sum() == frames.sum()
