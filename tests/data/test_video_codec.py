"""Tests of frames as H.264, and that clips stored so are read as others are."""

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import re
import subprocess
import sys

import av
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.data import (
  inspection,
  loader,
  manifest,
  records,
  shards,
  sources,
  stored_frames,
  video_codec,
)

SHAPE = (18, 32, 3)
# Source -> clips, each a run of records of its own.
CLIPS = {3: (40, 16), 5: (21,)}


def moving(count: int, seed: int = 0, shape=SHAPE) -> np.ndarray:
  """Returns frames of a coloured square that moves over a smooth floor."""
  height, width, _ = shape
  y, x = np.mgrid[:height, :width]
  floor = np.stack([5 * y, 3 * x + 40, 200 - 4 * y], -1) % 256
  frames = np.repeat(floor[None], count, 0).astype(np.uint8)
  for t, frame in enumerate(frames):
    at = (t + seed) % (width - 4)
    frame[2:6, at : at + 4] = (250, 30 * seed % 256, 20)
  return frames


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
  """Returns the PSNR of RGB frames in dB."""
  error = (found.astype(float) - wanted) ** 2
  return 10 * np.log10(255**2 / error.mean())


def write_clips(folder: pathlib.Path, codec=video_codec.NAME) -> None:
  """Writes a folder of clips without actions."""
  episodes, record, path = [], 0, folder / "train" / shards.shard_name(0, 1)
  with shards.ShardWriter(path, shards.CODED_OPTIONS) as writer:
    for source, lengths in CLIPS.items():
      for number, length in enumerate(lengths):
        frames = moving(length, 10 * source + number)
        episodes.append([source, record, 0, length])
        for start in range(0, length, 16):
          piece = frames[start : start + 16]
          meta = {"fps": 10, "source": source, "start": start}
          writer.write(
            records.pack(
              stored_frames.store(piece, codec),
              {**meta, "num_frames": len(piece)},
            )
          )
          record += 1
  entry = {**writer.entry, "episodes": episodes}
  manifest.Manifest(
    kind="clips",
    name="films",
    fps=10,
    frame_shape=SHAPE,
    frames_per_record=16,
    splits={
      "train": manifest.split_summary([entry], sum(row[3] for row in episodes))
    },
    num_actions=None,
    action_aliases={},
    frames_codec=codec,
    made_by={},
  ).write(folder)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> pathlib.Path:
  """A folder of clips in H.264; not to be changed."""
  folder = tmp_path_factory.mktemp("films") / "clips"
  write_clips(folder)
  return folder


def test_decoded_frames_are_close_to_the_encoded_ones():
  frames = moving(16, shape=(90, 160, 3))
  packed = video_codec.encode(frames)["h264"]
  assert packed.nbytes < frames.nbytes / 50
  assert psnr(video_codec.decode(packed, frames.shape), frames) > 38


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (15, 17), (64, 64)])
@pytest.mark.parametrize("count", [1, 5, 16])
def test_frames_of_any_size_and_number_are_stored(size, count):
  frames = np.full((count, *size, 3), (200, 60, 10), np.uint8)
  packed = video_codec.encode(frames)["h264"]
  found = video_codec.decode(packed, frames.shape)
  assert found.shape == frames.shape
  assert np.abs(found.astype(int) - frames).max() <= 6


def test_colours_keep_their_places():
  colours = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]]
  )
  frames = np.repeat(colours, 16, 0).reshape(1, 5, 16, 3).repeat(16, 1)
  frames = frames.astype(np.uint8)
  packed = video_codec.encode(frames, video_codec.H264Options(crf=1))["h264"]
  found = video_codec.decode(packed, frames.shape)
  assert np.abs(found.astype(int) - frames).max() <= 8


def test_the_colour_transform_errs_by_at_most_two():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (1, 100, 100, 3), dtype=np.uint8)
  planes = np.stack(video_codec._to_planes(frames))
  error = video_codec._to_rgb(planes).astype(int) - frames
  assert np.abs(error).max() <= 2


@pytest.mark.parametrize("size", [(16, 32), (18, 32), (90, 160)])
def test_equal_frames_give_equal_bytes_whatever_was_encoded_before(size):
  frames = moving(16, shape=(*size, 3))
  first = video_codec.encode(frames)["h264"]
  for seed in range(20):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 50, 70, 3))
    video_codec.encode(noise.astype(np.uint8))
    np.testing.assert_array_equal(video_codec.encode(frames)["h264"], first)


def test_a_part_of_a_record_is_decoded_as_in_the_whole():
  frames = moving(16)
  packed = video_codec.encode(frames)["h264"]
  whole = video_codec.decode(packed, frames.shape)
  for begin, end in ((0, 1), (3, 9), (15, 16), (4, 4)):
    part = video_codec.decode(packed, frames.shape, begin, end)
    np.testing.assert_array_equal(part, whole[begin:end])


def test_only_the_frames_before_the_end_are_decoded(monkeypatch):
  frames = moving(16)
  packed = video_codec.encode(frames)["h264"]
  fed = []
  decode = video_codec._pictures
  monkeypatch.setattr(
    video_codec,
    "_pictures",
    lambda units, where: fed.append(len(units)) or decode(units, where),
  )
  video_codec.decode(packed, frames.shape, 2, 5)
  assert fed == [5]


def test_a_record_is_a_stream_that_any_decoder_reads(tmp_path):
  frames = moving(16)
  path = tmp_path / "record.h264"
  path.write_bytes(video_codec.encode(frames)["h264"].tobytes())
  with av.open(path) as container:
    pictures = list(container.decode(video=0))
  assert len(pictures) == 16
  assert {picture.format.name for picture in pictures} <= {
    "yuv444p",
    "yuvj444p",
  }
  assert [picture.key_frame for picture in pictures] == [True] + 15 * [False]
  assert pictures[0].colorspace == 8  # YCgCo in ITU-T H.273.


def test_threads_decode_the_same():
  clips = [moving(16, seed) for seed in range(8)]
  packed = [video_codec.encode(frames)["h264"] for frames in clips]
  read = lambda one: video_codec.decode(one, clips[0].shape)
  alone = [read(one) for one in packed]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for found, wanted in zip(pool.map(read, packed), alone, strict=True):
      np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
  "damage, message",
  [
    (lambda packed: packed[: len(packed) // 2], "frames of H.264"),
    (lambda packed: packed[:0], "0 frames of H.264"),
    (lambda packed: packed[7:], "0 frames of H.264"),
    (lambda packed: np.roll(packed, 100), "0 frames of H.264"),
  ],
)
def test_damage_is_one_line_and_the_next_record_is_read(damage, message):
  frames = moving(16)
  packed = video_codec.encode(frames)["h264"]
  wanted = video_codec.decode(packed, frames.shape)
  with pytest.raises(errors.UserError, match=message) as caught:
    video_codec.decode(damage(packed), frames.shape, where="a.x record 2")
  assert "a.x record 2" in str(caught.value)
  assert "\n" not in str(caught.value)
  np.testing.assert_array_equal(
    video_codec.decode(packed, frames.shape), wanted
  )


def test_scrambled_pictures_never_give_a_traceback():
  frames = moving(16, shape=(48, 64, 3))
  packed = video_codec.encode(frames)["h264"]
  wanted = video_codec.decode(packed, frames.shape)
  rng, refused = np.random.default_rng(0), 0
  for _ in range(60):
    bad = packed.copy()
    at = rng.integers(0, len(bad), 20)
    bad[at] = rng.integers(0, 256, len(at))
    try:
      found = video_codec.decode(bad, frames.shape)
      assert found.shape == frames.shape
    except errors.UserError:
      refused += 1
  assert refused > 30
  np.testing.assert_array_equal(
    video_codec.decode(packed, frames.shape), wanted
  )


def test_frames_of_another_size_are_refused():
  packed = video_codec.encode(moving(4))["h264"]
  with pytest.raises(errors.UserError, match=r"18 x 32.*20 x 32"):
    video_codec.decode(packed, (4, 20, 32, 3))


@pytest.mark.parametrize(
  "options, message",
  [
    ({"crf": 52}, "crf of 0 to 51, not 52"),
    ({"preset": "verryfast"}, "did you mean 'veryfast'|veryfast"),
  ],
)
def test_wrong_options_are_named(options, message):
  with pytest.raises(errors.UserError, match=message):
    video_codec.encode(moving(1), video_codec.H264Options(**options))


@pytest.mark.parametrize(
  "frames",
  [
    np.zeros((2, 8, 8, 1), np.uint8),
    np.zeros((2, 8, 8, 3), np.float32),
    np.zeros((0, 8, 8, 3), np.uint8),
  ],
)
def test_only_rgb_frames_are_encoded(frames):
  with pytest.raises(ValueError, match="Frames"):
    video_codec.encode(frames)


def test_a_smaller_crf_is_closer_to_the_frames():
  frames = moving(16)
  quality = [
    psnr(
      video_codec.decode(
        video_codec.encode(frames, video_codec.H264Options(crf=crf))["h264"],
        frames.shape,
      ),
      frames,
    )
    for crf in (10, 22, 35)
  ]
  assert quality == sorted(quality, reverse=True)


def test_windows_cross_records_and_stay_in_clips(films):
  source = sources.WindowSource(films, "train", 10, keys=("frames",))
  # Windows of 10 frames: 31 of the clip of 40, 7 of that of 16, 12 of 21.
  assert len(source) == 31 + 7 + 12
  found = source.gather(range(len(source)))
  assert set(found["source"].tolist()) == {3, 5}
  wanted = [
    moving(length, 10 * number + clip)[start : start + 10]
    for number, lengths in CLIPS.items()
    for clip, length in enumerate(lengths)
    for start in range(length - 9)
  ]
  # Each window is closest to its own frames, not to those a step away.
  assert psnr(found["frames"], np.stack(wanted)) > 35
  assert psnr(found["frames"][:-1], np.stack(wanted[1:])) < 35


def test_windows_equal_the_decoded_records(films):
  source = sources.WindowSource(films, "train", 21, keys=("frames",))
  _, entry = source.manifest.shards("train")[0]
  reader = shards.ShardReader(films / "train" / entry["file"], entry)
  clip = np.concatenate(
    [
      video_codec.decode(arrays["h264"], (meta["num_frames"], *SHAPE))
      for arrays, meta in reader.read([0, 1, 2])
    ]
  )
  for start in range(20):
    np.testing.assert_array_equal(
      source[start]["frames"], clip[start : start + 21]
    )


def test_reading_actions_that_there_are_not_is_one_line(films):
  with pytest.raises(errors.UserError, match=r"has no 'actions'.*have frames"):
    sources.WindowSource(films, "train", 4)


def test_a_folder_of_films_is_verified_described_and_drawn(films):
  made = manifest.Manifest.read(films)
  seen = []
  inspection.verify(made, seen.append)
  assert sum(seen) == 6
  lines = inspection.describe(made).splitlines()
  assert lines[0] == "3 clips"
  assert "frames_codec: h264" in lines
  rows = inspection.contact_rows(made, columns=4)
  assert list(rows) == ["train 3", "train 3 record 3", "train 5"]
  assert psnr(rows["train 3"][0], moving(1, 30)[0]) > 30


def test_clips_left_out_of_a_manifest_are_not_counted_or_read(films, tmp_path):
  made = manifest.Manifest.read(films)
  entry = made.splits["train"]["shards"][0]
  kept = {**entry, "episodes": [entry["episodes"][1]]}
  dataclasses.replace(
    made, splits={"train": manifest.split_summary([kept], 16)}
  ).write(tmp_path / "selected")
  (tmp_path / "selected/train").symlink_to(films / "train")
  selected = manifest.Manifest.read(tmp_path / "selected")
  inspection.verify(selected)
  assert inspection.describe(selected).startswith("1 clips\n")
  source = sources.WindowSource(
    tmp_path / "selected", "train", 16, keys=("frames",)
  )
  assert len(source) == 1
  assert psnr(source[0]["frames"], moving(16, 31)) > 35


def test_a_damaged_packet_is_found_by_verify_and_by_reading(tmp_path):
  write_clips(tmp_path)
  made = manifest.Manifest.read(tmp_path)
  path, entry = made.shards("train")[0]
  broken = {}
  with shards.ShardWriter(path, shards.CODED_OPTIONS) as writer:
    for number, (arrays, meta) in enumerate(
      shards.ShardReader(path, entry).read(range(6))
    ):
      packed = arrays["h264"]
      if number == 1:
        packed = packed[: len(packed) // 2]
      writer.write(records.pack({"h264": packed}, meta))
    broken = {"episodes": entry["episodes"]}
  broken |= writer.entry
  dataclasses.replace(
    made, splits={"train": manifest.split_summary([broken], 77)}
  ).write(tmp_path)
  with pytest.raises(
    errors.UserError, match=r"record 1 has .* frames of H.264"
  ):
    inspection.verify(manifest.Manifest.read(tmp_path))
  source = sources.WindowSource(tmp_path, "train", 16, keys=("frames",))
  with pytest.raises(errors.UserError, match="record 1 has"):
    source.gather([4])


def test_a_manifest_that_states_another_codec_is_one_line(films, tmp_path):
  write_clips(tmp_path, codec=None)
  wrong = dataclasses.replace(
    manifest.Manifest.read(tmp_path), frames_codec="h264"
  )
  wrong.write(tmp_path)
  with pytest.raises(errors.UserError, match="record 0 has frames, but no"):
    sources.WindowSource(tmp_path, "train", 4, keys=("frames",))
  with pytest.raises(errors.UserError, match="record 0 has frames, but no"):
    inspection.verify(manifest.Manifest.read(tmp_path))


def test_raw_folders_keep_the_version_without_codecs(make_clips, films):
  raw = make_clips().to_dict()
  assert raw["schema_version"] == 1 and "frames_codec" not in raw
  coded = manifest.Manifest.read(films).to_dict()
  assert coded["schema_version"] == 2 and coded["frames_codec"] == "h264"


def test_a_codec_from_the_future_is_one_line(make_clips):
  made = make_clips()
  text = (made.folder / "manifest.json").read_text()
  text = re.sub('"made_by"', '"frames_codec": "vvc", "made_by"', text)
  (made.folder / "manifest.json").write_text(text)
  with pytest.raises(errors.UserError, match=r"codec 'vvc'.*newer") as caught:
    manifest.Manifest.read(made.folder)
  assert "\n" not in str(caught.value)


def test_reading_clips_imports_no_jax():
  code = (
    "import sys; from genie_jax.data import inspection, stored_frames; "
    "sys.exit('jax' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_every_window_of_a_batch_is_read_by_the_loader(films):
  source = sources.WindowSource(films, "train", 8, keys=("frames",))
  iterator = loader.make_iterator(source, 4, seed=0, num_threads=2)
  batch = next(iterator)
  iterator.close()
  assert batch["frames"].shape == (4, 8, *SHAPE)


def test_a_source_can_be_sent_to_another_process(films):
  source = sources.WindowSource(films, "train", 8, keys=("frames",))
  wanted = source[3]["frames"]
  again = multiprocessing.get_context("spawn")
  with again.Pool(1) as pool:
    found = pool.apply(_frames_of, (source, 3))
  np.testing.assert_array_equal(found, wanted)


def _frames_of(source, index):
  return source[index]["frames"]
