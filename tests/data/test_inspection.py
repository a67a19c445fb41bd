"""Tests that `genie data inspect` accepts valid folders and reports errors."""

import argparse

import numpy as np
import pytest
from PIL import Image

from genie_jax.cli import data as data_lib
from genie_jax.core import errors
from genie_jax.data import inspection, manifest, records, shards


def test_valid_folders_pass_and_every_record_is_counted(
  make_clips, make_tokens
):
  for made, count in ((make_clips(), 10), (make_tokens(), 7)):
    seen = []
    inspection.verify(made, seen.append)
    assert sum(seen) == made.splits["train"]["records"] == count


def test_the_description_has_sizes_and_origin(make_clips):
  text = inspection.describe(make_clips())
  assert "train: 3 sources, 6 episodes, 10 records, 149 frames" in text
  assert "made by: by: a test" in text


def test_a_bit_flipped_anywhere_in_a_shard_is_found(make_clips):
  made = make_clips()
  path, _ = made.shards("train")[0]
  data = bytearray(path.read_bytes())
  data[-1] ^= 1  # In the padding: changes the SHA-256, but no record.
  path.write_bytes(bytes(data))
  with pytest.raises(errors.UserError, match="sha256"):
    inspection.verify(made)


@pytest.mark.parametrize(
  "edit, message",
  [
    (lambda row: row.__setitem__(3, row[3] - 1), "gaps or overlap"),
    (lambda row: row.__setitem__(0, 99), "leave gaps"),
  ],
)
def test_a_wrong_episode_table_is_found(make_clips, edit, message):
  made = make_clips()
  edit(made.splits["train"]["shards"][0]["episodes"][0])
  with pytest.raises(errors.UserError, match=message):
    inspection.verify(made)


def test_an_episode_start_missing_in_the_table_is_found(make_clips):
  made = make_clips()
  episodes = made.splits["train"]["shards"][0]["episodes"]
  episodes[0][3] += episodes.pop(1)[3]
  with pytest.raises(errors.UserError, match="episode starts"):
    inspection.verify(made)


def test_actions_outside_the_action_set_are_found(make_clips):
  made = make_clips()
  fewer = manifest.Manifest(**{**vars(made), "num_actions": 3})
  with pytest.raises(errors.UserError, match=r"actions from 0 to 14.*has 3"):
    inspection.verify(fewer)


def test_codes_outside_the_codebook_are_found(make_tokens):
  made = make_tokens()
  fewer = manifest.Manifest(**{**vars(made), "num_codes": 20})
  with pytest.raises(errors.UserError, match=r"tokens from .*has 20"):
    inspection.verify(fewer)


def test_frames_of_the_wrong_shape_are_found(tmp_path):
  path = tmp_path / "train" / shards.shard_name(0, 1)
  with shards.ShardWriter(path) as writer:
    writer.write(
      records.pack(
        {"frames": np.zeros((3, 4, 4, 3), np.uint8)},
        {"fps": 10, "source": 0, "start": 0},
      )
    )
  entry = {**writer.entry, "episodes": [[0, 0, 0, 3]]}
  manifest.Manifest(
    kind="clips",
    name="x",
    fps=10,
    frame_shape=(8, 8, 3),
    frames_per_record=16,
    splits={"train": manifest.split_summary([entry], 3)},
    num_actions=None,
    action_aliases={},
    made_by={},
  ).write(tmp_path)
  with pytest.raises(errors.UserError, match=r"\(3, 4, 4, 3\).*\(8, 8, 3"):
    inspection.verify(manifest.Manifest.read(tmp_path))


def test_contact_rows_show_each_source_in_order(make_clips, expected):
  rows = inspection.contact_rows(make_clips(), columns=5)
  assert list(rows) == ["train 3", "train 4", "train 7"]
  np.testing.assert_array_equal(rows["train 3"][0], expected(3, 0, 1)[0])
  np.testing.assert_array_equal(rows["train 3"][-1], expected(3, 39, 1)[0])
  assert len(rows["train 7"]) == 5


def _inspect(*line: str) -> int:
  parser = argparse.ArgumentParser()
  data_lib.add_arguments(parser)
  return data_lib.run(parser.parse_args(["inspect", *line]))


@pytest.mark.parametrize("kind", ["clips", "tokens", "tokens with frames"])
def test_the_command_prints_the_manifest_and_draws_a_contact_sheet(
  make_clips, make_tokens, tmp_path, capsys, kind
):
  made = (
    make_clips()
    if kind == "clips"
    else make_tokens(keep_frames="frames" in kind)
  )
  sheet = tmp_path / "sheet.png"
  assert _inspect(str(made.folder), "--contact-sheet", str(sheet)) == 0
  printed = capsys.readouterr().out
  assert made.fingerprint in printed
  assert "records checked: none is damaged" in printed
  with Image.open(sheet) as picture:
    assert picture.width > 64 and picture.height > 64


def test_help_shows_an_example(capsys):
  parser = argparse.ArgumentParser()
  data_lib.add_arguments(parser)
  for command in ("coinrun", "inspect"):
    with pytest.raises(SystemExit) as caught:
      parser.parse_args([command, "--help"])
    assert caught.value.code == 0
    assert f"genie data {command}" in capsys.readouterr().out
