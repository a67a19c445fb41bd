"""Tests that clips of films are the same after kills, and on other runners."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from films import picture, play, write_film

from data_pipelines.videos import collect, decode
from data_pipelines.videos import options as options_lib
from genie_jax.data import inspection, manifest

FLAGS = ["--size", "80x48", "--clip-frames", "16", "--min-frames", "8"]
ENVIRONMENT = {
  **os.environ,
  "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
}


def command(films, out, *flags):
  """Returns the command that a user types."""
  return [
    sys.executable, "-m", "genie_jax", "data", "videos", "--videos",
    str(films), "--out", str(out), *FLAGS, *flags,
  ]  # fmt: skip


def finish(films, out, *flags):
  """Runs the command to its end."""
  done = subprocess.run(
    command(films, out, *flags),
    env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout


def contents(folder):
  """Returns the content of every file that is not hidden, by name."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and ".progress" not in path.parts
    and not path.name.startswith(".")
  }  # fmt: skip


def make_films(folder, count):
  """Writes films of 20 kB, some of them bad."""
  folder.mkdir()
  for seed in range(count):
    write_film(folder / f"{seed}.mp4", play(seed, 150, shots=2))
  (folder / "empty.mp4").touch()
  (folder / "junk.mp4").write_bytes(b"junk")
  return folder


def kill_and_finish(tmp_path, kills, seed, count):
  """Kills runs at random moments, then compares with one that was not."""
  films = make_films(tmp_path / "films", count)
  began = time.monotonic()
  finish(films, tmp_path / "whole", "--workers", "1")
  whole = contents(tmp_path / "whole")
  usual = time.monotonic() - began
  rng, out = random.Random(seed), tmp_path / "out"
  for number in range(kills):
    if manifest.exists(out):  # Begins again.
      assert contents(out) == whole
      out.rename(tmp_path / f"done-{number}")
    process = subprocess.Popen(
      command(films, out, "--workers", "2"),
      env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(rng.uniform(0.3, 0.9) * usual)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    engines = children.read_text().split() if process.poll() is None else []
    process.kill()
    process.wait()
    if number % 2:  # Also what it started, as a machine that is switched off.
      for engine in engines:
        with contextlib.suppress(ProcessLookupError):
          os.killpg(int(engine), signal.SIGKILL)
  finish(films, out, "--workers", "2")
  assert contents(out) == whole
  found = manifest.Manifest.read(out)
  inspection.verify(found)
  episodes = [
    tuple(row[:2])
    for split in found.splits.values()
    for entry in split["shards"]
    for row in entry["episodes"]
  ]
  assert len(episodes) == len(set(episodes)) == 4 * count
  assert not list(out.rglob(".*.tmp"))


@pytest.mark.slow
def test_a_run_that_is_killed_gives_the_same_bytes(tmp_path):
  kill_and_finish(tmp_path, kills=1, seed=1, count=3)


@pytest.mark.slow
def test_a_run_that_is_killed_20_times_gives_the_same_bytes(tmp_path):
  kill_and_finish(tmp_path, kills=20, seed=2, count=10)


@pytest.mark.slow
def test_beams_portable_runner_gives_the_same_bytes(tmp_path):
  films = make_films(tmp_path / "films", 4)
  finish(films, tmp_path / "one", "--workers", "1")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  service = subprocess.Popen(
    [
      sys.executable, "-m",
      "apache_beam.runners.portability.local_job_service_main",
      "--port", str(port),
    ],
    env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  try:
    time.sleep(5)
    finish(
      films,
      tmp_path / "other",
      f"--beam-options=--runner=PortableRunner --job_endpoint=localhost:{port} "
      "--environment_type=LOOPBACK",
    )
  finally:
    service.kill()
    service.wait()
  assert contents(tmp_path / "other") == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_film_of_ten_hours_needs_little_memory(tmp_path):
  # A picture each ten seconds, so that the film is made and read in a minute.
  world = picture(0, 48, 160)
  frames = (np.roll(world, -3 * k, axis=1)[:, :80] for k in range(3_600))
  stamps = [10_000 * k for k in range(3_600)]
  path = write_film(tmp_path / "long.mkv", frames, 10, stamps=stamps)
  options = options_lib.Options(
    fps=2.0, width=80, height=48, keep_static=True, cut_threshold=100.0
  )
  limits = options_lib.Limits(memory_mb=128)
  report = collect.collect(str(path), tmp_path / "out", options, limits)
  assert report.summary.film_seconds == pytest.approx(36_000, rel=0.03)
  assert not report.summary.bad and not report.summary.damaged
  # Less the gaps between the parts for train, validation and test.
  assert report.summary.kept_frames == pytest.approx(2 * 35_280, rel=0.01)


@pytest.mark.slow
def test_films_with_flipped_bytes_never_end_a_run(tmp_path):
  films = tmp_path / "films"
  films.mkdir()
  rng = np.random.default_rng(0)
  for name in ("a.mp4", "b.mkv", "c.webm", "d.avi", "e.ts"):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(name.split(".")[-1])
    path = write_film(films / name, play(0, 90), codec=codec or "libx264")
    content = path.read_bytes()
    for number in range(12):
      damaged = bytearray(content)
      for place in rng.integers(0, len(damaged), 1 + 3 * number):
        damaged[place] = rng.integers(256)
      if number % 3 == 0:
        damaged = damaged[: rng.integers(1, len(damaged))]
      (films / f"{number}-{name}").write_bytes(damaged)
  options = options_lib.Options(width=80, height=48, min_frames=8)
  report = collect.collect(
    str(films), tmp_path / "out", options, options_lib.Limits(512, 60.0)
  )
  summary = report.summary
  assert summary.films == 65
  assert len(summary.bad) + sum(summary.sources.values()) == 65
  assert len(summary.bad) > 5 and summary.kept >= 5
  inspection.verify(report.manifest)


def test_a_rate_that_is_no_whole_number_is_exact(tmp_path):
  path = write_film(tmp_path / "a.mkv", play(0, 60), 30)
  options = options_lib.Options(width=80, height=48, fps=29.97)
  shown = list(decode.frames(str(path), options, decode.Damage()))
  assert options.rate.denominator == 1001 or float(options.rate) == 29.97
  assert len(shown) == 60
