"""Tests of `genie play` with a real, tiny world, and of its error messages."""

import json
import pathlib
import shutil
import socket
import subprocess
import sys
import zipfile

import fake_world
import jax
import numpy as np
import players
import pytest
from command import Command
from players import Player

import genie_jax
from genie_jax.cli import main
from genie_jax.core import errors, images
from genie_jax.serve import engine
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.worlds import shipped, world_manifest
from tests.fixtures import tiny_world

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A world folder of random weights."""
  out = tmp_path_factory.mktemp("worlds") / "tiny"
  prompts = np.random.default_rng(0).integers(
    0, 256, (2, *tiny_world.SHAPE), np.uint8
  )
  return tiny_world.write_world(out, prompts=prompts)


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
      images.from_png(content) for _, content in each.frames
    ]
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


def test_without_a_world_the_one_that_ships_is_played(
  capsys, tmp_path, monkeypatch
):
  opened = []

  def stop(folder, **options):
    opened.append(folder)
    raise errors.UserError("opened")

  monkeypatch.setattr(engine, "open_world", stop)
  (tmp_path / "coinrun").mkdir()  # A folder of that name is not opened.
  monkeypatch.chdir(tmp_path)
  assert "opened" in refused(capsys, "--port", 0)
  [folder] = opened
  assert world_manifest.read_manifest(folder)["name"] == "coinrun"
  assert shipped.DEFAULT in genie_jax.worlds()
  with pytest.raises(SystemExit):
    main.main(["play", "--help"])
  said = " ".join(capsys.readouterr().out.split())
  assert "(default: coinrun, the world that ships with this package)" in said


@pytest.mark.slow
def test_two_worlds_are_served_side_by_side(world):
  with Command(world, "--world", "coinrun") as command:
    names = []
    for path in ("/", "/worlds/coinrun/"):
      with players.Player(command.host, path=path) as player:
        names.append(player.welcome["world"]["name"])
        player.start(prompt=0)
        player.play([0, 1])
    assert names[1] == "coinrun" != names[0]


def test_errors_are_one_line(capsys, tmp_path, world):
  assert "given twice" in refused(
    capsys, "--world", world, "--world", "coinrun", "--world", world
  )
  assert "is not a world" in refused(capsys, "--world", tmp_path)
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    assert f"{port} is in use" in refused(
      capsys, "--world", world, "--port", port
    )
  assert "not an address of this machine" in refused(
    capsys, "--world", world, "--host", "192.0.2.1", "--port", 0
  )
  for flags in (
    ("--port", 70000),
    ("--max-sessions", 0),
    ("--session-minutes", 0),
    ("--slide", "exactly"),
    ("--refinements", 0),
  ):
    assert flags[0].strip("-") in refused(
      capsys, "--world", world, "--port", 0, *flags
    )


def test_each_of_several_worlds_is_checked(capsys, tmp_path, world):
  bad = pathlib.Path(shutil.copytree(world, tmp_path / "bad"))
  manifest = json.loads((bad / "manifest.json").read_text())
  manifest["fingerprint"] = "0" * 64
  del manifest["seal"]
  manifest["seal"] = world_manifest.seal(manifest)
  (bad / "manifest.json").write_text(json.dumps(manifest))
  play = ("--port", 0, "--world", world, "--world")
  assert "states the fingerprint" in refused(capsys, *play, bad)
  manifest["name"] = "\x1b]0;owned\x07"
  (bad / "manifest.json").write_text(json.dumps(manifest))
  assert "was changed" in refused(capsys, *play, bad)
  (bad / "manifest.json").write_text("[" * 100_000)
  assert "too many levels" in refused(capsys, *play, bad)
  assert "not a valid address" in refused(capsys, *play, "https://[::1/x")


def test_an_unknown_host_is_one_line(capsys, unknown_host, world):
  assert f"--host {unknown_host} is unknown" in refused(
    capsys, "--world", world, "--host", unknown_host
  )


def test_other_settings_make_other_links(world):
  found = {
    engine.open_world(world, **options).description.replay
    for options in (
      {},
      {"refinements": 3},
      {"slide": "rolling"},
      {"dtype": "int8"},
    )
  }
  assert len(found) == 4
  # The default of this machine makes the same link when it is given.
  assert engine.open_world(world, dtype="float32").description.replay in found


@pytest.mark.slow
def test_a_world_on_two_devices_plays_in_the_server_as_on_one(tmp_path):
  tiny_world.write_world(
    tmp_path / "w",
    {
      name: tiny_world.make_part(name, num_codes=16)
      for name in ("tokenizer", "dynamics")
    },
  )
  alone, actions = engine.open_world(tmp_path / "w"), [0, 3, 1, 4, 2]
  state = alone.world.reset(alone.prompts[0], seed=7)
  wanted = [alone.world.show(state)]
  for action in actions:
    state, frame = alone.world.step(state, action)
    wanted.append(frame)
  mesh = mesh_lib.make(
    dict(data=1, fsdp=1, tensor=2, frame=1), jax.local_devices()[:2]
  )
  split = engine.open_world(tmp_path / "w", mesh=mesh)
  split.warm_up()
  with (
    players.serving(split) as (_, host),
    Player(host) as player,
    Player(host) as other,
  ):
    other.start(seed=7, actions=actions)
    player.start(seed=7)
    player.play(actions)
    other.until_frame(len(actions))
    for each in (player, other):
      np.testing.assert_array_equal(
        [images.from_png(content) for _, content in each.frames],
        wanted,
      )


@pytest.mark.parametrize("on_mesh", [True, False])
def test_nothing_is_compiled_during_a_game_on_several_devices(on_mesh):
  world = fake_world.FakeWorld()
  sizes = []
  world.warm_up = lambda batches: sizes.extend(batches)
  made = engine.Engine(
    world, [], name="squares", rules={}, batches=(1, 4, 16), on_mesh=on_mesh
  )
  made.warm_up()
  assert sizes == ([1, 4, 16] if on_mesh else [1])
  made.warm_batches().join(20)
  assert sizes == [1, 4, 16]


def test_playing_imports_no_training_code():
  done = subprocess.run(
    [
      sys.executable,
      "-c",
      "import sys, genie_jax.serve.server, genie_jax.serve.engine\n"
      "roots = {name.split('.')[0] for name in sys.modules}\n"
      "bad = roots & {'grain', 'tensorflow', 'optax', 'orbax', 'sklearn',"
      " 'matplotlib', 'tensorboardX', 'array_record'}\n"
      "ours = {name.split('.')[1] for name in sys.modules"
      " if name.startswith('genie_jax.')}\n"
      "assert not bad, bad\n"
      "assert not ours & {'train', 'stages', 'data', 'evals'}, ours",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_contains_the_page(tmp_path):
  subprocess.run(
    [
      sys.executable,
      "-m",
      "pip",
      "wheel",
      "--quiet",
      "--no-deps",
      "--no-build-isolation",
      "--wheel-dir",
      tmp_path,
      ROOT,
    ],
    check=True,
    timeout=300,
  )
  [wheel] = tmp_path.glob("*.whl")
  held = set(zipfile.ZipFile(wheel).namelist())
  page = ROOT / "genie_jax" / "serve" / "page"
  assert {
    f"genie_jax/serve/page/{path.name}" for path in page.iterdir()
  } <= held
