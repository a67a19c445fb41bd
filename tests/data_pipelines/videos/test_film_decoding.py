"""Tests of the frames that a film becomes."""

import fractions

import numpy as np
import pytest
from films import play, write_film

from data_pipelines.videos import decode, geometry
from data_pipelines.videos import options as options_lib

OPTIONS = options_lib.Options(width=80, height=48)


def read(path, options=OPTIONS, **part):
  """Returns the frames of a film, and its damage."""
  damage = decode.Damage()
  return list(decode.frames(str(path), options, damage, **part)), damage


def numbered(count, height=48, width=80):
  """Yields pictures whose brightness says which they are: 8, 12, 16, ..."""
  for number in range(count):
    yield np.full((height, width, 3), 8 + 4 * number, np.uint8)


def numbers(shown):
  """Returns the number of each picture of `numbered`."""
  return [round((s.frame.mean() - 8) / 4) for s in shown]


@pytest.mark.parametrize("rate", [30, 10, 24, 60])
def test_a_frame_is_what_the_film_shows_at_its_time(tmp_path, rate):
  path = write_film(
    tmp_path / "a.mp4", numbered(60), rate, options={"crf": "1"}
  )
  shown, _ = read(path)
  wanted = [int(k * rate / 10) for k in range(len(shown))]
  assert len(shown) == -(-60 * 10 // rate)
  assert numbers(shown) == wanted


def test_one_frame_a_second_is_shown_ten_times(tmp_path):
  path = write_film(tmp_path / "a.mp4", numbered(3), 1, options={"crf": "1"})
  shown, _ = read(path)
  assert numbers(shown) == [0] * 10 + [1] * 10 + [2] * 10
  assert [s.repeated for s in shown] == ([False] + [True] * 9) * 3


def test_of_240_frames_a_second_each_24th_is_shown(tmp_path):
  frames = (
    np.full((48, 80, 3), 8 + 4 * (k // 24), np.uint8) for k in range(240)
  )
  path = write_film(tmp_path / "a.mp4", frames, 240, options={"crf": "1"})
  assert numbers(read(path)[0]) == list(range(10))


def test_a_variable_rate_is_read_by_timestamps(tmp_path):
  stamps = [0, 30, 250, 260, 300, 1100]
  path = write_film(
    tmp_path / "a.mkv", numbered(6), stamps=stamps, options={"crf": "1"}
  )
  found = numbers(read(path)[0])
  assert found[:11] == [0, 1, 1, 4, 4, 4, 4, 4, 4, 4, 4]
  assert found[11:] == [5] * len(found[11:])


def test_a_film_of_a_fifth_of_a_second_has_two_frames(film):
  shown, _ = read(film(frames=6))
  assert [s.index for s in shown] == [0, 1]


def test_a_long_silence_of_the_clock_is_a_gap_not_a_still_picture(tmp_path):
  stamps = [0, 100, 200, 36_000_000, 36_000_100]
  path = write_film(tmp_path / "a.mkv", numbered(5), 10, stamps=stamps)
  shown, _ = read(path)
  assert [s.index for s in shown] == [0, 1, 2, 360_000, 360_001]
  assert [s.joined for s in shown] == [False, True, True, False, True]


@pytest.mark.parametrize(
  ("name", "codec", "options"),
  [
    ("b.mp4", "libx264", {"preset": "medium", "bf": "3"}),
    ("b.ts", "libx264", {"preset": "medium", "bf": "8"}),
    ("b.avi", "mpeg4", {"bf": "2"}),
    ("b.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
  ],
)
def test_leaving_out_pictures_that_are_not_shown_changes_nothing(
  film, monkeypatch, name, codec, options
):
  path = film(name, codec=codec, options=options, frames=120)
  quick, _ = read(path)
  # With all packets read ahead, every picture is decoded.
  monkeypatch.setattr(decode, "_AHEAD", 1000)
  slow, _ = read(path)
  assert len(quick) == len(slow) == 40
  for one, other in zip(quick, slow, strict=True):
    np.testing.assert_array_equal(one.frame, other.frame)


def test_a_part_of_a_film_has_the_frames_of_the_whole(film):
  path = film(frames=600, rate=30, options={"preset": "veryfast", "g": "30"})
  whole = {s.index: s.frame for s in read(path)[0]}
  part, _ = read(path, begin=12.05, end=14.0)
  assert [s.index for s in part] == list(range(121, 140))
  for shown in part:
    np.testing.assert_array_equal(shown.frame, whole[shown.index])


def test_bytes_at_random_are_no_film(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_bytes(np.random.default_rng(0).bytes(4000))
  with pytest.raises(decode.BadFilm, match="cannot be opened"):
    read(path)


def test_a_film_that_was_cut_off_gives_what_is_left(film):
  path = film("a.mkv", frames=300)
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])
  shown, _ = read(path)
  assert 10 < len(shown) < 90


def test_a_damaged_picture_ends_the_shot_and_is_left_out(film):
  path = film("a.ts", frames=300, options={"g": "30", "preset": "veryfast"})
  whole = {s.index: s.frame for s in read(path)[0]}
  content = bytearray(path.read_bytes())
  for place in np.random.default_rng(0).integers(0, 8000, 40):
    content[len(content) // 2 + place] ^= 0x55
  path.write_bytes(content)
  shown, damage = read(path)
  assert damage.bad_packets
  assert len([s for s in shown if not s.joined]) == 2
  assert 50 < len(shown) < len(whole)
  for one in shown:
    np.testing.assert_array_equal(one.frame, whole[one.index])


@pytest.mark.parametrize(
  ("matrix", "turns"),
  [
    ("00000000 00010000 00000000 ffff0000 00000000 00000000", 1),
    ("ffff0000 00000000 00000000 00000000 ffff0000 00000000", 2),
  ],
)
def test_a_film_of_a_turned_camera_is_shown_upright(film, matrix, turns):
  path = film(frames=3, width=80, height=48)
  upright = read(path, options_lib.Options(width=80, height=48))[0][0].frame
  content = path.read_bytes()
  plain = bytes.fromhex("00010000 00000000 00000000 00000000 00010000 00000000")
  place = content.index(plain, content.index(b"tkhd"))
  new = bytes.fromhex(matrix)
  path.write_bytes(content[:place] + new + content[place + len(new) :])
  size = dict(width=48, height=80) if turns == 1 else dict(width=80, height=48)
  shown = read(path, options_lib.Options(**size))[0][0].frame
  # The matrix of quarter turns is clockwise.
  np.testing.assert_array_equal(shown, np.rot90(upright, -turns))


def test_hdr_is_mapped_to_an_ordinary_range(tmp_path):
  # PQ: half of the signal is 92 cd/m2, less than half of diffuse white.
  frames = [np.full((48, 80, 3), value, np.uint8) for value in (128, 150)]
  fields = dict(color_primaries=9, color_trc=16, colorspace=9)
  path = write_film(
    tmp_path / "a.mkv", frames * 5, 10, pixels="yuv420p10le", **fields
  )
  values = [s.frame.mean() for s in read(path)[0]]
  assert values[0] == pytest.approx(160, abs=12)
  assert values[0] + 20 < values[1] < 240


def test_bars_are_cut_off_and_a_dark_game_keeps_its_edges(tmp_path):
  barred = []
  for frame in play(0, frames=90, height=60):
    frame[:9] = frame[-9:] = 0
    barred.append(frame)
  path = write_film(tmp_path / "a.mp4", barred, options={"g": "10"})
  shown, _ = read(path, options_lib.Options(width=80, height=41))
  assert shown[5].frame[0].mean() > 60 and shown[5].frame[-1].mean() > 60
  rng = np.random.default_rng(0)
  space = []
  for _ in range(12):
    frame = np.zeros((60, 80), np.uint8)
    frame[rng.integers(12, 48, 9), rng.integers(0, 80, 9)] = 255
    space.append(frame)
  assert geometry.find_picture(space) is None


def test_wide_pixels_are_taken_into_account():
  options = options_lib.Options(width=160, height=90)
  # 4:3 in 16:9 with pixels of 64:45, as on a DVD.
  fitting = geometry.fit(720, 576, fractions.Fraction(64, 45), 0, None, options)
  assert (fitting.box.width, fitting.box.height) == (720, 576)
  square = geometry.fit(720, 576, fractions.Fraction(1), 0, None, options)
  assert (square.box.width, square.box.height) == (720, 405)


@pytest.mark.parametrize("fit", options_lib.FITS)
@pytest.mark.parametrize("size", [(60, 90), (200, 50), (160, 90)])
def test_every_fit_fills_the_frame(fit, size):
  options = options_lib.Options(width=64, height=36, fit=fit)
  for turns in range(4):
    fitting = geometry.fit(*size, fractions.Fraction(1), turns, None, options)
    frame = np.full((fitting.height, fitting.width, 3), 200, np.uint8)
    frame = geometry.turned(frame, fitting)
    assert frame.shape == (36, 64, 3)
    black = bool((frame == 0).any())
    assert black == (fit == "pad" and (size != (160, 90) or turns % 2 == 1))


def test_a_change_of_size_begins_a_shot(tmp_path):
  parts = [
    write_film(tmp_path / f"{k}.ts", play(k, 30, height, width))
    for k, (height, width) in enumerate([(48, 80), (60, 100)])
  ]
  joined = tmp_path / "a.ts"
  joined.write_bytes(b"".join(part.read_bytes() for part in parts))
  shown, _ = read(joined)
  assert {s.frame.shape for s in shown} == {(48, 80, 3)}
  assert sum(not s.joined for s in shown) == 2
