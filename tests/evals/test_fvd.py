"""Tests of the video distances of a world, with a stand-in for I3D."""

import dataclasses
import re

import grey_game
import numpy as np
import pytest

from genie_jax.data import manifest
from genie_jax.evals import fvd, i3d, i3d_weights, metric, registry, run

OPTIONS = dataclasses.replace(grey_game.OPTIONS, fvd=True, fvd_clips=12)
ROWS = ("world", "other_real", "tokenizer", "frozen", "shuffled")


@pytest.fixture
def network(monkeypatch):
  """Replaces I3D; returns the clips that it was given."""
  given = []

  def features(params, frames):
    given.append(frames)
    # The buttons that changed the brightness of one square.
    square = grey_game.encode(frames)[:, :, 0, 1].astype(np.float64)
    return np.diff(square, axis=1) % grey_game.NUM_CODES

  monkeypatch.setattr(i3d_weights, "load", lambda path: {})
  monkeypatch.setattr(i3d, "fold", lambda arrays: {})
  monkeypatch.setattr(i3d, "features", features)
  return given


def work(folder, subject, options=OPTIONS):
  """Returns an evaluation whose other clips are not needed."""
  nothing = np.zeros(0)
  return metric.Work(
    subject=subject,
    folder=folder,
    manifest=manifest.Manifest.read(folder),
    options=options,
    clips=None,
    tokens=nothing,
    rebuilt=nothing,
    buttons=nothing,
  )


def test_a_perfect_world_is_as_near_as_real_clips_and_a_still_one_is_frozen(
  network, clips
):
  obedient = fvd.measure(work(clips, grey_game.world(True, noise=False)))
  rows = obedient.details["rows"]
  assert set(rows) == set(ROWS)
  # Its rollouts of 16 frames repeat the tokens of the clips, whose buttons were
  # inferred in windows of 6 frames.
  assert rows["world"] == rows["other_real"] == rows["tokenizer"]
  _, rollouts, real, *_ = map(grey_game.encode, network)
  np.testing.assert_array_equal(rollouts, real)
  still = fvd.measure(work(clips, grey_game.world(False, noise=False)))
  assert still.details["rows"]["world"] == rows["frozen"]
  assert rows["frozen"]["fvd"] > 2 * rows["other_real"]["fvd"]
  assert rows["shuffled"]["fvd"] != rows["other_real"]["fvd"]


def test_a_world_of_true_actions_is_given_the_recorded_ones(network, clips):
  subject = dataclasses.replace(
    grey_game.world(True, noise=False), infer=None, num_buttons=6
  )
  rows = fvd.measure(work(clips, subject)).details["rows"]
  assert rows["world"] == rows["other_real"]


def test_all_sets_have_the_same_size_and_real_features_are_computed_once(
  network, clips
):
  found = fvd.measure(work(clips, grey_game.world(True)))
  assert len(network) == 1 + len(ROWS)
  assert {frames.shape for frames in network} == {(12, 16, 16, 16, 3)}
  assert {frames.dtype for frames in network} == {np.dtype(np.uint8)}
  _, _, real, _, frozen, shuffled = network
  assert (frozen == real[:, :1]).all()
  assert (shuffled != real).any()
  key = lambda frames: np.sort(frames.reshape(12, 16, -1).sum(-1), 1)
  np.testing.assert_array_equal(key(shuffled), key(real))
  assert (found.details["clips"], found.details["frames"]) == (12, 16)


def test_the_name_states_clips_and_frames(network, clips):
  found = fvd.measure(work(clips, grey_game.world(True)))
  rows = found.details["rows"]
  assert found.headline == {
    "FVD_12_16f": rows["world"]["fvd"],
    "KVD_12_16f": rows["world"]["kvd"].value,
  }
  assert len(found.rows) == 2 * len(ROWS)
  assert sum(row.name.startswith("FVD_12_16f, ") for row in found.rows) == 5
  for row in found.rows:
    assert bool(row.interval) == row.name.startswith("KVD_12_16f")
  assert found.rows[0].value == f"{rows['world']['fvd']:.1f}"


def test_the_two_sets_have_no_level_in_common(clips):
  reference, others = fvd.pick(work(clips, grey_game.world(True)))
  first, second = set(reference.levels.tolist()), set(others.levels.tolist())
  assert (len(first), len(second)) == (4, 3)
  assert not first & second
  again, _ = fvd.pick(work(clips, grey_game.world(True)))
  np.testing.assert_array_equal(again.frames, reference.frames)


def test_levels_take_turns(clips):
  few = dataclasses.replace(OPTIONS, fvd_clips=5)
  reference, _ = fvd.pick(work(clips, grey_game.world(True), few))
  assert len(set(reference.levels[:4].tolist())) == 4
  assert reference.frames.shape[0] == 5


@pytest.mark.parametrize(
  "split, num_clips, message",
  [
    ("test", 76, "give --fvd-clips 75"),  # 3 levels of 25 windows.
    ("train", 12, "6 levels are needed.*has 5"),
  ],
)
def test_too_few_clips_are_a_row_that_says_so(
  network, clips, split, num_clips, message
):
  options = dataclasses.replace(OPTIONS, split=split, fvd_clips=num_clips)
  found = fvd.measure(work(clips, grey_game.world(True), options))
  (row,) = found.rows
  assert row.value == "not measured"
  assert found.details == {"not_measured": row.note}
  assert re.search(message, row.note)
  assert not found.headline


def test_it_is_left_out_unless_asked_for(clips):
  found = registry.METRICS.get("fvd", where="test")
  assert found.applies(work(clips, grey_game.world(True)))
  assert not metric.Options().fvd
  plain = work(clips, grey_game.world(True), grey_game.OPTIONS)
  assert not found.applies(plain)


def test_without_weights_the_other_metrics_are_still_measured(
  clips, monkeypatch
):
  def load(path):
    raise i3d_weights.UnavailableError("The weights cannot be downloaded.")

  monkeypatch.setattr(i3d_weights, "load", load)
  found = run.evaluate(grey_game.world(True), clips, OPTIONS)
  assert found.metrics["details"]["fvd"] == {
    "not_measured": "The weights cannot be downloaded."
  }
  assert found.metrics["delta_psnr"] > 0
  (row,) = (row for row in found.rows if "Frechet" in row.name)
  assert row.note == "The weights cannot be downloaded."
