"""Tests of the buttons that are made of a LAM's codes."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
import scrolling_game

from data_pipelines import games
from genie_jax.cli import main
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.evals import code_buttons, control
from genie_jax.models import button_map, store
from genie_jax.worlds import trained_models
from tests.fixtures import tiny_world

SIDE, FRAMES = scrolling_game.SIDE, 12
# Code -> motion of the player to the right and upwards; two codes walk right.
MOVES = ((-2, 0), (0, 0), (2, 0), (0, 3), (0, -3), (1, 0))
NAMES = ("left", "nothing", "right", "jump", "fall", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns clips whose corner says by which code each frame was reached."""

  def play(level):
    rng = np.random.default_rng(level)
    texture = rng.integers(0, 200, (60, 60), np.uint8)
    texture = texture.repeat(4, 0).repeat(4, 1)
    codes = rng.integers(0, len(MOVES), FRAMES)
    places = np.cumsum(np.take(MOVES, codes, 0), 0)
    frames = np.stack(
      [scrolling_game.picture(texture, *place) for place in places]
    )
    frames[:, 0, 0] = 40 * codes[:, None]
    first = np.arange(FRAMES) == 0
    return games.Played(frames, np.zeros(FRAMES, np.int32), first)

  game = games.Game(
    title="codes",
    manifest=manifest.Manifest(
      kind="clips",
      name="codes",
      fps=10,
      frame_shape=(SIDE, SIDE, 3),
      frames_per_record=games.FRAMES_PER_RECORD,
      splits={},
      num_actions=1,
      action_aliases={},
      made_by={},
    ),
    levels={"train": range(30)},
    frames_per_level=FRAMES,
    play=play,
    load=lambda: None,
  )
  clips = tmp_path_factory.mktemp("codes") / "clips"
  games.collect(clips, game, 30)
  return clips


def lam(**changes):
  """Returns a model whose codes are those of the corners."""

  def apply(variables, frames, method):
    assert not variables["params"] and method == "encode"
    return jnp.round(frames[:, 1:, 0, 0, 0] * 255 / 40).astype(jnp.int32)

  world = {
    **tiny_world.WORLD,
    "height": SIDE,
    "width": SIDE,
    "num_frames": 4,
    "num_latent_actions": len(MOVES),
    **changes,
  }
  return store.Part(
    types.SimpleNamespace(apply=apply), {"world": world, "model": {}}, {}
  )


@pytest.fixture(scope="module")
def rows(folder):
  return code_buttons.measure(lam(), folder, num_clips=120)


def test_codes_are_named_by_the_motion_of_the_picture(rows):
  assert tuple(row["name"] for row in rows) == NAMES
  assert all(row["share"] > 0.9 for row in rows)
  assert sum(row["usage"] for row in rows) == pytest.approx(1)


def test_with_gravity_falls_are_no_button_and_rising_is_short(rows):
  found = code_buttons.make(rows, gravity=True)
  assert found == button_map.ButtonMap(
    names=("left", "right", "nothing", "jump"),
    button_of=(0, 2, 1, 3, -1, 1),
    longest=(0, 0, 0, code_buttons.RISE_FRAMES),
    first=2,
  )


def test_without_gravity_every_direction_is_held(rows):
  found = code_buttons.make(rows, gravity=False)
  assert found.names == ("left", "right", "nothing", "jump", "fall")
  assert found.button_of == (0, 2, 1, 3, 4, 1)
  assert found.longest == (0,) * 5


def test_with_gravity_a_rise_to_a_side_is_a_jump(rows):
  changed = [{**row, "name": "right and jump"} if n == 3 else row
             for n, row in enumerate(rows)]  # fmt: skip
  assert code_buttons.make(changed, gravity=True).button_of[3] == 3
  found = code_buttons.make(changed, gravity=False)
  assert found.names == ("left", "right", "nothing", "right and jump", "fall")


def test_a_button_without_a_code_is_there(rows):
  changed = [{**row, "name": "nothing"} if row["name"] == "jump" else row
             for row in rows]  # fmt: skip
  found = code_buttons.make(changed, gravity=True)
  assert found.names[3] == "jump" and 3 not in found.button_of


def test_an_unclear_code_presses_nothing(rows):
  unclear = [{**row, "name": "unclear"} if n == 5 else row
             for n, row in enumerate(rows)]  # fmt: skip
  found = code_buttons.make(unclear, gravity=True)
  assert found.button_of == (0, 2, 1, 3, -1, 2)


def test_codes_that_move_to_no_side_are_refused(rows):
  still = [{**row, "name": "nothing"} for row in rows]
  with pytest.raises(errors.UserError, match="no buttons; train it"):
    code_buttons.make(still, gravity=True)


def test_clips_of_another_size_or_split_and_a_second_map_are_refused(folder):
  with pytest.raises(errors.UserError, match="frame_shape"):
    code_buttons.measure(lam(width=64), folder)
  with pytest.raises(errors.UserError, match="has no split 'test'"):
    code_buttons.measure(lam(), folder, split="test")
  done = dataclasses.replace(
    lam(), config={"world": lam().config["world"], "model": {"buttons": {}}}
  )
  with pytest.raises(errors.UserError, match="already has buttons"):
    code_buttons.measure(done, folder)


def test_a_model_with_buttons_presses_them_also_after_it_is_stored(tmp_path):
  plain = tiny_world.make_part("lam")
  buttons = button_map.ButtonMap(
    ("left", "right", "nothing"), (0, -1, 2, 1, 0), (0, 0, 0), 2
  )
  store.save(tmp_path, {"lam": code_buttons.with_buttons(plain, buttons)})
  found, _ = trained_models.part(tmp_path, "lam")
  frames = np.random.default_rng(0).random((3, 4, *tiny_world.SHAPE))
  encode = lambda part: part.module.apply(
    {"params": part.params}, jnp.float32(frames), method="encode"
  )
  codes, pressed = encode(plain), encode(found)
  np.testing.assert_array_equal(pressed, buttons.press(codes))
  assert not np.array_equal(codes, pressed)
  assert button_map.num_buttons(found.config) == 3


def test_the_command_says_what_each_code_became(
  folder, tmp_path, capsys, monkeypatch, rows
):
  workdir = tmp_path / "lam"
  part = tiny_world.make_part(
    "lam", height=SIDE, width=SIDE, num_latent_actions=len(MOVES)
  )
  trained = {"lam": {"stage": "lam", "steps": 500}}
  store.save(workdir, {"lam": part}, extra={"made_by": trained})
  monkeypatch.setattr(
    control, "name_codes", lambda found, num_codes, seed: rows
  )
  out = tmp_path / "out"
  words = ["buttons", "--lam", str(workdir), "--clips", str(folder)]
  words += ["--num-clips", "30", "--gravity", "--out", str(out)]
  assert main.main(words) == 0
  said = capsys.readouterr().out
  assert "code 4: fall" in said and "-> held as before" in said
  assert "4 buttons: 0 left, 1 right, 2 nothing, 3 jump" in said
  assert "--config.world.num_latent_actions=4" in said
  assert trained_models.part(out, "lam")[0].module.buttons.names[3] == "jump"
  # The model with buttons still says how it was trained.
  assert trained_models.read(out).records == trained
  # A second map on top of the first is refused in one line.
  words[2] = str(out)
  assert main.main(words) == 2
  assert "already has buttons" in capsys.readouterr().err
