"""Tests that records with less than their manifest says are refused."""

import dataclasses

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import (
  clip_list,
  manifest,
  records,
  shards,
  sources,
  stored_frames,
)

_SHAPE = (4, 4, 3)


def write(folder, *sizes, length=12, codec=None, **arrays):
  """Writes one episode in records of 8 frames, of which some have fewer.

  Args:
    folder: Where to write.
    *sizes: Frames that each record really has.
    length: Frames that the manifest states.
    codec: Frames codec of the manifest.
    **arrays: Arrays of the last record in place of the right ones.
  """
  path = folder / "train" / shards.shard_name(0, 1)
  with shards.ShardWriter(path) as writer:
    for number, size in enumerate(sizes):
      right = {
        "frames": np.full((size, *_SHAPE), 7, np.uint8),
        "actions": np.zeros(size, np.int32),
      }
      last = number == len(sizes) - 1
      writer.write(
        records.pack(
          {**right, **(arrays if last else {})},
          {"fps": 10, "source": 0, "start": 8 * number},
        )
      )
  entry = {**writer.entry, "episodes": [[0, 0, 0, length]]}
  manifest.Manifest(
    kind="clips",
    name="short",
    fps=10,
    frame_shape=_SHAPE,
    frames_per_record=8,
    splits={"train": manifest.split_summary([entry], length)},
    num_actions=None,
    action_aliases={},
    made_by={},
    frames_codec=codec,
  ).write(folder)
  return folder


def windows(folder):
  """Reads all windows of 6 frames."""
  source = sources.WindowSource(folder, "train", 6)
  return source.gather(range(len(source)))


def clips(folder):
  """Reads all frames of all clips."""
  found = manifest.Manifest.read(folder)
  reader = clip_list.Reader(found)
  return [reader.frames(clip) for clip in clip_list.clips(found)]


def test_whole_records_are_read(tmp_path):
  assert (windows(write(tmp_path, 8, 4))["frames"] == 7).all()
  assert (clips(tmp_path)[0] == 7).all()


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("read", [windows, clips])
def test_a_record_with_fewer_frames_than_its_episode_is_refused(
  tmp_path, read, size
):
  with pytest.raises(
    errors.UserError, match=f"record 1 has {size} frames, fewer than its manif"
  ):
    read(write(tmp_path, 8, size))


@pytest.mark.parametrize("size", [1, 2])
def test_a_record_with_fewer_actions_than_frames_is_refused(tmp_path, size):
  # numpy would repeat a single action.
  actions = np.zeros(size, np.int32)
  with pytest.raises(errors.UserError, match=f"record 1 has {size} actions, f"):
    windows(write(tmp_path, 8, 4, actions=actions))


@pytest.mark.parametrize("read", [windows, clips])
def test_frames_of_one_pixel_do_not_fill_a_frame(tmp_path, read):
  frames = np.zeros((4, 1, 1, 3), np.uint8)
  with pytest.raises(errors.UserError, match=r"frames of shape \(4, 1, 1, 3\)"):
    read(write(tmp_path, 8, 4, frames=frames))


def test_an_episode_beyond_the_records_of_its_shard_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="ends after the shard's 2 record"):
    manifest.Manifest.read(write(tmp_path, 8, 8, length=17))


@pytest.mark.parametrize("num_frames", [-1, 2, "8", None])
def test_a_coded_record_states_how_many_frames_it_has(tmp_path, num_frames):
  arrays = {"h264": np.zeros(4, np.uint8)}
  meta = {"num_frames": num_frames}
  with pytest.raises(errors.UserError, match=r"num_frames|fewer than"):
    stored_frames.load(arrays, meta, "h264", _SHAPE, 0, 4)


def test_a_token_record_with_fewer_frames_than_the_first_is_refused(
  tmp_path, make_tokens
):
  made = make_tokens(count=2)
  path, _ = made.shards("train")[1]
  with shards.ShardWriter(path, shards.TOKENS_OPTIONS) as writer:
    writer.write(
      records.pack(
        {"tokens": np.ones((1, 2, 3), np.uint16)},
        {"fps": 10, "source": 1, "start": 2},
      )
    )
  splits = made.to_dict()["splits"]
  splits["train"]["shards"][1] |= writer.entry
  dataclasses.replace(made, splits=splits).write(made.folder)
  source = sources.TokenSource(made.folder, "train", keys=("tokens",))
  with pytest.raises(errors.UserError, match="record 0 has 1 tokens, fewer"):
    source.gather([1])
