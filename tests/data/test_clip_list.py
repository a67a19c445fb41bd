"""Tests of the list of clips, of their frames, and of rated clips."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from genie_jax.core import errors
from genie_jax.data import clip_list, manifest, rated_clips
from tests.fixtures import rated_folder, stage_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with 20 clips of 32 frames, and its labels."""
  path = tmp_path_factory.mktemp("data") / "clips"
  return path, rated_folder.write(path, (8, 6, 6))


def test_long_episodes_are_divided_and_clips_without_motion_left_out(tmp_path):
  path = stage_data.write_clips(tmp_path / "c", (16, 16, 3), length=25)
  found = manifest.Manifest.read(path)
  assert [clip.length for clip in clip_list.clips(found)] == [25, 25, 25]
  pieces = clip_list.clips(found, 12)
  assert [(clip.start, clip.length) for clip in pieces] == [
    (0, 12),
    (12, 12),
  ] * 3
  assert len({clip.id for clip in pieces}) == 6
  with pytest.raises(errors.UserError, match="has no motion"):
    clip_list.clips(found, 1)


def test_the_frames_of_a_clip_are_those_that_were_written(tmp_path):
  path = stage_data.write_clips(tmp_path / "c", (16, 16, 3), length=40)
  found = manifest.Manifest.read(path)
  reader = clip_list.Reader(found)
  for clip in clip_list.clips(found, 15):
    truth = stage_data.frames_of(clip.source, 40, (16, 16, 3))
    truth = truth[clip.start : clip.start + clip.length]
    np.testing.assert_array_equal(reader.frames(clip), truth)
    places = clip_list.run_places(clip.length, 3, size=4)
    np.testing.assert_array_equal(reader.frames(clip, places), truth[places])
  other = pickle.loads(pickle.dumps(reader))  # noqa: S301  To a worker.
  np.testing.assert_array_equal(other.frames(clip), truth)


@pytest.mark.parametrize("size", [2, 4])
def test_runs_are_adjacent_ordered_and_inside_the_clip(size):
  for length in (2, 3, 16, 160):
    for shift in range(4):
      runs = clip_list.run_places(length, 8, shift, 4, size=size)
      runs = runs.reshape(8, size)
      if length >= size:
        assert (np.diff(runs, axis=1) == 1).all()
      else:  # The last frame is repeated.
        assert (runs == [0, 1, *[length - 1] * (size - 2)]).all()
      assert (np.diff(runs[:, 0]) >= 0).all()
      assert runs.min() >= 0 and runs.max() < length
  shifted = [clip_list.run_places(160, 8, shift, 10) for shift in range(10)]
  assert len({each.tobytes() for each in shifted}) == 10


def test_clips_of_videos_have_the_names_of_their_table(folder):
  path, _ = folder
  table = path / "train" / "00000-of-00001.parquet"
  rows = {
    "clip_id": ["one", "gone", "two"],
    "record": [0, -1, 2],
    "kept": [True, False, True],
  }
  parquet.write_table(pa.table(rows), table)
  try:
    found = clip_list.clips(manifest.Manifest.read(path))
    assert [clip.id for clip in found[:3]] == ["one", "two", "train-0-4-0"]
    # A piece of a clip is not the clip.
    pieces = clip_list.clips(manifest.Manifest.read(path), 16)
    assert pieces[0].id == "train-0-0-0"
    table.write_bytes(b"no table")
    with pytest.raises(errors.UserError, match="is not a Parquet file"):
      clip_list.clips(manifest.Manifest.read(path))
  finally:
    table.unlink()


def test_only_ratings_5_and_1_are_used_and_splits_share_no_source(
  folder, tmp_path
):
  path, labels = folder
  clips = list(labels)
  rows = [*labels.items()]
  rows[0] = (clips[0], 3)
  table = rated_folder.write_labels(tmp_path / "t.csv", rows)
  seen = {}
  for split, count in (("train", 7), ("validation", 6), ("test", 6)):
    found = rated_clips.RatedClips(path, table, split, 4)
    assert len(found) == count == found.num_good + found.num_bad
    batch = found.gather(range(len(found)))
    seen[split] = set(batch["source"].tolist())
    for frames, label in zip(batch["frames"], batch["labels"], strict=True):
      moved = (frames[0] != frames[1]).any()
      assert moved == (label == 1)
  assert (
    not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
  )


def test_the_rarer_class_is_repeated_and_shifts_read_other_frames(
  folder, tmp_path
):
  path, labels = folder
  rows = [(clip, 5 if n % 4 == 0 else 1) for n, clip in enumerate(labels)]
  table = rated_folder.write_labels(tmp_path / "t.csv", rows)
  found = rated_clips.RatedClips(
    path, table, "train", 4, shifts=3, balance=True
  )
  assert (found.num_good, found.num_bad, len(found)) == (2, 6, 36)
  batch = found.gather(range(len(found)))
  assert batch["labels"].mean() == 0.5
  first = batch["frames"][:3]
  assert (batch["source"][:3] == 0).all()
  assert len({each.tobytes() for each in first}) == 3


def test_the_fingerprint_is_of_the_clips_and_of_the_ratings_that_count(
  folder, tmp_path
):
  path, labels = folder
  rows = [*labels.items()]

  def fingerprint(changed):
    table = rated_folder.write_labels(tmp_path / "t.csv", changed)
    return rated_clips.RatedClips(path, table, "train", 4).manifest.fingerprint

  whole = fingerprint(rows)
  assert fingerprint([*rows, rows[0]]) == whole  # Rated twice, with the same.
  assert fingerprint([*rows, (rows[0][0], 3)]) != whole
  assert fingerprint([(rows[0][0], 1), *rows[1:]]) != whole


@pytest.mark.parametrize(
  "split, keep, message",
  [
    ("tests", slice(None), "did you mean 'test'"),
    ("test", slice(0, 8), "has 0 clips rated 5 and 0 rated 1"),
    ("train", slice(0, 1), "has 1 clips rated 5 and 0 rated 1"),
  ],
)
def test_a_split_without_both_classes_is_one_clear_line(
  folder, tmp_path, split, keep, message
):
  path, labels = folder
  table = rated_folder.write_labels(tmp_path / "t.csv", [*labels.items()][keep])
  with pytest.raises(errors.UserError, match=message):
    rated_clips.RatedClips(path, table, split, 4)
