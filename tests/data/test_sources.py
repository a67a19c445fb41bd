"""Tests of the content of windows of clips and of token records."""

import subprocess
import sys

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import manifest, sources


@pytest.mark.parametrize("num_frames", [1, 2, 5, 16, 17, 33])
def test_every_window_has_its_frames_and_actions(
  make_clips, expected, expected_actions, num_frames
):
  source = sources.WindowSource(make_clips().folder, "train", num_frames)
  for index in range(len(source)):
    window = source[index]
    number, start = int(window["source"]), int(window["start"])
    np.testing.assert_array_equal(
      window["frames"], expected(number, start, num_frames)
    )
    np.testing.assert_array_equal(
      window["actions"], expected_actions(number, start, num_frames - 1)
    )
    assert window["actions"].dtype == np.int32
    assert window["source"].dtype == window["start"].dtype == np.int32


@pytest.mark.parametrize("num_frames, stride", [(8, 1), (16, 1), (8, 5)])
def test_windows_are_all_those_within_one_episode(
  make_clips, lengths, num_frames, stride
):
  source = sources.WindowSource(
    make_clips().folder, "train", num_frames, stride
  )
  wanted = []
  for number, episodes in lengths.items():
    begin = 0
    for length in episodes:
      wanted += [
        (number, begin + offset)
        for offset in range(0, length - num_frames + 1, stride)
      ]
      begin += length
  found = [
    (int(source[i]["source"]), int(source[i]["start"]))
    for i in range(len(source))
  ]
  assert found == wanted


def test_first_flags_are_only_at_the_first_frame_of_a_window(make_clips):
  source = sources.WindowSource(
    make_clips().folder, "train", 7, keys=("first",)
  )
  flags = source.gather(range(len(source)))["first"]
  assert not flags[:, 1:].any()
  assert flags[:, 0].any()  # The records do have flags.


def test_gathered_windows_equal_single_ones(make_clips):
  source = sources.WindowSource(make_clips().folder, "train", 9)
  indices = [5, 0, 44, 5]
  batch = source.gather(indices)
  for row, index in enumerate(indices):
    for name, value in source[index].items():
      np.testing.assert_array_equal(batch[name][row], value)


def test_an_index_out_of_range_ends_iteration(make_clips):
  source = sources.WindowSource(make_clips().folder, "train", 33)
  assert len(list(source)) == len(source)
  with pytest.raises(IndexError):
    source[-1]


def test_unknown_arrays_are_refused_by_name(make_clips):
  with pytest.raises(errors.UserError, match="did you mean 'actions'"):
    sources.WindowSource(make_clips().folder, "train", 4, keys=("action",))


def test_windows_longer_than_any_episode_are_refused(make_clips):
  with pytest.raises(errors.UserError, match="no episode of 41 frames"):
    sources.WindowSource(make_clips().folder, "train", 41)


def test_a_shard_replaced_by_one_of_another_source_is_refused(
  make_clips,
):
  ours = make_clips("ours", {1: (32,)})
  other = make_clips("other", {2: (32,)})
  path, entry = other.shards("train")[0]
  mine, mine_entry = ours.shards("train")[0]
  assert entry["bytes"] == mine_entry["bytes"]
  mine.write_bytes(path.read_bytes())
  source = sources.WindowSource(ours.folder, "train", 4)
  with pytest.raises(errors.UserError, match=r"source 2.*source 1"):
    source[0]


def test_clips_are_refused_as_tokens_and_tokens_as_clips(
  make_clips, make_tokens
):
  with pytest.raises(errors.UserError, match="has clips, but tokens"):
    sources.TokenSource(make_clips().folder, "train")
  with pytest.raises(errors.UserError, match="has tokens, but clips"):
    sources.WindowSource(make_tokens().folder, "train", 4)


@pytest.mark.parametrize("num_frames", [None, 1, 6, 10])
def test_token_records_can_be_read_whole_or_as_a_prefix(
  make_tokens, expected, num_frames
):
  made = make_tokens(keep_frames=True)
  source = sources.TokenSource(made.folder, "train", num_frames)
  count = num_frames or 10
  assert len(source) == 7
  for index in range(len(source)):
    element = source[index]
    tokens = np.random.default_rng(index).integers(
      0, 50, (10, 2, 3), dtype=np.uint16
    )
    np.testing.assert_array_equal(element["tokens"], tokens[:count])
    assert element["tokens"].dtype == np.int32
    assert element["latent_actions"].shape == (count - 1,)
    assert element["actions"].shape == (count - 1,)
    np.testing.assert_array_equal(
      element["frames"], expected(index, 2 * index, count)
    )
    assert (element["source"], element["start"]) == (index, 2 * index)


def test_token_records_without_frames_have_none(make_tokens):
  assert "frames" not in sources.TokenSource(make_tokens().folder, "train")[0]


def test_token_records_shorter_than_needed_are_refused(make_tokens):
  with pytest.raises(errors.UserError, match="clips of 10 frames, but 16"):
    sources.TokenSource(make_tokens().folder, "train", 16)


def test_the_error_for_missing_frames_names_the_flag_to_keep_them(make_tokens):
  with pytest.raises(errors.UserError, match="--keep-frames"):
    sources.TokenSource(make_tokens().folder, "train", keys=("frames",))


def test_an_empty_split_is_refused(make_clips):
  made = make_clips()
  empty = manifest.split_summary([], 0)
  made.splits["test"] = empty
  made.write(made.folder)
  with pytest.raises(errors.UserError, match=r"'test'.*is empty"):
    sources.WindowSource(made.folder, "test", 4)


def test_sources_do_not_import_jax():
  code = "import sys; from genie_jax.data import inspection, sources; "
  code += "sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
