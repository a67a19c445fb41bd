"""Tests of the judge that plays a world against the game."""

import itertools
import json
import types

import numpy as np
import pytest
import scrolling_game as game

from genie_jax.core import errors
from genie_jax.data import counterfactuals as data_lib
from genie_jax.data import inspection, manifest
from genie_jax.evals import (
  counterfactuals,
  evaluated_world,
  key_matching,
  metric,
  run,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  """Returns a clips folder that has counterfactuals, and nothing else."""
  folder = tmp_path_factory.mktemp("clips")
  game.write(folder / data_lib.FOLDER)
  return folder


def work(clips, subject, **options):
  return types.SimpleNamespace(
    folder=clips, subject=subject, options=metric.Options(**options)
  )


def measured(clips, subject, **options):
  return counterfactuals.measure(work(clips, subject, **options))


def scores(found):
  """Returns number of frames -> {"score", "chance", "ceiling"}, numbers."""
  return {
    after: {
      name: figures[name].value for name in ("score", "chance", "ceiling")
    }
    for after, figures in found.details["after"].items()
  }


def test_the_game_is_as_its_description_says(clips):
  inspection.verify(manifest.Manifest.read(clips / data_lib.FOLDER))
  found = game.MOMENTS
  assert key_matching.group_keys(found) == game.GROUPS
  # A wall hides "left", and the air hides "up".
  assert found[1].classes(8).tolist() == [0, 1, 2, 3, 1]
  assert found[3].classes(8).tolist() == [0, 0, 2, 3, 0]
  assert found[4].classes(8).tolist() == [0, 1, 2, 1, 1]
  assert found[0].classes(8).tolist() == [0, 0, 2, 0, 0]


@pytest.mark.parametrize("keys", [(2, 0, 3, 1), (3, 4, 0, 2)])
def test_a_perfect_world_scores_one_under_any_numbering_of_buttons(clips, keys):
  found = measured(clips, game.perfect(keys))
  assert set(found.details["after"]) == {"1", "4", "8"}
  for figures in scores(found).values():
    assert figures["score"] == figures["ceiling"] == 1
    assert 0.3 < figures["chance"] < 0.6
  for figures in found.details["reconstructed"].values():
    assert figures["score"].value == 1
  matched = {row["button"]: row["keys"] for row in found.details["match"]}
  assert matched == {
    button: next(group for group in game.GROUPS if key in group)
    for button, key in enumerate(keys)
  }
  assert [row["name"] for row in found.details["buttons"]] == [
    game.NAMES[1 if key == 4 else key] for key in keys
  ]
  assert found.headline["counterfactual_score"] == 1


@pytest.mark.parametrize(
  "subject, name",
  [(game.always(2), "right"), (game.always(0), "left"), (game.still(), None)],
)
def test_a_world_that_ignores_its_buttons_scores_exactly_chance(
  clips, subject, name
):
  found = measured(clips, subject)
  for figures in found.details["after"].values():
    assert figures["score"].value == pytest.approx(
      figures["chance"].value, abs=1e-12
    )
    assert figures["margin"].low == pytest.approx(0, abs=1e-12)
    assert figures["margin"].high == pytest.approx(0, abs=1e-12)
    assert figures["chance"].value < 0.6
    assert figures["ceiling"].value == 1
  names = {row["name"] for row in found.details["buttons"]}
  assert names == {name or "nothing"}


def test_a_world_that_guesses_is_not_flattered_by_the_match(clips):
  margins = []
  for seed in range(4):
    found = measured(clips, game.noisy(seed, obeys=0), seed=seed)
    figures = found.details["after"]["8"]
    assert figures["margin"].low < 0.05 and figures["ceiling"].value == 1
    margins.append(figures["margin"].value)
    assert [row["name"] for row in found.details["buttons"]].count(
      "unclear"
    ) >= 2
  assert abs(np.mean(margins)) < 0.06
  # Chosen and scored on the same moments, the best match looks like control.
  found = measured(clips, game.noisy(0, obeys=0))
  flattered = np.mean([row["hits"] for row in found.details["match"]])
  assert flattered > found.details["after"]["8"]["score"].value


def test_half_obedience_scores_between_chance_and_one(clips):
  figures = measured(clips, game.noisy(0, obeys=0.5)).details["after"]["8"]
  assert figures["chance"].value + 0.1 < figures["score"].value < 0.9
  assert figures["margin"].low > 0


def brute_force(subject, moments, length, seed):
  """Returns score and chance by loops over everything, and all matches."""
  shown = counterfactuals.play(subject, moments, {4: 1}, seed=seed)
  buttons = range(len(shown.buttons))
  hits = {}
  for m, moment in enumerate(moments):
    futures = [moment.future(key)[:length].astype(float) for key in range(5)]
    differs = np.zeros(futures[0].shape[:3], bool)
    for one, other in itertools.combinations(futures, 2):
      differs |= (one != other).any(-1)
    for a in buttons:
      drawn = shown.drawn[m, a, :length].astype(float)
      far = [
        (((drawn - future) ** 2).sum(-1) * differs).sum() for future in futures
      ]
      different = []  # One key of each class.
      for key in range(5):
        if not any(
          np.array_equal(futures[key], futures[other]) for other in different
        ):
          different.append(key)
      best = [key for key in different if far[key] == min(far)]
      for g, group in enumerate(game.GROUPS):
        hits[m, a, g] = sum(
          any(np.array_equal(futures[key], futures[k]) for k in group)
          for key in best
        ) / len(best)
  return hits, buttons


@pytest.mark.parametrize("num_buttons", [3, 4])
def test_scores_equal_a_brute_force_over_all_matches(clips, num_buttons):
  subject = game.noisy(5, obeys=0.4, num_buttons=num_buttons)
  moments = data_lib.read(
    data_lib.read_manifest(data_lib.address(clips)), "test", 100, 0
  )
  assert len(moments) == len(game.MOMENTS)
  by_length = {}
  for length in (1, 4, 8):
    by_length[length], buttons = brute_force(subject, moments, length, 0)
  levels = np.array([moment.level for moment in moments])
  half = key_matching.in_first_half(levels, 0)
  assert len(set(levels[half])) == len(set(levels[~half])) == game.LEVELS / 2
  assert not set(levels[half]) & set(levels[~half])
  groups = range(len(game.GROUPS))
  chosen = {}
  for fit in (True, False):
    # All ways to give different groups to the buttons.
    chosen[fit] = max(
      itertools.permutations(groups, num_buttons),
      key=lambda way: sum(
        hits[m, a, way[a]]
        for hits in by_length.values()
        for m in np.flatnonzero(half == fit)
        for a in buttons
      ),
    )
  found = measured(clips, subject).details
  for length, hits in by_length.items():
    score, chance = [], []
    for m in range(len(moments)):
      way = chosen[not half[m]]
      score.append(np.mean([hits[m, a, way[a]] for a in buttons]))
      chance.append(
        np.mean(
          [
            [hits[m, shuffled[a], way[a]] for a in buttons]
            for shuffled in itertools.permutations(buttons)
          ]
        )
      )
    figures = found["after"][str(length)]
    assert figures["score"].value == pytest.approx(np.mean(score))
    assert figures["chance"].value == pytest.approx(np.mean(chance))
    assert figures["margin"].value == pytest.approx(
      np.mean(score) - np.mean(chance)
    )
    assert figures["moments"] == len(moments)


def test_a_coarse_tokenizer_lowers_the_ceiling_and_the_score(clips):
  figures = {}
  for block in (2, 16):
    subject = game.coarse(game.perfect((0, 1, 2, 3)), block)
    figures[block] = measured(clips, subject).details["after"]["1"]
  fine, blurred = figures[2], figures[16]
  assert fine["ceiling"].value > blurred["ceiling"].value
  assert blurred["ceiling"].value < 0.95
  # This world draws what its tokenizer makes of the truth: the ceiling.
  assert blurred["score"].value == pytest.approx(
    blurred["ceiling"].value, abs=0.05
  )


def test_a_world_of_true_actions_needs_no_match(clips):
  found = measured(clips, game.true_world())
  assert [row["button"] for row in found.details["match"]] == [0, 1, 2, 3]
  assert scores(found)["8"]["score"] == 1
  # Its buttons are keys: a world that swaps left and right is wrong.
  swapped = game.perfect((2, 1, 0, 3, 4))
  swapped = game.dataclasses.replace(swapped, infer=None)
  assert scores(measured(clips, swapped))["8"]["score"] < 0.6
  assert scores(measured(clips, game.perfect((2, 1, 0, 3))))["8"]["score"] == 1


def test_moments_whose_futures_are_equal_tell_nothing():
  hits = key_matching.Hits(
    after=(1,),
    levels=np.array([0, 0, 1, 1]),
    world=np.array([[np.eye(2), np.ones((2, 2)), np.eye(2), np.ones((2, 2))]]),
    ceiling=np.ones((1, 4, 2)),
    classes=np.array([[2, 1, 2, 1]]),
  )
  found = key_matching.score(hits, seed=0)["1"]
  assert found["moments"] == 2
  assert (found["score"].value, found["chance"].value) == (1, 0.5)


def test_draws_are_shared():
  np.testing.assert_allclose(
    key_matching.nearest(np.array([[3, 1, 1], [0, 2, 5]])),
    [[0, 0.5, 0.5], [1, 0, 0]],
  )


def test_a_long_clip_is_encoded_in_windows_of_the_right_frames():
  asked = []

  def encode(frames):
    asked.append(frames[0, :, 0, 0, 0].tolist())
    return game.encode(frames)

  subject = game.dataclasses.replace(game.still(), encode=encode)
  frames = np.arange(15, dtype=np.uint8)[None, :, None, None, None]
  frames = np.broadcast_to(frames, (1, 15, 2, 2, 3))
  found = evaluated_world.encode_long(subject, frames)
  assert found[0, :, 0, 0].tolist() == list(range(15))
  assert asked == [[0, 1, 2, 3, 4, 5], [*range(3, 9)], [*range(6, 12)],
                   [*range(9, 15)]]  # fmt: skip


def test_few_moments_come_from_many_levels(clips):
  found = data_lib.read_manifest(data_lib.address(clips))
  moments = data_lib.read(found, "test", 12, seed=3)
  levels = [moment.level for moment in moments]
  assert len(set(levels[:10])) == 10 and len(levels) == 12
  again = data_lib.read(found, "test", 12, seed=3)
  assert [m.step for m in again] == [m.step for m in moments]


def test_missing_counterfactuals_are_reported_and_not_measured(tmp_path):
  found = counterfactuals.measure(work(tmp_path, game.still()))
  assert found.details["measured"] is False
  (row,) = found.rows
  assert row.value == "not measured"
  assert "--counterfactuals 4" in row.note and "\n" not in row.note
  assert not found.headline


def test_counterfactuals_that_were_asked_for_must_exist(clips, tmp_path):
  with pytest.raises(errors.UserError, match=r"--counterfactuals .*none has"):
    counterfactuals.applies(
      work(clips, game.still(), counterfactuals=str(tmp_path / "none"))
    )
  with pytest.raises(errors.UserError, match="split 'validation'"):
    counterfactuals.applies(
      work(
        clips,
        game.still(),
        split="validation",
        counterfactuals=data_lib.address(clips),
      )
    )
  small = game.dataclasses.replace(game.still(), frame_shape=(8, 8, 3))
  with pytest.raises(errors.UserError, match="frame_shape"):
    counterfactuals.applies(work(clips, small))


def test_figures_are_json_and_the_report_has_a_row_for_each_button(clips):
  found = measured(clips, game.perfect((2, 0, 3, 1)))
  text = json.dumps(run._json(found.details), allow_nan=False)
  assert json.loads(text)["buttons"][0]["name"] == "right"
  names = [row.name for row in found.rows]
  assert names == [
    "Buttons against the game's keys, after 1 frame",
    "Buttons against the game's keys, after 4 frames",
    "Buttons against the game's keys, after 8 frames",
    *(f"Button {button} in this world" for button in range(4)),
  ]
  assert found.rows[3].value == "right, 100 %"
  assert (
    "with key 2 (right): +2.00 right, -0.53 up" in found.rows[3].compared_with
  )
