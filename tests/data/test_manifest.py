"""Tests of manifests: round trips and checks."""

import json

import pytest

from genie_jax.core import errors
from genie_jax.data import manifest


def test_a_manifest_read_back_is_equal_and_has_the_same_fingerprint(make_clips):
  made = make_clips()
  again = manifest.Manifest.read(made.folder)
  assert again == made
  assert again.fingerprint == made.fingerprint
  stored = json.loads((made.folder / "manifest.json").read_text())
  assert stored["fingerprint"] == made.fingerprint
  assert again.action_aliases == {9: 4}
  assert again.frame_shape == (6, 8, 3)


def test_a_token_manifest_keeps_its_own_fields(make_tokens):
  made = make_tokens()
  assert made.token_grid == (2, 3)
  assert (made.num_codes, made.stride, made.lam_fingerprint) == (50, 2, "c")


def test_manifests_of_clips_have_no_fields_of_tokens(make_clips):
  assert "num_codes" not in make_clips().to_dict()


def test_other_frames_give_another_fingerprint(make_clips):
  assert make_clips("a").fingerprint == make_clips("b").fingerprint
  other = make_clips("c", {3: (20,)})
  assert other.fingerprint != make_clips("d").fingerprint


def test_each_row_of_the_episode_table_is_one_line(make_clips):
  text = (make_clips().folder / "manifest.json").read_text()
  assert "[3, 0, 40, 25]" in text


def test_check_names_both_values_and_the_remedy(make_clips):
  made = make_clips()
  made.check({"kind": "clips", "fps": 10, "frame_shape": [6, 8, 3]})
  with pytest.raises(errors.UserError) as caught:
    made.check({"frame_shape": (90, 160, 3)})
  message = str(caught.value)
  assert "[6, 8, 3]" in message and "(90, 160, 3)" in message
  assert "manifest.json" in message and "use a folder" in message
  assert "\n" not in message


def test_check_names_the_nearest_field(make_clips):
  with pytest.raises(errors.UserError, match="did you mean 'num_actions'"):
    make_clips().check({"num_action": 3})


def test_a_folder_without_manifest_is_refused_with_the_remedy(tmp_path):
  with pytest.raises(errors.UserError, match="run that command again"):
    manifest.Manifest.read(tmp_path)


@pytest.mark.parametrize(
  "text, message",
  [
    ("{", "not valid JSON"),
    ("[]", "must be a group of fields"),
    ('{"schema_version": 1}', "fingerprint is missing"),
    ('{"schema_version": 9}', "version 9.*versions 1 to 2"),
  ],
)
def test_an_invalid_manifest_is_refused(tmp_path, text, message):
  (tmp_path / "manifest.json").write_text(text)
  with pytest.raises(errors.UserError, match=message):
    manifest.Manifest.read(tmp_path)


def test_an_edited_manifest_is_refused(make_clips):
  made = make_clips()
  path = made.folder / "manifest.json"
  path.write_text(path.read_text().replace('"fps": 10', '"fps": 30'))
  with pytest.raises(errors.UserError, match="was edited"):
    manifest.Manifest.read(made.folder)


def test_an_unknown_split_names_the_nearest(make_clips):
  with pytest.raises(errors.UserError, match="did you mean 'train'"):
    make_clips().shards("trian")


def test_sources_are_listed_in_order(make_clips):
  assert make_clips().sources("train") == [3, 4, 7]


@pytest.mark.parametrize(
  "first, rows",
  [
    ([True, False, False], [[5, 2, 0, 3]]),
    ([True, False, True], [[5, 2, 0, 2], [5, 2, 2, 1]]),
    # Frames that were cut out of an episode begin a new episode.
    ([False, True, True], [[5, 2, 0, 1], [5, 2, 1, 1], [5, 2, 2, 1]]),
  ],
)
def test_episodes_cover_a_source_without_gaps(first, rows):
  assert manifest.episodes_of(5, 2, first) == rows
