"""Tests of `genie data import` on small folders in each project's layout."""

import argparse
import json
import os
import pickle

import av
import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from data_pipelines.imports import folder as folder_lib
from genie_jax.cli import data as data_lib
from genie_jax.core import errors, files
from genie_jax.data import inspection, manifest, sources

SIZE = (12, 16)


def frames_of(number, count, size=SIZE):
  """Returns uint8 frames that differ by number and place."""
  rng = np.random.default_rng(number)
  frames = rng.integers(0, 256, (1, *size, 3)).repeat(count, 0)
  frames += 5 * np.arange(count)[:, None, None, None]
  return (frames % 256).astype(np.uint8)


def write_jafar(folder, lengths=(20, 9, 33), size=SIZE):
  """Writes episodes as Jafar's generate_dataset.py lays them out."""
  folder.mkdir()
  rows = []
  for number, length in enumerate(lengths):
    # Its paths count from where the generator was started.
    rows.append(
      {"path": f"data/coinrun/episode_{number}.npy", "length": length}
    )
    np.save(folder / f"episode_{number}.npy", frames_of(number, length, size))
  np.save(folder / "metadata.npy", rows)


def write_array_record(path, rows):
  """Writes one file of pickled records, as Jasmine's save_chunks."""
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for row in rows:
    writer.write(pickle.dumps(row))
  writer.close()


def jasmine_row(number, count, actions=True, size=SIZE, **fields):
  """Returns one record of Jasmine."""
  row = {
    "raw_video": frames_of(number, count, size).tobytes(),
    "sequence_length": count,
    **fields,
  }
  if actions:
    row["actions"] = (np.arange(count) + number) % 5
  return row


def write_jasmine(folder):
  """Writes the splits of Jasmine's data sets of games."""
  number = 0
  for split, count in (("train", 3), ("val", 1), ("test", 1)):
    rows = [jasmine_row(number + place, 20) for place in range(count)]
    write_array_record(folder / split / "data_0000.array_record", rows)
    number += count
  (folder / "metadata.json").write_text(
    json.dumps({"env": "coinrun", "num_actions": 15})
  )


def write_genieredux(folder, instances=3, film=False, one_hot=False):
  """Writes instances and sessions as GenieRedux's generator."""
  folder.mkdir()
  (folder / "info.json").write_text('{"name": "coinrun", "version": "2.0.0"}')
  for instance in range(instances):
    session = folder / f"{instance:06d}" / "000000"
    (session / "frames").mkdir(parents=True)
    frames = frames_of(instance, 18)
    steps = [{"src_id": -1, "tgt_id": 0, "action": 0, "extras": {}}]
    for number in range(17):
      action = (number + instance) % 7
      steps.append(
        {
          "src_id": number,
          "tgt_id": number + 1,
          "action": [int(action == key) for key in range(8)]
          if one_hot
          else action,
          "extras": {},
        }
      )
    (session / "actions.json").write_text(json.dumps({"actions": steps}))
    if film:
      (session / "frames").rmdir()
      write_film(session / "frames.mp4", frames)
    else:
      for number, frame in enumerate(frames):
        # The generator writes JPEG; PNG keeps every bit for this test.
        Image.fromarray(frame).save(session / f"frames/{number:06d}.png")


def write_film(path, frames):
  """Writes a film with the codec of GenieRedux, without loss."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264rgb", rate=1)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "rgb24"
    stream.options = {"qp": "0", "g": "1"}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
    container.mux(stream.encode(None))


def run(folder, out, format_name, size=SIZE, **options):
  """Imports with the options of these tests."""
  return folder_lib.import_folder(
    folder, out, folder_lib.Options(format_name, frame_size=size, **options)
  )


def test_jafars_episodes_lose_only_the_frame_after_their_end(tmp_path):
  write_jafar(tmp_path / "in")
  report = run(tmp_path / "in", tmp_path / "out", "jafar")
  made = manifest.Manifest.read(tmp_path / "out")
  inspection.verify(made)
  assert inspection.describe(made).startswith("3 clips\n")
  assert report.skipped == [] and made.num_actions is None and made.fps == 15
  lengths = {
    entry["episodes"][row][3]
    for summary in made.splits.values()
    for entry in summary["shards"]
    for row in range(len(entry["episodes"]))
  }
  assert lengths == {19, 8, 32}
  # One source of three for each split.
  assert [len(made.sources(split)) for split in made.splits] == [1, 1, 1]
  for split in made.splits:
    (number,) = made.sources(split)
    length = (19, 8, 32)[number]
    source = sources.WindowSource(made.folder, split, length, keys=("frames",))
    np.testing.assert_array_equal(
      source[0]["frames"], frames_of(number, length)
    )


def test_an_episode_of_jafar_that_ran_out_of_time_is_whole(tmp_path):
  write_jafar(tmp_path / "in", (1000,), size=(2, 2))
  made = run(tmp_path / "in", tmp_path / "out", "jafar").manifest
  assert made.splits["train"]["frames"] == 1000


def test_only_the_episodes_that_jafars_list_names_are_imported(tmp_path):
  write_jafar(tmp_path / "in")
  np.save(tmp_path / "in/episode_9.npy", frames_of(9, 20))
  listed = run(tmp_path / "in", tmp_path / "a", "jafar")
  assert listed.clips == 3
  (tmp_path / "in/metadata.npy").unlink()
  assert run(tmp_path / "in", tmp_path / "b", "jafar").clips == 4


def test_jasmines_splits_actions_and_pixels_are_kept(tmp_path):
  write_jasmine(tmp_path / "in")
  report = run(tmp_path / "in", tmp_path / "out", "jasmine")
  made = manifest.Manifest.read(tmp_path / "out")
  inspection.verify(made)
  assert made.num_actions == 15 and report.clips == 5
  assert made.made_by["splits"] == "of the project"
  counts = {split: summary["frames"] for split, summary in made.splits.items()}
  assert counts == {"train": 60, "validation": 20, "test": 20}
  train = sources.WindowSource(made.folder, "train", 20)
  assert len(train) == 3
  for number in range(3):
    np.testing.assert_array_equal(
      train[number]["frames"], frames_of(number, 20)
    )
    # The action taken at a frame leads to the next.
    np.testing.assert_array_equal(
      train[number]["actions"], (np.arange(19) + number) % 5
    )
  records_of = {row["source"].item() for row in (train[0], train[1])}
  assert len(records_of) == 1  # One file is one source.


def test_films_of_jasmine_are_sources_of_90_by_160(tmp_path):
  rows = [
    jasmine_row(
      number, 3, actions=False, size=(90, 160), video_file_name=f"{name}.mp4"
    )
    for number, name in enumerate("aabbcc")
  ]
  write_array_record(
    tmp_path / "in/chunked_videos_0000_0000.array_record", rows
  )
  made = run(tmp_path / "in", tmp_path / "out", "jasmine", None).manifest
  assert tuple(made.frame_shape) == (90, 160, 3) and made.fps == 10
  assert made.num_actions is None
  owner = {
    source: split for split in made.splits for source in made.sources(split)
  }
  assert len(owner) == 3 and set(owner.values()) == set(made.splits)


def test_square_frames_need_no_size(tmp_path):
  rows = [jasmine_row(0, 4, size=(8, 8))]
  write_array_record(tmp_path / "in/data_0000.array_record", rows)
  made = run(tmp_path / "in", tmp_path / "out", "jasmine", None).manifest
  assert tuple(made.frame_shape) == (8, 8, 3)


class Evil:
  """Makes a folder where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_pickles_that_run_code_are_skipped_and_not_run(tmp_path):
  bad = {"raw_video": b"abc", "sequence_length": 1, "x": Evil(tmp_path / "r")}
  write_array_record(
    tmp_path / "in/data_0000.array_record", [jasmine_row(0, 4), bad]
  )
  report = run(tmp_path / "in", tmp_path / "out", "jasmine")
  assert report.clips == 1
  ((name, reason),) = report.skipped
  assert "record 1" in name and "could run code" in reason
  assert not (tmp_path / "r").exists()


def test_jafars_list_is_not_run_either(tmp_path):
  write_jafar(tmp_path / "in")
  np.save(
    tmp_path / "in/metadata.npy",
    np.array([Evil(tmp_path / "r")], dtype=object),
  )
  with pytest.raises(errors.UserError, match=r"could run code.*remove it"):
    run(tmp_path / "in", tmp_path / "out", "jafar")
  assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("film", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
def test_genieredux_frames_and_actions_are_aligned(tmp_path, film, one_hot):
  write_genieredux(tmp_path / "in", film=film, one_hot=one_hot)
  made = run(tmp_path / "in", tmp_path / "out", "genieredux").manifest
  inspection.verify(made)
  assert made.num_actions == (8 if one_hot else 7)
  for split in made.splits:
    (number,) = made.sources(split)
    source = sources.WindowSource(made.folder, split, 18)
    found = source[0]
    np.testing.assert_array_equal(found["frames"], frames_of(number, 18))
    np.testing.assert_array_equal(
      found["actions"], (np.arange(17) + number) % 7
    )


def test_a_gap_in_genieredux_begins_a_new_clip(tmp_path):
  write_genieredux(tmp_path / "in", instances=1)
  (tmp_path / "in/000000/000000/frames/000007.png").unlink()
  made = run(tmp_path / "in", tmp_path / "out", "genieredux").manifest
  rows = made.splits["train"]["shards"][0]["episodes"]
  assert [row[3] for row in rows] == [7, 10]
  source = sources.WindowSource(made.folder, "train", 10)
  np.testing.assert_array_equal(source[0]["frames"], frames_of(0, 18)[8:])


def test_lists_of_buttons_are_numbered_and_named(tmp_path):
  row = jasmine_row(0, 4)
  row["actions"] = np.array([[0, 1, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
  write_array_record(tmp_path / "in/data_0000.array_record", [row])
  made = run(tmp_path / "in", tmp_path / "out", "jasmine").manifest
  assert made.num_actions == 3
  assert made.made_by["action_names"] == ["0 0 0", "0 1 1", "1 0 0"]
  source = sources.WindowSource(made.folder, "train", 4)
  assert source[0]["actions"].tolist() == [1, 0, 1]


def test_h264_is_an_option(tmp_path):
  write_jafar(tmp_path / "in")
  made = run(tmp_path / "in", tmp_path / "out", "jafar", codec="h264").manifest
  assert made.frames_codec == "h264"
  inspection.verify(manifest.Manifest.read(tmp_path / "out"))


def test_several_processes_write_the_same_bytes_and_resume(tmp_path):
  write_jasmine(tmp_path / "in")
  options = folder_lib.Options(
    "jasmine", frame_size=SIZE, codec="h264", clips_per_shard=1
  )
  one = folder_lib.import_folder(tmp_path / "in", tmp_path / "a", options)
  two = folder_lib.import_folder(tmp_path / "in", tmp_path / "b", options, 2)
  assert one.manifest.fingerprint == two.manifest.fingerprint
  path = tmp_path / "a/train/00001-of-00003.array_record"
  before = files.sha256(path)
  path.unlink()
  again = folder_lib.import_folder(tmp_path / "in", tmp_path / "a", options)
  assert again.kept_clips == 4
  assert files.sha256(path) == before
  assert again.manifest.fingerprint == one.manifest.fingerprint


def test_a_folder_that_changed_is_not_mixed_with_its_earlier_clips(tmp_path):
  write_jafar(tmp_path / "in")
  run(tmp_path / "in", tmp_path / "out", "jafar")
  np.save(tmp_path / "in/episode_0.npy", frames_of(0, 25))
  with pytest.raises(errors.UserError, match=r"other settings.*clips_sha256"):
    run(tmp_path / "in", tmp_path / "out", "jafar")


def spoil_jafar(folder):
  write_jafar(folder)
  path = folder / "episode_0.npy"
  path.write_bytes(path.read_bytes()[:-5])
  (folder / "episode_1.npy").write_bytes(b"")


def spoil_jasmine(folder):
  write_jasmine(folder)
  write_array_record(
    folder / "train/data_0001.array_record",
    [
      jasmine_row(9, 4, size=(3, 3)),
      {"raw_video": b"abcd", "sequence_length": 3},
      {**jasmine_row(9, 4), "actions": [1, 2]},
      {**jasmine_row(9, 4), "actions": ["up"] * 4},
      [1, 2],
    ],
  )
  path = folder / "val/data_0000.array_record"
  path.write_bytes(path.read_bytes()[:-5])


def spoil_genieredux(folder):
  write_genieredux(folder, instances=5)
  session = folder / "000000/000000"
  (session / "actions.json").write_text("{")
  (folder / "000001/000000/actions.json").write_text(
    '{"actions": [{"src_id": 0, "tgt_id": 1, "action": "up"}]}'
  )
  for path in (folder / "000002/000000/frames").iterdir():
    path.unlink()
  (folder / "000003/000000/frames/000000.png").write_bytes(b"no picture")


@pytest.mark.parametrize(
  "spoil, name, good, bad",
  [
    (spoil_jafar, "jafar", 1, 2),
    (spoil_jasmine, "jasmine", 4, 6),
    (spoil_genieredux, "genieredux", 1, 4),
  ],
)
def test_bad_files_are_listed_and_the_others_imported(
  tmp_path, spoil, name, good, bad
):
  spoil(tmp_path / "in")
  report = run(tmp_path / "in", tmp_path / "out", name)
  assert report.clips == good and len(report.skipped) == bad
  assert all(
    reason and "\n" not in name + reason for name, reason in report.skipped
  )
  inspection.verify(manifest.Manifest.read(tmp_path / "out"))


def array_file(header):
  """Returns the bytes of an array file with this header and no values."""
  text = header.encode().ljust(117) + b"\n"
  return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HEADER = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
  "content",
  [
    b"PK\x03\x04 and no archive",
    array_file(HEADER.format(f"(1{'0' * 30}, 2, 2, 3)")),
    array_file(HEADER.format("(5, 2, 2, 3)")[:-4]),
    array_file(HEADER.format("(-5, 2, 2, 3)")),
    array_file(HEADER.format("(5, 0, 2, 3)")),
    array_file(HEADER.format("(5, 2, 2, 3)")),
  ],
)
def test_a_damaged_episode_of_jafar_is_skipped(tmp_path, content):
  write_jafar(tmp_path / "in", lengths=(20, 9))
  (tmp_path / "in/episode_0.npy").write_bytes(content)
  report = run(tmp_path / "in", tmp_path / "out", "jafar")
  ((name, reason),) = report.skipped
  assert report.clips == 1 and name == "episode_0.npy" and "\n" not in reason
  (tmp_path / "in/metadata.npy").write_bytes(content)
  with pytest.raises(errors.UserError, match="not Jafar's list") as caught:
    run(tmp_path / "in", tmp_path / "other", "jafar")
  assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_no_episode_of_jafar(tmp_path):
  write_jafar(tmp_path / "in", lengths=(20, 9))
  with open(tmp_path / "in/episode_0.npy", "wb") as file:
    np.savez(file, frames=frames_of(0, 20))
  report = run(tmp_path / "in", tmp_path / "out", "jafar")
  assert [name for name, _ in report.skipped] == ["episode_0.npy"]


@pytest.mark.parametrize(
  "content, why",
  [
    ('[{"src_id": 0, "tgt_id": 1, "action": Infinity}]', "has the action inf"),
    (f'[{{"src_id": 0, "tgt_id": 1, "action": 1{"0" * 400}.0}}]', "inf"),
    ("[" * 100_000, "is not JSON"),
    ("", "is not JSON"),
    ("[1, 2]", "has no list of actions"),
    ('{"actions": 3}', "has no list of actions"),
    ('{"steps": []}', "has no list of actions"),
  ],
)
def test_a_damaged_session_of_genieredux_is_skipped(tmp_path, content, why):
  write_genieredux(tmp_path / "in", instances=2)
  (tmp_path / "in/000000/000000/actions.json").write_text(content)
  report = run(tmp_path / "in", tmp_path / "out", "genieredux")
  ((name, reason),) = report.skipped
  assert report.clips == 1 and name == "000000/000000" and why in reason


def test_a_picture_that_claims_too_many_pixels_is_skipped(
  tmp_path, monkeypatch
):
  write_genieredux(tmp_path / "in", instances=2)
  Image.new("RGB", (300, 300)).save(
    tmp_path / "in/000000/000000/frames/000000.png"
  )
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  report = run(tmp_path / "in", tmp_path / "out", "genieredux")
  ((name, reason),) = report.skipped
  assert name == "000000/000000" and "exceeds limit" in reason


def test_a_picture_of_another_size_is_named(tmp_path):
  write_genieredux(tmp_path / "in", instances=1)
  path = tmp_path / "in/000000/000000/frames/000005.png"
  Image.new("RGB", (8, 8)).save(path)
  with pytest.raises(errors.UserError, match=r"000005\.png .*\[8, 8, 3\]"):
    run(tmp_path / "in", tmp_path / "out", "genieredux")


def test_a_film_with_fewer_frames_than_actions_says_so(tmp_path):
  write_genieredux(tmp_path / "in", instances=1, film=True)
  write_film(tmp_path / "in/000000/000000/frames.mp4", frames_of(0, 9))
  with pytest.raises(errors.UserError, match="fewer than the 18 frames"):
    run(tmp_path / "in", tmp_path / "out", "genieredux")


def test_an_empty_film_of_genieredux_is_skipped_in_plain_words(tmp_path):
  write_genieredux(tmp_path / "in", instances=2, film=True)
  (tmp_path / "in/000000/000000/frames.mp4").write_bytes(b"")
  report = run(tmp_path / "in", tmp_path / "out", "genieredux")
  assert report.skipped[0][1] == "Invalid data found when processing input"


@pytest.mark.parametrize("name", folder_lib.FORMATS)
def test_a_folder_of_something_else_is_one_line(tmp_path, name):
  (tmp_path / "in").mkdir()
  (tmp_path / "in/readme.txt").write_text("hello")
  with pytest.raises(errors.UserError, match=r"no clips of .*imports\.md"):
    run(tmp_path / "in", tmp_path / "out", name)
  assert not (tmp_path / "out").exists()


def test_a_picture_that_is_damaged_later_is_one_line(tmp_path):
  write_genieredux(tmp_path / "in", instances=1)
  path = tmp_path / "in/000000/000000/frames/000005.png"
  path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(errors.UserError, match=r"000005\.png is damaged"):
    run(tmp_path / "in", tmp_path / "out", "genieredux")


def command(*words):
  """Runs `genie data import`."""
  parser = argparse.ArgumentParser()
  data_lib.add_arguments(parser)
  return data_lib.run(parser.parse_args(["import", *map(str, words)]))


def test_the_command_prints_clips_and_what_was_skipped(tmp_path, capsys):
  spoil_jasmine(tmp_path / "in")
  flags = ("--from", tmp_path / "in", "--format", "jasmine")
  code = command(
    *flags, "--out", tmp_path / "out", "--frame-size", "12x16", "--workers", 1
  )
  printed = capsys.readouterr()
  assert code == 0 and printed.out.startswith("4 clips\n")
  assert printed.err.count("skipped ") == 6
  assert "4 clips in" in printed.out and "6 skipped" in printed.out


def test_names_of_any_bytes_are_imported_and_shown_in_one_line(
  tmp_path, capsys
):
  (tmp_path / "in").mkdir()
  for number, name in enumerate([b"a\n.npy", b"\xff.npy", b"c.npy"]):
    path = os.path.join(os.fsencode(tmp_path / "in"), name)
    with open(path, "wb") as file:
      np.save(file, frames_of(number, 20))
  with open(os.path.join(os.fsencode(tmp_path / "in"), b"d\n\xff.npy"), "wb"):
    pass
  flags = ("--from", tmp_path / "in", "--format", "jafar", "--workers", 1)
  assert command(*flags, "--out", tmp_path / "out") == 0
  printed = capsys.readouterr()
  assert printed.out.startswith("3 clips\n")
  (line,) = [line for line in printed.err.splitlines() if "skipped" in line]
  assert "no array" in line
  inspection.verify(manifest.Manifest.read(tmp_path / "out"))


@pytest.mark.parametrize(
  "words, message",
  [
    (["--format", "jafr"], "did you mean|jafar"),
    (["--format", "jafar", "--frame-size", "12"], "rows and columns"),
    (["--format", "jafar", "--fps", "0"], "--fps 0"),
    (["--format", "jafar", "--codec", "mp4"], "--codec 'mp4'"),
    (["--format", "jafar", "--clips-per-shard", "0"], "--clips-per-shard"),
    (["--format", "jafar", "--from", "/nowhere"], "is not a folder"),
    (["--format", "jafar", "--workers", "0"], "--workers must be at least 1"),
  ],
)
def test_wrong_options_are_one_line(tmp_path, words, message):
  (tmp_path / "in").mkdir()
  flags = ("--from", tmp_path / "in", "--out", tmp_path / "out")
  with pytest.raises(errors.UserError, match=message) as caught:
    command(*flags, *words)
  assert "\n" not in str(caught.value)
