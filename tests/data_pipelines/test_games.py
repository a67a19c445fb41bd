"""Tests of `games`, with a collector that only provides frames and actions."""

import functools

import numpy as np
import pytest

from data_pipelines import games
from genie_jax.core import errors
from genie_jax.data import inspection, manifest, sources

LENGTH = 20


def play(level, dies_in=None):
  """Returns frames that show the level, in two episodes of ten frames."""
  if level == dies_in:
    raise KeyboardInterrupt
  frames = np.full((LENGTH, 4, 4, 3), level, np.uint8)
  return games.Played(
    frames, np.arange(LENGTH, dtype=np.int32) % 3, np.arange(LENGTH) == 10
  )


def load():
  """Nothing has to be fetched."""


def make_game(dies_in=None):
  return games.Game(
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
      made_by={"collector": "a test"},
    ),
    levels={"train": range(5), "test": range(50, 52)},
    frames_per_level=LENGTH,
    play=functools.partial(play, dies_in=dies_in),
    load=load,
  )


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


def test_a_stopped_run_resumes_with_other_workers_and_the_same_bytes(tmp_path):
  report = games.collect(tmp_path / "whole", make_game(), 2)
  assert (report.frames, report.kept_frames) == (7 * LENGTH, 0)
  found = manifest.Manifest.read(tmp_path / "whole")
  inspection.verify(found)
  assert found.splits["train"]["shards"][0]["episodes"] == [
    [0, 0, 0, 10],
    [0, 0, 10, 10],
    [1, 2, 0, 10],
    [1, 2, 10, 10],
  ]
  window = sources.WindowSource(tmp_path / "whole", "train", 10)[3]
  assert window["frames"].shape == (10, 4, 4, 3)
  assert (window["frames"] == int(window["source"])).all()
  with pytest.raises(KeyboardInterrupt):
    games.collect(tmp_path / "stopped", make_game(dies_in=3), 2)
  report = games.collect(tmp_path / "stopped", make_game(), 2, num_workers=2)
  assert (report.frames, report.kept_frames) == (5 * LENGTH, 2 * LENGTH)
  assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_an_exception_of_a_worker_is_raised(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    games.collect(tmp_path / "out", make_game(dies_in=51), 2, num_workers=2)


def test_folders_and_workers_that_do_not_fit_are_refused(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.UserError, match="is not empty"):
    games.collect(tmp_path, make_game(), 2)
  with pytest.raises(errors.UserError, match="--workers"):
    games.collect(tmp_path / "out", make_game(), 2, num_workers=0)
