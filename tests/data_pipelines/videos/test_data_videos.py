"""Tests of `genie data videos`, from a folder of films to a clips folder."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from films import play, write_film

from data_pipelines.videos import (
  beam_program,
  collect,
  decode,
  engine,
  tables,
  units,
)
from data_pipelines.videos import options as options_lib
from genie_jax.cli import main as main_lib
from genie_jax.core import errors
from genie_jax.data import inspection, manifest, sources

OPTIONS = options_lib.Options(width=80, height=48, clip_frames=16, min_frames=8)
LIMITS = options_lib.Limits(memory_mb=300, stalled_seconds=3.0)
FLAGS = ["--size", "80x48", "--clip-frames", "16", "--min-frames", "8"]


def write_sound(path):
  """Writes a film without pictures."""
  with av.open(os.fspath(path), "w") as container:
    stream = container.add_stream("aac", rate=8000)
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
    )
    sound.sample_rate = 8000
    for packet in (*stream.encode(sound), *stream.encode(None)):
      container.mux(packet)


def write_nothing(path):
  """Writes a film whose pictures have no rows and no columns."""
  write_film(path, play(0, 5), codec="mpeg4")
  content = path.read_bytes()
  size = (80).to_bytes(4, "little") + (48).to_bytes(4, "little")
  place = content.index(size, content.index(b"strf"))
  # Also the pictures, whose headers state their size.
  path.write_bytes(content[:place] + bytes(8) + bytes(len(content) - place - 8))


def write_films(folder):
  """Writes good and bad films of all kinds."""
  folder.mkdir()
  for seed, name in enumerate(
    ("a.mp4", "b.mkv", "two\nlines.mp4", "d.webm", "e.avi")
  ):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name.split(".")[-1])
    fields = {"options": {"cpu-used": "8"}} if name == "d.webm" else {}
    if name == "e.avi":
      fields = {"options": {"q:v": "2"}}
    write_film(
      folder / name,
      play(seed, 120, shots=2),
      codec=codec or "libx264",
      **fields,
    )
  shutil.copy(folder / "a.mp4", folder / "copy.mp4")
  write_film(folder / "again.mp4", play(0, 120, shots=2), options={"crf": "27"})
  write_film(folder / "black.mp4", [np.zeros((48, 80, 3), np.uint8)] * 60)
  write_film(folder / "static.mp4", [next(play(7))] * 60)
  write_film(folder / "brief.mp4", play(8, 6))
  shutil.copy(folder / "a.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
  content = write_film(folder / "cut.mkv", play(9, 120)).read_bytes()
  (folder / "cut.mkv").write_bytes(content[: len(content) * 2 // 3])
  content = (folder / "a.mp4").read_bytes()
  (folder / "half.mp4").write_bytes(content[: len(content) // 2])
  (folder / "empty.mp4").touch()
  (folder / "junk.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
  write_sound(folder / "sound.mp4")
  write_nothing(folder / "nothing.avi")
  for name in ("crash.mp4", "hang.mp4", "grow.mp4"):
    write_film(folder / name, play(ord(name[0]), 30))
  (folder / "notes.txt").touch()
  (folder / "loop").symlink_to(folder)


def digests(folder):
  """Returns SHA-256 by name of all files of a folder but the hidden ones."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and not path.name.startswith(".")
  }


@pytest.fixture(scope="module")
def films(tmp_path_factory):
  """Returns a folder of good and bad films."""
  folder = tmp_path_factory.mktemp("videos") / "films"
  write_films(folder)
  return folder


@pytest.fixture(scope="module")
def clips(films):
  """Returns a folder that Beam made with two processes, and its report."""
  out = films.parent / "clips"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(units, "CUT", "bad_jobs:cut_or_crash")
    report = collect.collect(str(films), out, OPTIONS, LIMITS, workers=2)
  return out, report


@pytest.fixture
def direct(monkeypatch):
  """Does jobs in this process, one after the other, instead of Beam."""

  def run(function, jobs, weights, workers, options, log, tick=lambda: None):
    engine.run_here(function, json.loads(json.dumps(list(jobs))), tick)

  monkeypatch.setattr(engine, "run", run)


def few(folder, count=3, **fields):
  """Writes good films and returns their folder."""
  folder.mkdir(exist_ok=True)
  for seed in range(count):
    write_film(folder / f"{seed}.mp4", play(seed, 60, **fields))
  return folder


def rows(out):
  """Returns all rows of the tables of clips."""
  return [
    row
    for path in sorted(out.glob("*/*.parquet"))
    for row in tables.read(path).to_pylist()
  ]


def test_every_bad_film_is_listed_with_its_reason(clips):
  found = {row.name: row.reason for row in clips[1].summary.bad}
  assert set(found) == {
    "crash.mp4", "empty.mp4", "grow.mp4", "half.mp4", "hang.mp4", "junk.mp4",
    "nothing.avi", "sound.mp4",
  }  # fmt: skip
  assert found["crash.mp4"] == "the decoder crashed its process (SIGSEGV)"
  assert found["hang.mp4"] == "no frame was decoded for 3 s"
  assert found["grow.mp4"] == "needs more than 300 MiB of memory"
  assert found["empty.mp4"] == "is empty"
  assert found["sound.mp4"] == "has no pictures, only audio"
  assert "cannot be opened" in found["junk.mp4"]
  stored = pq.read_table(clips[0] / "sources.parquet").to_pylist()
  bad = {row["path"]: row["reason"] for row in stored if row["status"] == "bad"}
  assert bad == found


def test_damage_and_copies_are_listed_and_names_are_kept(clips):
  out, report = clips
  ((row, what),) = report.summary.damaged
  assert row.name == "cut.mkv" and "ends early" in what
  stored = {
    row["source"]: row
    for row in pq.read_table(out / "sources.parquet").to_pylist()
  }
  copies = [row for row in stored.values() if row["status"] == "copy"]
  assert [row["path"] for row in copies] == [r"caf\xe9.mp4", "copy.mp4"]
  assert copies[0]["path_bytes"] == b"caf\xe9.mp4"
  assert "two\nlines.mp4" in {row["path"] for row in stored.values()}
  text = collect.describe(report, out)
  assert r"caf\xe9.mp4" in text and "8 bad films" in text
  assert report.summary.others == 1


def test_every_dropped_clip_has_a_reason(clips):
  out, report = clips
  found = {}
  for row in rows(out):
    found.setdefault(row["reason"], []).append(row)
    assert row["kept"] == (row["reason"] == "")
    assert (row["record"] >= 0) == (row["reason"] in ("", "duplicate"))
  by_film = lambda reason: {row["path"] for row in found[reason]}
  assert by_film("black") == {"black.mp4"}
  assert by_film("static") == {"static.mp4"}
  assert "brief.mp4" in by_film("short")
  # Of two equal films the first stays.
  assert by_film("duplicate") == {"again.mp4"}
  kept = {row["clip_id"]: row["path"] for row in found[""]}
  assert {kept[row["duplicate_of"]] for row in found["duplicate"]} == {"a.mp4"}
  assert len(found[""]) == report.summary.kept
  assert all(row["picture"] for row in found["black"])


def test_the_manifest_has_the_kept_clips_and_passes_inspection(clips):
  out, _ = clips
  found = manifest.Manifest.read(out)
  inspection.verify(found)
  assert inspection.describe(found).startswith(f"{clips[1].summary.kept} clips")
  for split in ("train", "validation", "test"):
    wanted = {
      (row["source"], row["record"], 0, row["frames"])
      for row in rows(out)
      if row["kept"] and row["split"] == split
    }
    assert wanted == {
      tuple(row)
      for entry in found.splits[split]["shards"]
      for row in entry["episodes"]
    }
    assert wanted or split != "train"


def test_windows_are_the_frames_of_the_film(clips, films):
  out, _ = clips
  found = [row for row in rows(out) if row["kept"] and row["path"] == "b.mkv"]
  (split,) = {row["split"] for row in found}
  (number,) = {row["source"] for row in found}
  source = sources.WindowSource(out, split, 8, keys=("frames",))
  windows = [source[k] for k in range(len(source))]
  (first,) = [w for w in windows if w["source"] == number and not w["start"]][
    :1
  ]
  shown = list(decode.frames(str(films / "b.mkv"), OPTIONS, decode.Damage()))
  start = min(row["start"] for row in found)
  true = np.stack([s.frame for s in shown[start : start + 8]])
  error = np.mean((first["frames"].astype(float) - true) ** 2)
  assert 10 * np.log10(255**2 / error) > 32
  # A clip never contains a cut.
  assert {row["start"] for row in found} == {0, 16, 20, 36} - {16, 36} | {
    row["start"] for row in found
  }
  assert all(
    row["start"] + row["frames"] <= 20 or row["start"] >= 20 for row in found
  )


def test_the_page_shows_counts_pictures_and_bad_films(clips):
  page = (clips[0] / "summary.html").read_text()
  assert f"<h1>{clips[1].summary.kept} clips of" in page
  for text in ("Dropped: black", "Dropped: duplicate", "crash.mp4", "SIGSEGV"):
    assert text in page
  assert page.count("data:image/jpeg;base64,") > 8
  assert "http" not in page  # It loads nothing.


def test_a_second_run_changes_nothing_and_starts_nothing(
  clips, films, monkeypatch, capsys
):
  before = digests(clips[0])
  monkeypatch.setattr(
    engine, "run", lambda *given: given[1] and pytest.fail("?")
  )
  code = main_lib.main(
    ["data", "videos", "--videos", str(films), "--out", str(clips[0]), *FLAGS]
  )
  assert code == 0
  assert digests(clips[0]) == before
  kept = clips[1].units
  assert (
    f"{kept} of {kept} units are of an earlier run" in capsys.readouterr()[0]
  )


@pytest.mark.parametrize(
  ("limit", "code"), [("8", 0), ("7", 1), ("40%", 0), ("0.3", 1), ("many", 2)]
)
def test_max_bad_decides_the_exit_code(clips, films, capsys, limit, code):
  argv = ["data", "videos", "--videos", str(films), "--out", str(clips[0])]
  assert main_lib.main([*argv, *FLAGS, "--max-bad", limit]) == code
  if code == 1:
    assert "8 of 20 films are bad" in capsys.readouterr().err


def test_a_damaged_table_or_shard_is_written_again(clips, films, direct):
  out, _ = clips
  before = digests(out)
  shard = next(
    path for path in sorted(out.glob("train/*")) if path.suffix != ".parquet"
  )
  shard.write_bytes(shard.read_bytes()[:-9])
  table = sorted(out.glob("train/*.parquet"))[-1]
  table.write_bytes(b"PAR1")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(units, "CUT", "bad_jobs:cut_or_crash")
    report = collect.collect(str(films), out, OPTIONS, LIMITS)
  assert report.kept_units == report.units - 2
  assert digests(out) == before


def test_other_options_films_and_folders_are_refused(tmp_path, direct):
  films, out = few(tmp_path / "films"), tmp_path / "out"
  collect.collect(str(films), out, OPTIONS)
  before = digests(out)
  with pytest.raises(errors.UserError, match=r"fps 10\.0 there, 12\.0 now"):
    collect.collect(str(films), out, options_lib.Options(fps=12.0))
  write_film(films / "new.mp4", play(5, 60))
  with pytest.raises(errors.UserError, match=r"1 added, such as new\.mp4"):
    collect.collect(str(films), out, OPTIONS)
  (films / "new.mp4").unlink()
  write_film(films / "1.mp4", play(6, 60))
  with pytest.raises(errors.UserError, match=r"1 changed, such as 1\.mp4"):
    collect.collect(str(films), out, OPTIONS)
  assert digests(out) == before
  foreign = tmp_path / "foreign"
  foreign.mkdir()
  (foreign / "thesis.tex").touch()
  with pytest.raises(errors.UserError, match="not empty and holds no clips"):
    collect.collect(str(films), foreign, OPTIONS)
  assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]


def test_receipts_of_another_data_set_are_refused(tmp_path, direct):
  films, out = few(tmp_path / "films"), tmp_path / "out"
  request = out / ".progress/request.json"
  request.parent.mkdir(parents=True)
  other = manifest.Manifest(
    "clips", "coinrun", 15, (64, 64, 3), 16, {}, 15, {}, {"collector": "other"}
  )
  request.write_text(json.dumps(other.to_dict()))
  with pytest.raises(errors.UserError, match="begun with other settings"):
    collect.collect(str(films), out, OPTIONS)


def test_lossless_frames_are_those_that_were_decoded(tmp_path, direct):
  films, out = few(tmp_path / "films"), tmp_path / "out"
  options = options_lib.Options(
    width=80, height=48, clip_frames=16, min_frames=8, codec="zstd"
  )
  collect.collect(str(films), out, options)
  inspection.verify(manifest.Manifest.read(out))
  source = sources.WindowSource(out, "train", 16, keys=("frames",))
  element = source[0]
  shown = list(
    decode.frames(
      str(films / f"{element['source']}.mp4"), options, decode.Damage()
    )
  )
  true = np.stack([s.frame for s in shown[:16]])
  np.testing.assert_array_equal(element["frames"], true)


def test_one_film_is_divided_in_time(tmp_path, direct):
  path = write_film(tmp_path / "film.mp4", play(0, 1200), options={"g": "60"})
  out = tmp_path / "out"
  report = collect.collect(
    str(path), out, options_lib.Options(
      width=80, height=48, clip_frames=16, min_frames=8, validation_share=0.2,
      test_share=0.2,
    ),
  )  # fmt: skip
  assert report.summary.in_parts
  assert "validation and test come from the films" in collect.describe(
    report, out
  )
  times = {}
  for row in rows(out):
    times.setdefault(row["split"], []).append(row["time"])
  assert max(times["train"]) < 24 < 26 <= min(times["validation"])
  assert max(times["validation"]) < 32 < 34 <= min(times["test"])


def test_recorded_actions_are_stored_with_their_frames(tmp_path, direct):
  films, out = few(tmp_path / "films"), tmp_path / "out"
  for film in range(3):
    held = [["left"], ["right"], []]
    lines = [json.dumps({"keys": held[k // 20]}) for k in range(60)]
    (films / f"{film}.jsonl").write_text("\n".join(lines) + "\n")
  report = collect.collect(str(films), out, OPTIONS)
  found = report.manifest
  assert found.num_actions == 3
  names = found.made_by["action_names"]
  inspection.verify(found)
  source = sources.WindowSource(out, "train", 16)
  actions = next(
    source[k]["actions"] for k in range(len(source)) if not source[k]["start"]
  )
  # 20 of 30 frames a second are two thirds of a second: 6.7 of 10.
  assert [names[k] for k in actions] == ["left"] * 7 + ["right"] * 6 + [
    "none"
  ] * 2


def test_actions_that_do_not_fit_are_listed(tmp_path, direct):
  films = few(tmp_path / "films", 4)
  line = json.dumps({"keys": ["left"]}) + "\n"
  (films / "0.jsonl").write_text(line * 60)
  (films / "1.jsonl").write_text(line * 90)
  (films / "2.jsonl").write_text("{" * 3)
  report = collect.collect(str(films), tmp_path / "out", OPTIONS)
  assert report.manifest.num_actions is None
  assert "2 of 4 sources have recorded actions" in collect.describe(
    report, "out"
  )
  assert [row.name for row, _ in report.summary.actions] == ["2.mp4"]
  report = collect.collect(
    str(films), tmp_path / "required", options_lib.Options(
      width=80, height=48, clip_frames=16, min_frames=8, actions="require",
      validation_share=0.0, test_share=0.0,
    ),
  )  # fmt: skip
  assert report.manifest.num_actions == 2
  assert [row.name for row in report.summary.bad] == ["2.mp4", "3.mp4"]
  ((row, note),) = report.summary.actions
  assert row.name == "1.mp4" and "90 lines of actions for 60 frames" in note


def test_names_in_reasons_are_one_line_of_text(tmp_path, direct):
  folder = tmp_path / os.fsdecode(b"caf\xe9\nfilms")
  few(folder)
  for film, text in enumerate(("{", '{"action": 1}', '{"action": 1}')):
    (folder / f"{film}.jsonl").write_text(text)
  for count, how in enumerate(("auto", "require")):
    out = tmp_path / how
    options = dataclasses.replace(OPTIONS, actions=how)
    report = collect.collect(str(folder), out, options)
    shown = collect.describe(report, "out")
    assert shown.encode() and r"caf\xe9\nfilms/0.jsonl line 1" in shown
    found = pq.read_table(out / "sources.parquet").to_pylist()
    assert [row["status"] for row in found].count("bad") == count


def test_addresses_in_a_table_are_said_to_be_addresses(
  tmp_path, direct, capsys
):
  table = tmp_path / "films.csv"
  table.write_text("path\nhttps://example.com/a.mp4\n")
  argv = ["--videos", str(table), "--out", str(tmp_path / "out")]
  assert main_lib.main(["data", "videos", *argv]) == 2
  assert "a.mp4 is an address; copy the film" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["file", "file/clips"])
def test_an_output_that_is_a_file_or_below_one_is_one_line(
  tmp_path, direct, capsys, below
):
  (tmp_path / "file").write_text("mine")
  films = few(tmp_path / "films", 1)
  argv = ["--videos", str(films), "--out", str(tmp_path / below)]
  assert main_lib.main(["data", "videos", *argv]) == 2
  assert "file is not a folder" in capsys.readouterr().err
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
  "spoil",
  [
    lambda text: text[:20],
    lambda text: "[]",
    lambda text: text.replace('"labels"', '"label"'),
    lambda text: text.replace('"stamp"', '"stamps"'),
  ],
)
def test_a_damaged_memory_of_films_is_found_out_again(tmp_path, direct, spoil):
  films, out = few(tmp_path / "films"), tmp_path / "out"
  collect.collect(str(films), out, OPTIONS)
  path = out / ".films.json"
  before, text = digests(out), path.read_text()
  path.write_text(spoil(text))
  collect.collect(str(films), out, OPTIONS)
  assert digests(out) == before and path.read_text() == text


def test_hours_are_those_with_pictures_not_those_that_films_state(
  tmp_path, direct
):
  films = few(tmp_path / "films")
  hour = 3_600_000
  stamps = [k * 33 + (k >= 30) * 1000 * hour for k in range(60)]
  write_film(films / "gap.mkv", play(7, 60), stamps=stamps)
  report = collect.collect(str(films), tmp_path / "out", OPTIONS)
  assert not report.summary.bad
  assert report.summary.film_seconds == pytest.approx(4 * 2, abs=0.5)


def test_a_bad_film_that_was_divided_in_time_is_one_bad_film(
  tmp_path, direct, capsys
):
  films = few(tmp_path / "films", 1)
  path = write_film(films / "bad.mp4", play(8, 1200))
  content = bytearray(path.read_bytes())
  begin, end = content.index(b"mdat") + 4, content.rindex(b"moov") - 4
  content[begin:end] = bytes(end - begin)
  path.write_bytes(content)
  argv = ["--videos", str(films), "--out", str(tmp_path / "out"), *FLAGS]
  assert main_lib.main(["data", "videos", *argv, "--max-bad", "1"]) == 0
  shown = capsys.readouterr().out
  assert "1 bad films:" in shown and shown.count("bad.mp4") == 1
  assert main_lib.main(["data", "videos", *argv, "--max-bad", "0"]) == 1
  assert "1 of 2 films are bad" in capsys.readouterr().err


def test_a_part_without_pictures_says_which_part(tmp_path, direct):
  film = tmp_path / "gap.mkv"
  stamps = [k * 33 + (k >= 60) * 3_600_000 for k in range(120)]
  write_film(film, play(7, 120), stamps=stamps)
  report = collect.collect(str(film), tmp_path / "out", OPTIONS)
  assert any(
    "not one frame from " in row.reason and " s to " in row.reason
    for row in report.summary.bad
  )


def test_no_clip_for_train_is_one_line_with_the_counts(
  tmp_path, direct, capsys
):
  (tmp_path / "films").mkdir()
  write_film(tmp_path / "films/a.mp4", [np.zeros((48, 80, 3), np.uint8)] * 96)
  argv = ["--videos", str(tmp_path / "films"), "--out", str(tmp_path / "out")]
  assert main_lib.main(["data", "videos", *argv, *FLAGS]) == 2
  assert "2 black" in capsys.readouterr().err
  assert (tmp_path / "out/summary.html").exists()
  assert not manifest.exists(tmp_path / "out")


def test_no_good_film_exits_with_2(tmp_path, direct, capsys):
  (tmp_path / "a.mp4").touch()
  argv = ["--videos", str(tmp_path), "--out", str(tmp_path / "out"), *FLAGS]
  assert main_lib.main(["data", "videos", *argv]) == 2
  assert "a.mp4 is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
  "flags",
  [
    ["--size", "160"],
    ["--size", "4x4"],
    ["--fps", "0"],
    ["--fit", "zoom"],
    ["--codec", "av1"],
    ["--clip-frames", "1"],
    ["--min-frames", "999"],
    ["--validation-share", "1"],
    ["--workers", "0"],
    ["--film-memory", "1"],
    ["--film-memory", "1" + 20 * "0"],
    ["--cut-threshold", "inf"],
    ["--max-bad", "150%"],
    ["--film-seconds", "0"],
    ["--actions", "some"],
    ["--beam-options", "'"],
    ["--beam-options=--runer=FlinkRunner"],
  ],
)
def test_a_wrong_option_is_one_line_that_names_it(tmp_path, capsys, flags):
  argv = ["--videos", str(tmp_path), "--out", str(tmp_path / "out"), *flags]
  assert main_lib.main(["data", "videos", *argv]) == 2
  message = capsys.readouterr().err.strip()
  assert flags[0].partition("=")[0] in message
  assert "\n" not in message
  assert not (tmp_path / "out").exists()


def noisy(frames=180):
  """Yields frames that hardly compress."""
  rng = np.random.default_rng(0)
  for frame in play(9, frames):
    shake = rng.integers(-16, 16, frame.shape)
    yield np.clip(frame + shake, 0, 255).astype(np.uint8)


def test_a_full_disk_is_one_line_and_keeps_what_is_whole(tmp_path):
  films, out = tmp_path / "films", tmp_path / "out"
  films.mkdir()
  for name in "abc":
    grey = [np.full((48, 80, 3), 90, np.uint8) for _ in range(180)]
    for k, frame in enumerate(grey):
      frame[20:30, (k + ord(name)) % 60 :][:, :12] = 255
    write_film(films / f"{name}.mp4", grey)
  write_film(films / "d.mp4", noisy(), options={"crf": "4"})
  command = [
    sys.executable, "-m", "genie_jax", "data", "videos", "--videos",
    str(films), "--out", str(out), "--workers", "1", *FLAGS, "--codec", "zstd",
    "--validation-share", "0", "--test-share", "0",
  ]  # fmt: skip
  environment = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
  }
  run = lambda prefix: subprocess.run(
    [*prefix, *command], env=environment, capture_output=True, text=True,
    timeout=300, check=False,
  )  # fmt: skip
  # A file may have 700 kB. The last film's hardly compresses and needs more
  # than its 60 frames of 11.5 kB; the others fit.
  full = run(["bash", "-c", 'ulimit -f 700; exec "$@"', "bash"])
  assert full.returncode == 1
  line = full.stderr.strip().splitlines()[-1]
  assert line.startswith("genie data: ") and "File too large" in line
  assert "Traceback" not in full.stderr
  assert not manifest.exists(out)
  done = run([])
  assert done.returncode == 0, done.stderr
  assert "3 of 4 units are of an earlier run" in done.stdout
  assert not list(out.glob("*/.*.tmp"))


def test_workers_of_one_machine_get_equal_shares():
  jobs = [{"job": number} for number in range(7)]
  weights = [1, 9, 2, 3, 4, 5, 6]
  one, other = engine.share_out(jobs, weights, 2)
  assert [job["job"] for job in one] == [1, 4, 2]
  assert [job["job"] for job in other] == [6, 5, 3, 0]


def test_a_pipeline_is_one_map_that_any_runner_can_read():
  import apache_beam as beam

  pipeline = beam.Pipeline(runner=beam_program.local_runner([]))
  jobs = [[{"job": number}] for number in range(3)]
  beam_program.build(pipeline, "data_pipelines.videos.units:run", jobs)
  transforms = pipeline.to_runner_api().components.transforms.values()
  assert {"Jobs", "Spread", "Do"} <= {t.unique_name for t in transforms}


def test_dataflow_accepts_the_pipeline_in_a_dry_run():
  pytest.importorskip(
    "apitools", reason="needs Beam for Google Cloud: genie_jax[dataflow]"
  )
  import apache_beam as beam
  from apache_beam.options import pipeline_options

  options = pipeline_options.PipelineOptions(
    [
      "--runner=DataflowRunner",
      "--dry_run=True",
      "--no_auth",
      "--project=a-project",
      "--region=europe-west4",
      "--temp_location=gs://a-bucket/temp",
      "--staging_location=gs://a-bucket/staging",
      "--job_name=videos",
      "--sdk_location=container",
    ]
  )
  pipeline = beam.Pipeline(options=options)
  beam_program.build(
    pipeline, "data_pipelines.videos.units:run", [[{"job": 1}], [{"job": 2}]]
  )
  assert pipeline.run() is not None
