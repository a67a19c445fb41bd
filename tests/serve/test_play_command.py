"""Tests of `genie play` with a real, tiny world, and of its mistakes."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import zipfile

import browser
import numpy as np
import pytest
from players import Player

from genie_jax.cli import main
from genie_jax.core import images
from genie_jax.infer import bundle
from genie_jax.serve import engine
from tests.infer import tiny_world

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "experiments" / "coinrun" / "results" / "small" / "world"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A world folder of random weights."""
  out = tmp_path_factory.mktemp("worlds") / "tiny"
  prompts = np.random.default_rng(0).integers(
      0, 256, (2, *tiny_world.SHAPE), np.uint8)
  bundle.write(
      out, {name: tiny_world.make_part(name)
            for name in ("tokenizer", "dynamics")},
      name="noise", actions="latent", sampling={"refinements": 2},
      prompts=prompts, dtype="float32", metrics={}, made_by={})
  return out


class Command:
  """`genie play` in a process of its own."""

  def __init__(self, world, *flags):
    self.process = subprocess.Popen(
        [sys.executable, "-m", "genie_jax.cli.play", "--world", str(world),
         "--port", "0", "--no-open", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"})
    self.lines = []
    for line in self.process.stdout:
      self.lines.append(line)
      if line.startswith("Play at "):
        break
    else:
      raise AssertionError(self.process.stderr.read())
    self.url = self.lines[-1].split()[2]
    self.host = self.url.split("/")[2]

  def stop(self):
    """Presses Ctrl-C; returns exit code and everything it said."""
    self.process.send_signal(signal.SIGINT)
    out, err = self.process.communicate(timeout=60)
    return self.process.returncode, "".join(self.lines) + out, err

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.process.kill()
    self.process.communicate()


def refused(capsys, *argv):
  code = main.main(["play", *map(str, argv)])
  err = capsys.readouterr().err
  assert code == 2 and len(err.splitlines()) == 1, err
  return err


def test_a_real_world_plays_in_the_server_as_it_does_alone(world):
  actions = [0, 3, 1, 4, 2, 2, 0]  # Longer than its window of four frames.
  alone = engine.open_world(world)
  state = alone.world.reset(alone.prompts[1], seed=5)
  wanted = [alone.world.show(state)]
  for action in actions:
    state, frame = alone.world.step(state, action)
    wanted.append(frame)
  with Command(world) as command:
    shown = lambda each: [
        images.from_png(content) for _, content in each.frames]
    with Player(command.host) as player, Player(command.host) as other:
      assert player.welcome["world"]["num_actions"] == 5
      assert player.welcome["world"]["replay"] == alone.description.replay
      player.start(prompt=1, seed=5)
      other.start(prompt=1, seed=5, actions=actions)
      player.play(actions)
      other.until_frame(len(actions))
      np.testing.assert_array_equal(shown(player), wanted)
      np.testing.assert_array_equal(shown(other), wanted)
      player.send(type="rewind", frame=3)
      run = player.until("line")["run"]
      player.play(actions[3:], first_seq=100)
      assert player.frames[-1][0].run == run
      np.testing.assert_array_equal(shown(player)[-4:], wanted[-4:])
    code, out, err = command.stop()
  assert code == 0 and out.endswith("Stopped.\n"), err
  assert err == ""


def test_mistakes_are_one_line(capsys, tmp_path, world):
  assert "is not a world" in refused(capsys, "--world", tmp_path)
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    assert f"{port} is taken" in refused(
        capsys, "--world", world, "--port", port)
  assert "--host no.such.host.invalid" in refused(
      capsys, "--world", world, "--host", "no.such.host.invalid")
  assert "not of this machine" in refused(
      capsys, "--world", world, "--host", "192.0.2.1", "--port", 0)
  for flags in (("--port", 70000), ("--max-sessions", 0),
                ("--session-minutes", 0), ("--slide", "exactly"),
                ("--refinements", 0)):
    assert flags[0].strip("-") in refused(
        capsys, "--world", world, "--port", 0, *flags)


def test_other_settings_make_other_links(world):
  found = {
      engine.open_world(world, **options).description.replay
      for options in ({}, {"refinements": 3}, {"slide": "rolling"})}
  assert len(found) == 3


def test_playing_loads_no_training_code():
  done = subprocess.run(
      [sys.executable, "-c",
       "import sys, genie_jax.serve.local, genie_jax.serve.engine\n"
       "roots = {name.split('.')[0] for name in sys.modules}\n"
       "bad = roots & {'grain', 'tensorflow', 'optax', 'orbax', 'sklearn',"
       " 'matplotlib', 'tensorboardX', 'array_record'}\n"
       "ours = {name.split('.')[1] for name in sys.modules"
       " if name.startswith('genie_jax.')}\n"
       "assert not bad, bad\n"
       "assert not ours & {'train', 'stages', 'data', 'evals'}, ours"],
      cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_holds_the_page(tmp_path):
  subprocess.run(
      [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps",
       "--no-build-isolation", "--wheel-dir", tmp_path, ROOT],
      check=True, timeout=300)
  [wheel] = tmp_path.glob("*.whl")
  held = set(zipfile.ZipFile(wheel).namelist())
  page = ROOT / "genie_jax" / "serve" / "page"
  assert {f"genie_jax/serve/page/{path.name}"
          for path in page.iterdir()} <= held


@pytest.mark.slow
def test_the_shipped_world_plays_ten_frames_in_a_browser():
  with Command(SHIPPED) as command, browser.open_browser() as chromium:
    page = browser.Page(chromium, command.url)
    page.at(0)
    seen = [page.painted()]
    for key in "2222233333":
      page.press(key)
      seen.append(page.painted())
    assert len(set(seen)) == 11
    page.page.click("#share")
    other = browser.Page(chromium, page.page.input_value("#share-link"))
    other.at(10)
    assert other.painted() == seen[-1]
    assert page.problems == other.problems == []
    page.close()
    other.close()
