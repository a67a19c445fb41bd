"""Tests of `genie world`: from a folder of films to a world."""

import csv
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

import genie_jax
from data_pipelines.recorder import film
from genie_jax.cli import main, world
from genie_jax.core import config as config_lib
from genie_jax.core import steps


def dry_run(capsys, *flags):
  """Returns the commands of a dry run as lists of words."""
  assert main.main(["world", "--dry-run", *flags]) == 0
  lines = capsys.readouterr().out.splitlines()
  return [shlex.split(line) for line in lines]


def value(words, flag):
  """Returns what follows a flag."""
  return words[words.index(flag) + 1]


def test_every_stage_runs_in_order_on_what_the_one_before_wrote(
  capsys, tmp_path
):
  out = str(tmp_path / "my run")
  lines = dry_run(capsys, "--videos", "films", "--out", out)
  names = [" ".join(words[1:3]) for words in lines]
  assert names[0] == "data videos"
  assert [name.split()[0] for name in names[1:]] == [
    "train",
    "train",
    "train",
    "tokenize",
    "train",
    "export",
    "sample",
    "eval",
    "export",
  ]
  clips = value(lines[0], "--out")
  for words in lines[1:4]:
    assert f"--config.data.path={clips}" in words
  assert value(lines[2], "--init-from") == value(lines[1], "--workdir")
  assert value(lines[4], "--clips") == clips
  assert f"--config.data.path={value(lines[4], '--out')}" in lines[5]
  assert value(lines[8], "--world") == value(lines[6], "--out")
  assert lines[9][: len(lines[6])] == lines[6]
  assert not (tmp_path / "my run").exists()


@pytest.mark.parametrize("preset", world.PRESETS)
def test_clips_and_configs_have_one_shape_and_rate(preset, capsys):
  lines = dry_run(
    capsys, "--videos", "x", "--out", "y", "--preset", preset, "--fps", "15"
  )
  width, height = map(int, value(lines[0], "--size").split("x"))
  assert value(lines[0], "--fps") == "15"
  trains = [words for words in lines if words[1] == "train"]
  assert len(trains) == 4
  for words in trains:
    config = config_lib.load(
      value(words, "--config"),
      [
        word
        for word in words
        if word.startswith("--config.") and "data.path" not in word
      ],
    )
    found = config.world
    assert (found.width, found.height, found.fps) == (width, height, 15)
    assert width % found.token_patch == height % found.token_patch == 0


def test_effort_multiplies_the_steps_of_all_stages(capsys):
  lines = dry_run(capsys, "--videos", "x", "--out", "y", "--effort", "0.5")
  for words in lines:
    if words[1] == "train":
      config = config_lib.load(value(words, "--config"))
      assert f"--config.steps={round(config.steps / 2)}" in words


def test_a_view_from_the_side_gets_four_buttons(capsys):
  lines = dry_run(capsys, "--videos", "x", "--out", "y", "--side-view")
  buttons = next(words for words in lines if words[1] == "buttons")
  tokenize = next(words for words in lines if words[1] == "tokenize")
  assert value(tokenize, "--lam") == value(buttons, "--out")
  dynamics = next(w for w in lines if any("dynamics.py" in x for x in w))
  assert "--config.world.num_latent_actions=4" in dynamics
  sample = next(words for words in lines if words[1] == "sample")
  assert value(sample, "--actions") == "0x8,1x8,2x8,3x8"


@pytest.mark.parametrize(
  "flags, words",
  [
    (["--preset", "lptop"], "did you mean 'laptop'"),
    (["--size", "80"], "must be width x height"),
    (["--size", "80x-48"], "must be width x height"),
    (["--size", "81x48"], "multiples of 8, at most 1024; try 80x48"),
    (["--size", "0x0"], "multiples of 8"),
    (["--size", "8000x48"], "at most 1024"),
    (["--fps", "0"], "--fps 0 must be"),
    (["--effort", "0"], "--effort 0 must be"),
    (["--effort", "nan"], "--effort: nan must be a finite number"),
  ],
)
def test_a_wrong_flag_is_one_line(flags, words, tmp_path, capsys):
  line = ["world", "--videos", "x", "--out", str(tmp_path / "run"), *flags]
  assert main.main(line) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and words in error
  assert not (tmp_path / "run").exists()


def start(monkeypatch, tmp_path, *flags, out="run"):
  """Runs the command with steps that do nothing; returns its exit code."""

  def run(planned, clock):
    (clock.parent / "metrics.json").write_text("{}")
    (clock.parent / "clips").mkdir(exist_ok=True)
    (clock.parent / "clips/manifest.json").write_text("{}")
    return {"clips": 90.0}

  monkeypatch.setattr(steps, "run", run)
  videos = ["--videos", "films", "--preset", "smoke"]
  return main.main(["world", *videos, "--out", str(tmp_path / out), *flags])


def test_a_run_is_taken_up_with_the_same_options_only(
  monkeypatch, tmp_path, capsys
):
  assert start(monkeypatch, tmp_path) == 0
  assert start(monkeypatch, tmp_path) == 0
  assert "after 2 minutes" in capsys.readouterr().out
  metrics = json.loads((tmp_path / "run/metrics.json").read_text())
  assert metrics["seconds_total"] == 90.0
  for flags, words in (
    (["--fps", "5"], "begun with --fps 10, not 5"),
    (["--size", "96x64"], "begun with --size 80x48, not 96x64"),
    (["--side-view"], "begun with --side-view False, not True"),
  ):
    assert start(monkeypatch, tmp_path, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error


def test_damaged_options_of_a_run_are_one_line(monkeypatch, tmp_path, capsys):
  assert start(monkeypatch, tmp_path) == 0
  (tmp_path / "run/world_options.json").write_text("[]")
  assert start(monkeypatch, tmp_path) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "world_options.json" in error


def test_a_wrong_path_of_films_can_be_corrected(tmp_path, capfd):
  out = ["--out", str(tmp_path / "run"), "--preset", "smoke"]
  missing = str(tmp_path / "filsm")
  assert main.main(["world", "--videos", missing, *out]) == 2
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 1 and "filsm does not exist" in lines[0]
  (tmp_path / "films").mkdir()
  assert main.main(["world", "--videos", str(tmp_path / "films"), *out]) == 2
  lines = capfd.readouterr().err.splitlines()
  # No film is in it, which is another mistake than before.
  assert len(lines) == 1 and "begun" not in lines[0]


def test_a_folder_of_something_else_is_refused(monkeypatch, tmp_path, capsys):
  (tmp_path / "other").mkdir()
  (tmp_path / "other/thesis.txt").write_text("mine")
  (tmp_path / "file").write_text("mine")
  for name, words in (
    ("other", "something else"),
    ("file", "is not a folder"),
    ("file/deep/run", "is not a folder"),
  ):
    assert start(monkeypatch, tmp_path, out=name) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and words in error
  assert (tmp_path / "other/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("code, lines", [(2, 0), (137, 1)])
def test_a_step_that_found_a_mistake_is_not_reported_twice(
  code, lines, monkeypatch, tmp_path, capsys
):
  def run(planned, clock):
    raise steps.StepFailed("clips", code)

  monkeypatch.setattr(steps, "run", run)
  line = ["world", "--videos", "x", "--out", str(tmp_path / "run")]
  assert main.main(line) == code
  assert capsys.readouterr().err.count("\n") == lines


def test_without_the_configs_it_says_that_a_checkout_is_needed(
  monkeypatch, tmp_path, capsys
):
  monkeypatch.setattr(
    genie_jax, "__file__", str(tmp_path / "genie_jax/__init__.py")
  )
  assert main.main(["world", "--videos", "x", "--out", "y"]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "checkout" in error


def moving_film(path, seed, seconds=12, fps=10):
  """Writes a film whose view scrolls over blocks, and its keys."""
  rng = np.random.default_rng(seed)
  world_ = rng.integers(0, 255, (6, 60, 3), np.uint8)
  world_ = world_.repeat(16, axis=0).repeat(16, axis=1)
  place, frames, keys = 300, [], []
  for _ in range(seconds * fps // 10):
    key = str(rng.choice(["Left", "Right", ""]))
    for _ in range(10):
      place += 4 * ((key == "Right") - (key == "Left"))
      place = int(np.clip(place, 0, 960 - 160))
      frames.append(world_[:96, place : place + 160])
      keys.append([key] if key else [])
  film.write_array(path, frames, fps, keys)


@pytest.mark.slow
def test_films_become_a_world_that_can_be_played(tmp_path):
  films = tmp_path / "films"
  for number in range(4):
    moving_film(films / f"{number}.mp4", number)
  with open(films / "table.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["path", "split"])
    splits = ("train", "train", "validation", "test")
    table.writerows([f"{k}.mp4", split] for k, split in enumerate(splits))
  line = [
    sys.executable,
    "-m",
    "genie_jax",
    "world",
    "--videos",
    str(films / "table.csv"),
    "--out",
    str(tmp_path / "run"),
    "--preset",
    "smoke",
  ]
  first = subprocess.run(line, capture_output=True, text=True, check=False)
  assert first.returncode == 0, first.stdout + first.stderr
  metrics = json.loads((tmp_path / "run/metrics.json").read_text())
  assert metrics["seconds_total"] > 0
  made = genie_jax.load_world(tmp_path / "run/world")
  _, frame = made.step(made.reset(np.zeros((48, 80, 3), np.uint8)), 1)
  assert frame.shape == (48, 80, 3)
  weights = (tmp_path / "run/world/model.safetensors").read_bytes()
  again = subprocess.run(line, capture_output=True, text=True, check=False)
  assert again.returncode == 0, again.stdout + again.stderr
  assert (tmp_path / "run/world/model.safetensors").read_bytes() == weights
