"""Tests of the names of buttons, from the measurement to the world."""

import pytest

from genie_jax.core import errors, files
from genie_jax.worlds import buttons, world_folder, world_manifest
from tests.fixtures import tiny_world


def measured(number, name, share=0.75):
  return {"button": number, "name": name, "share": share, "interval": [0, 1]}


def test_names_of_the_worlds_own_rollouts_are_preferred():
  clips = {"buttons": [measured(0, "jump"), measured(1, "left")]}
  world = {"buttons": [measured(0, "unclear", None), measured(1, "right")]}
  both = {"details": {"control": clips, "counterfactuals": world}}
  assert buttons.from_metrics(both) == [
    {"button": 1, "name": "right", "share": 0.75, "source": "world"}
  ]
  only = buttons.from_metrics({"details": {"control": clips}})
  assert [row["name"] for row in only] == ["jump", "left"]
  assert {row["source"] for row in only} == {"clips"}
  unclear = {"buttons": [measured(0, "unclear", None)]}
  fallback = {"details": {"control": clips, "counterfactuals": unclear}}
  assert buttons.from_metrics(fallback) == only
  assert buttons.from_metrics({}) == []


def test_an_exported_world_has_the_names(tmp_path):
  named = buttons.from_metrics(
    {"details": {"counterfactuals": {"buttons": [measured(2, "left", 0.5)]}}}
  )
  folder = tiny_world.write_world(tmp_path / "world", buttons=named)
  world = world_folder.load(folder).world
  assert world.buttons[2] == buttons.Button(2, "left", 0.5, "world")
  others = [button for button in world.buttons if button.number != 2]
  assert len(others) == world.num_actions - 1
  assert not any(button.name for button in others)


def test_a_world_without_names_has_nameless_buttons(tmp_path):
  folder = tiny_world.write_world(tmp_path / "world")
  assert "buttons" not in files.read_json(folder / "manifest.json")
  world = world_folder.load(folder).world
  assert world.buttons == buttons.of({}, world.num_actions)


ROW = {"button": 0, "name": "left", "share": 0.5, "source": "world"}


@pytest.mark.parametrize(
  "rows",
  [
    "left",
    ["left"],
    [{**ROW, "button": -1}],
    [{**ROW, "button": True}],
    [{**ROW, "name": ""}],
    [{**ROW, "name": "x" * 25}],
    [{**ROW, "name": "a\nb"}],
    [{**ROW, "share": None}],
    [{**ROW, "share": 1.5}],
    [{**ROW, "source": "hope"}],
    [ROW, ROW],
  ],
)
def test_a_manifest_with_strange_buttons_is_refused(tmp_path, rows):
  folder = tiny_world.write_world(tmp_path / "world")
  manifest = files.read_json(folder / "manifest.json")
  manifest.pop("seal")
  manifest["buttons"] = rows
  manifest["seal"] = world_manifest.seal(manifest)
  files.write_json(folder / "manifest.json", manifest)
  with pytest.raises(errors.UserError, match="does not name buttons") as caught:
    world_manifest.read_manifest(folder)
  assert "\n" not in str(caught.value)
