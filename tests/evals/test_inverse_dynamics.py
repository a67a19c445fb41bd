"""Tests of the model that reads keys from frames, and of the metric with it."""

import dataclasses
import shutil
import types

import dot_game
import jax
import numpy as np
import pytest

from data_pipelines import games
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.evals import (
  actions,
  inverse_dynamics,
  metric,
  obedience,
  registry,
)
from genie_jax.evals import clips as clips_lib

STEPS = 180
LABELS = actions.key_labels(dot_game.MEANINGS)


def share(read, keys):
  """Returns the accuracy of each question."""
  return {
    question: (labels == LABELS[question][keys]).mean()
    for question, labels in read.items()
  }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  def play(level):
    frames, keys, states = dot_game.play(1, seed=level)
    pressed = np.append(keys[0], 0).astype(np.int32)
    return games.Played(
      frames[0],
      pressed,
      np.arange(dot_game.FRAMES) == 0,
      arrays={"states": states[0]},
    )

  game = games.Game(
    title="dot",
    manifest=manifest.Manifest(
      kind="clips",
      name="dot",
      fps=5,
      frame_shape=(dot_game.SIDE, dot_game.SIDE, 3),
      frames_per_record=games.FRAMES_PER_RECORD,
      splits={},
      num_actions=dot_game.NUM_KEYS,
      action_aliases={6: 1},
      made_by={"keys": dot_game.MEANINGS},
    ),
    levels={"train": range(400), "test": range(1000, 1060)},
    frames_per_level=dot_game.FRAMES,
    play=play,
    load=lambda: None,
  )
  clips = tmp_path_factory.mktemp("dot") / "clips"
  games.collect(clips, game, 400)
  return clips


@pytest.fixture(scope="module")
def reader(folder):
  return inverse_dynamics.fit_folder(
    folder, num_frames=dot_game.FRAMES, steps=STEPS, seed=0
  )


@pytest.fixture(scope="module")
def held_out():
  frames, keys, _ = dot_game.play(80, seed=1)
  return frames, keys


def test_keys_that_can_be_seen_are_read_on_held_out_clips(reader, held_out):
  frames, keys = held_out
  read = reader.read(frames)
  assert set(read) == set(dot_game.MEANINGS)
  for found in read.values():
    assert found.shape == keys.shape
  # At chance: effect 2/7 (two keys are one class), horizontal 3/7, jump 4/7.
  for question, right in share(read, keys).items():
    assert right > 0.95, question


def test_shuffled_frames_are_read_no_better_than_the_most_frequent_key(
  reader, held_out
):
  frames, keys = held_out
  found = share(reader.read(obedience.shuffle(frames, seed=0)), keys)
  for question, right in found.items():
    counts = np.bincount(LABELS[question][keys].ravel())
    # 560 transitions: the standard error of a share is at most 0.021.
    assert right < counts.max() / keys.size + 0.06, question


def test_equal_seeds_read_equal_keys_and_other_seeds_differ():
  frames, keys, _ = dot_game.play(40, seed=2)
  fit = lambda seed: inverse_dynamics.fit(
    frames, keys, dot_game.MEANINGS, steps=5, seed=seed
  )
  windows = frames[:8, : len(inverse_dynamics.OFFSETS)]
  first, again, other = (
    np.asarray(fit(s).classify(windows)) for s in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-4


def test_frames_beyond_the_clip_are_its_first_and_last():
  clip = np.arange(5)[None]
  around = inverse_dynamics._around(clip, np.array([0, 0, 0]), np.arange(3))
  wanted = [[t + at for at in inverse_dynamics.OFFSETS] for t in range(3)]
  np.testing.assert_array_equal(around, np.clip(wanted, 0, 4))
  last = inverse_dynamics._around(clip, np.array([0]), np.array([3]))[0]
  assert last.max() == 4


def test_an_answer_sums_over_all_classes_with_the_same_label():
  reader = inverse_dynamics.KeyReader(
    # The most likely class says left, but right is more likely in sum.
    classify=lambda windows: np.tile([0.4, 0.3, 0.3], (len(windows), 1)),
    batch=4,
    answers={"effect": np.array([0, 1, 2]), "horizontal": np.array([0, 1, 1])},
    steps=1,
    transitions=1,
  )
  read = reader.read(np.zeros((3, 4, 8, 8, 3), np.uint8))
  assert (read["effect"] == 0).all() and (read["horizontal"] == 1).all()
  assert read["effect"].shape == (3, 3)


def test_actions_that_the_manifest_does_not_describe_are_refused():
  frames, keys, _ = dot_game.play(4, seed=0)
  with pytest.raises(errors.UserError, match=r"0 to 9.*describes 7"):
    inverse_dynamics.fit(
      frames,
      np.where(keys == keys.max(), 9, 0),
      dot_game.MEANINGS,
      steps=1,
      seed=0,
    )


def test_the_network_fits_the_frames_of_every_game():
  frames = jax.ShapeDtypeStruct(
    (2, len(inverse_dynamics.OFFSETS), 64, 64, 3), np.float32
  )
  network = inverse_dynamics.Network(6)
  out, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), frames)
  assert out.shape == (2, 6) and out.dtype == np.float32


def make_work(folder, obeys=True, reader=None, **options):
  """Returns an evaluation of a world that is the game, or ignores buttons.

  Tokens are the pixels of a frame.

  Args:
    folder: The clips.
    obeys: Whether the world obeys its buttons.
    reader: A trained model to use; None for one that is trained when needed.
    **options: Fields of `metric.Options`.
  """
  read = manifest.Manifest.read(folder)
  clips = clips_lib.pick(
    folder,
    "test",
    num_frames=dot_game.FRAMES,
    num_clips=60,
    num_levels=60,
    with_actions=True,
    seed=0,
  )
  assert clips.actions is not None
  merged = actions.merge(clips.actions, read.action_aliases)

  def rollout(prompt, buttons, clip_ids, seed):
    if not obeys:
      buttons = np.random.default_rng(seed).permuted(buttons, axis=0)
    frames = list(prompt.swapaxes(0, 1))
    for pressed in buttons[:, len(frames) - 1 :].T:
      frames.append(
        np.stack([
          np.roll(frame, (-3 * y, 3 * x), (0, 1))
          for frame, x, y in zip(
            frames[-1],
            np.take(dot_game.MEANINGS["horizontal"], pressed),
            np.take(dot_game.MEANINGS["jump"], pressed),
            strict=True,
          )
        ])
      )  # fmt: skip
    return np.stack(frames, 1)

  subject = types.SimpleNamespace(
    num_frames=dot_game.FRAMES,
    num_buttons=dot_game.NUM_KEYS,
    infer=lambda frames: merged,
    rollout=rollout,
    decode=lambda tokens: tokens,
    choices=lambda aliases: np.arange(6),
  )
  work = metric.Work(
    subject,
    folder,
    read,
    metric.Options(num_levels=60, num_action_clips=60, **options),
    clips,
    tokens=clips.frames,
    rebuilt=clips.frames,
    buttons=merged,
  )
  if reader is not None:
    work.__dict__["key_reader"] = reader
  return work


def test_an_obedient_world_shows_its_keys_and_a_deaf_one_does_not(
  folder, reader
):
  found = registry.METRICS.get("inverse_dynamics", where="test")
  work = make_work(folder, True, reader)
  assert found.applies(work)
  result = found.measure(work)
  for question in dot_game.MEANINGS:
    row = result.details[question]["all"]
    sides = {name: x["value"] for name, x in row["by_source"].items()}
    assert sides["real"] > 0.9
    assert sides["tokenizer"] == sides["real"]
    # The world is the game, so its frames are those of the real clips.
    assert sides["world"] == sides["real"]
    for name in ("random_buttons", "shuffled", "other_clip"):
      assert sides[name] < row["majority"]["value"] + 0.15, name
    # 60 clips, transitions from frame 4 on.
    assert row["transitions"] == 60 * 4
  assert len(result.rows) == 6
  assert "random buttons 0." in result.rows[0].compared_with

  deaf = make_work(folder, False, reader)
  ignored = found.measure(deaf).details["effect"]["all"]["by_source"]
  assert ignored["real"]["value"] > 0.9
  assert ignored["world"]["value"] < 0.4


def test_the_model_is_trained_once_for_all_metrics(folder, monkeypatch):
  calls = []
  fit = inverse_dynamics.fit_folder
  monkeypatch.setattr(
    inverse_dynamics,
    "fit_folder",
    lambda *where, **options: calls.append(options) or fit(*where, **options),
  )
  work = make_work(folder, idm_steps=2)
  for name in ("control", "inverse_dynamics"):
    registry.METRICS.get(name, where="test").measure(work)
  assert [call["steps"] for call in calls] == [2]


def test_without_the_model_rows_say_that_nothing_was_measured(folder):
  work = make_work(folder, idm_steps=0)
  result = registry.METRICS.get("inverse_dynamics", where="test").measure(work)
  assert [row.value for row in result.rows] == ["not measured"] * 3
  judged = registry.METRICS.get("control", where="test").measure(work)
  found = judged.details["effect"]["all"]
  assert found["supervised_nmi"] is None
  assert found["attainable_nmi"] == found["motion_nmi"]
  keys = [row for row in judged.rows if not row.name.startswith("Code ")]
  assert keys
  assert all("supervised not measured" in row.compared_with for row in keys)


def test_clips_that_do_not_describe_their_keys_are_refused(folder, tmp_path):
  plain = shutil.copytree(folder, tmp_path / "plain")
  read = manifest.Manifest.read(folder)
  dataclasses.replace(read, made_by={}).write(plain)
  with pytest.raises(errors.UserError, match="--states"):
    inverse_dynamics.fit_folder(plain, num_frames=4, steps=1, seed=0)


def test_accuracy_counts_only_judged_transitions_of_each_situation():
  labels = np.array([[0, 0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
  read = {"real": labels.copy()}
  read["real"][:, :3] = 1 - labels[:, :3]  # Wrong only where it does not count.
  read["real"][0, 7] = 0
  found = obedience.accuracy(read, labels, np.array([0, 1]), first=3, seed=0)
  assert found["all"].transitions == 10
  assert found["all"].by_source["real"].value == pytest.approx(0.9)
  assert found["all"].majority.value == pytest.approx(0.7)
  assert found["after_change"].transitions == 2
  assert found["after_change"].by_source["real"].value == pytest.approx(0.5)


def test_shuffling_keeps_the_frames_of_each_clip():
  frames = np.arange(40).reshape(4, 10)
  mixed = obedience.shuffle(frames, seed=0)
  np.testing.assert_array_equal(np.sort(mixed, 1), frames)
  assert (mixed != frames).mean() > 0.5
  assert len({tuple(row % 10) for row in mixed}) > 1


def test_another_clip_is_of_another_level():
  for levels in (np.arange(24) % 6, np.array([3, 1, 2, 3, 1, 2, 3])):
    other = obedience._other_levels(levels)
    assert (levels[other] != levels).all()
    assert sorted(other) == list(range(len(levels)))
