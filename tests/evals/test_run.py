import dataclasses
import json

import grey_game
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import rollouts, run


@pytest.fixture(scope="module")
def obedient(clips):
  return run.evaluate(
    grey_game.world(obeys_buttons=True),
    clips,
    grey_game.OPTIONS,
    true_actions=grey_game.true_world(),
  )


def test_a_world_that_obeys_scores_better_with_the_right_buttons(obedient):
  assert obedient.metrics["delta_psnr_low"] > 0.5


def test_delta_psnr_against_random_buttons_has_not_changed(obedient):
  # Computed at version 0.1, before there were other comparisons.
  found = obedient.metrics["details"]["controllability"]["delta_psnr"]
  assert found["delta"] == {
    "value": 6.521017599216358,
    "low": 2.656406236030683,
    "high": 12.108618687514724,
  }
  assert found["inferred"]["value"] == 22.291888506184673
  assert found["random"]["value"] == 15.770870906968314


def test_right_buttons_beat_the_button_before_if_each_is_chosen_anew(obedient):
  metrics = obedient.metrics
  found = metrics["details"]["controllability"]["delta_previous"]
  assert found["prompt_frames"] == 2
  assert list(found["frames"]) == ["1", "4"]
  for figures in found["frames"].values():
    assert figures["changed_pixels"]["previous"]["low"] > 1.0
  first = found["frames"]["1"]["all_pixels"]["previous"]
  assert metrics["delta_previous_psnr"] == first["value"]
  assert metrics["delta_previous_psnr_low"] == first["low"] > 0.5


def held_clips(count=48, length=6):
  """Returns clips in which each action is held for ever: state, not control."""
  rng = np.random.default_rng(3)
  held = np.repeat(
    rng.integers(1, grey_game.NUM_ACTIONS, count)[:, None], length - 1, 1
  )
  tokens = np.repeat(rng.integers(0, 16, (count, 1, 2, 2)), length, 1)
  tokens[:, 1:, 0, 1] = (tokens[:, :1, 0, 1] + np.cumsum(held, 1)) % 16
  return tokens.astype(np.int32), held


def measure_held(**options):
  """Returns delta PSNR of these clips in a world that obeys."""
  tokens, held = held_clips(**options)
  frames = grey_game.decode(tokens)
  return rollouts.delta_previous(
    grey_game.world(True),
    tokens,
    frames,
    frames,
    held,
    np.arange(grey_game.NUM_ACTIONS),
    np.arange(len(tokens)),
    seed=0,
  )


def test_codes_that_repeat_score_against_random_ones_only():
  found = measure_held()["frames"]
  for figures in found.values():
    for scope in ("all_pixels", "changed_pixels"):
      previous, random = figures[scope]["previous"], figures[scope]["random"]
      # Equal buttons and equal noise give equal frames.
      assert (previous.low, previous.value, previous.high) == (0, 0, 0)
      assert random.low > 0.5


def test_a_frame_that_does_not_fit_after_two_given_ones_is_left_out():
  found = measure_held(length=5)
  assert (found["prompt_frames"], list(found["frames"])) == (2, ["1"])


def test_a_world_that_ignores_its_buttons_scores_exactly_zero(clips):
  found = run.evaluate(
    grey_game.world(obeys_buttons=False), clips, grey_game.OPTIONS
  ).metrics
  # Paired draws: the noise of both rollouts is bit-identical.
  assert found["delta_psnr"] == 0.0
  assert (found["delta_psnr_low"], found["delta_psnr_high"]) == (0.0, 0.0)
  assert found["delta_previous_psnr"] == found["delta_previous_psnr_high"] == 0
  held = found["details"]["controllability"]["held"]
  assert held["mean_effect"] == 0.0
  assert held["noise_effect"] > 0.0


def test_perfect_action_codes_agree_fully_and_aliases_are_merged(obedient):
  assert obedient.metrics["action_nmi"] == pytest.approx(1.0)
  assert obedient.metrics["shuffled_nmi_high"] < 0.4
  found = obedient.metrics["details"]["actions"]
  assert found["true_actions"] == [0, 1, 2, 3, 4]
  assert found["majority"] == pytest.approx(1 / 3, abs=0.1)


def test_a_world_of_true_actions_is_reported_with_the_latent_one(obedient):
  other = obedient.metrics["details"]["true_actions"]
  assert other["delta_psnr"]["delta"]["low"] > 0.5
  # The alias is not a separate button.
  assert other["held"]["buttons"] == [0, 1, 2, 3, 4]


def test_a_world_of_true_actions_can_be_evaluated_alone(clips):
  found = run.evaluate(grey_game.true_world(), clips, grey_game.OPTIONS).metrics
  assert found["actions"] == "true"
  assert found["action_nmi"] is None
  assert found["delta_psnr_low"] > 0.5


def test_predicting_the_moving_block_beats_copying(obedient):
  found = obedient.metrics
  # One of the world's four tokens is noise, and it never changes in the clips.
  assert found["changed_token_accuracy"] == pytest.approx(1.0)
  assert found["changed_pixel_psnr"] > (
    found["copy_last_frame_changed_pixel_psnr"] + 5
  )


def test_figures_are_json_and_repeat_for_a_seed(clips, obedient):
  again = run.evaluate(
    grey_game.world(obeys_buttons=True),
    clips,
    grey_game.OPTIONS,
    true_actions=grey_game.true_world(),
  ).metrics
  drop = lambda metrics: json.dumps(
    {k: v for k, v in metrics.items() if k != "eval_seconds"}, allow_nan=False
  )
  assert drop(again) == drop(obedient.metrics)


def test_few_levels_do_not_meet_the_protocol(obedient):
  assert obedient.metrics["num_levels"] == 6
  assert obedient.metrics["meets_protocol"] is False


def test_clips_come_evenly_from_as_many_levels_as_asked(clips):
  found = clips_lib.pick(
    clips,
    "test",
    num_frames=6,
    num_clips=14,
    num_levels=4,
    with_actions=True,
    seed=0,
  )
  levels, counts = np.unique(found.levels, return_counts=True)
  assert len(levels) == 4
  assert sorted(counts) == [3, 3, 4, 4]
  # Each frame contains the action before it, so frames and actions match.
  merged = np.where(found.actions == 5, 2, found.actions)
  np.testing.assert_array_equal(merged, grey_game.infer(found.frames))


def test_too_few_levels_are_refused_with_both_numbers(clips):
  options = dataclasses.replace(grey_game.OPTIONS, num_levels=9)
  with pytest.raises(errors.UserError, match=r"7 levels.*9 are asked"):
    run.evaluate(grey_game.world(True), clips, options)


def test_clips_of_another_shape_are_refused(clips):
  other = dataclasses.replace(grey_game.world(True), frame_shape=(64, 64, 3))
  with pytest.raises(errors.UserError, match="frame_shape"):
    run.evaluate(other, clips, grey_game.OPTIONS)


def test_clips_too_short_for_four_drawn_frames_are_refused():
  frames = np.zeros((2, 4, 16, 16, 3), np.uint8)
  with pytest.raises(errors.UserError, match="num_frames=4"):
    rollouts.delta(
      grey_game.world(True),
      grey_game.encode(frames[:, :1]),
      frames,
      np.zeros((2, 3), int),
      np.arange(5),
      np.arange(2),
      seed=0,
    )


def test_a_baseline_world_is_compared_on_the_same_clips(clips):
  world = grey_game.world(True)

  def darker(tokens):
    return (world.decode(tokens) // 2).astype(np.uint8)

  worse = dataclasses.replace(world, decode=darker, fingerprint="b" * 64)
  found = run.evaluate(world, clips, grey_game.OPTIONS, baseline=worse)
  baseline = found.metrics["details"]["baseline"]
  own = found.metrics["details"]["reconstruction"]
  assert baseline["fingerprint"] == "b" * 64
  assert baseline["margin"]["value"] == pytest.approx(
    own["tokenizer_psnr"]["value"] - baseline["tokenizer_psnr"]["value"]
  )
  assert baseline["centre_margin"]["low"] > 0
  assert any("baseline" in row.name for row in found.rows)
  # Its window may be shorter than the clips.
  short = dataclasses.replace(world, num_frames=4)
  equal = run.evaluate(world, clips, grey_game.OPTIONS, baseline=short)
  assert equal.metrics["details"]["baseline"]["margin"]["value"] == 0


def test_a_baseline_world_of_another_size_is_refused(clips):
  other = dataclasses.replace(grey_game.world(True), frame_shape=(8, 8, 3))
  with pytest.raises(errors.UserError, match="of the same size"):
    run.evaluate(
      grey_game.world(True), clips, grey_game.OPTIONS, baseline=other
    )
