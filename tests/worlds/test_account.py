"""Tests of the training record and the figures in a world's folder."""

import json

import pytest

from genie_jax.cli import main
from genie_jax.core import files
from genie_jax.data import manifest as manifest_lib
from genie_jax.worlds import trained_models, world_folder
from tests.fixtures import tiny_world


@pytest.fixture
def world(tmp_path, parts, clips):
  """A world with figures, whose tokenizer was trained in two runs."""
  workdir = lambda name, stage, data, **fields: tiny_world.write_workdir(
    tmp_path / name,
    stage,
    tiny_world.MODELS[stage],
    parts[stage].params,
    data,
    "true",
    **fields,
  )
  first = workdir("first", "tokenizer", str(clips))
  files.write_json(
    first / "config.json",
    {
      "stage": "tokenizer",
      "seed": 0,
      "steps": 7,
      "optimizer": {},
      "init_from": "",
      "data": {
        "path": "gone",
        "split": "train",
        "batch_size": 2,
        "num_frames": 4,
      },
    },
  )
  second = workdir(
    "second", "tokenizer", str(clips), steps=1234, init_from=str(first)
  )
  dynamics = workdir("dynamics", "dynamics", "")
  metrics = tmp_path / "metrics.json"
  files.write_json(
    metrics,
    {
      "schema_version": 1,
      "delta_psnr": 1.2345,
      "code_usage": 0.5,
      "meets_protocol": True,
      "command": "genie eval --world /home/a/w --clips runs/clips --seed 0",
      "details": {"much": list(range(100))},
    },
  )
  out = tmp_path / "world"
  assert (
    main.main(
      [
        "export",
        "--workdir",
        str(second),
        "--workdir",
        str(dynamics),
        "--metrics",
        str(metrics),
        "--out",
        str(out),
      ]
    )
    == 0
  )
  return out


def test_a_world_states_the_given_figures(world):
  manifest = world_folder.read_manifest(world)
  assert manifest["metrics"]["delta_psnr"] == 1.2345
  assert "details" not in manifest["metrics"]
  # Folders of the machine that made the world are not passed on.
  assert manifest["metrics"]["command"] == (
    "genie eval --world w --clips runs/clips --seed 0"
  )
  card = (world / "README.md").read_text()
  assert "| delta psnr | 1.234 |" in card or "| delta psnr | 1.235 |" in card
  assert "schema version" not in card and "meets" not in card


def test_a_world_states_every_run_that_made_a_model(world, clips, tmp_path):
  account = world_folder.read_manifest(world)["made_by"]["tokenizer"]
  assert account["steps"] == 1234 and account["batch_size"] == 2
  wanted = manifest_lib.Manifest.read(clips)
  assert account["data"] == {
    "name": "noise",
    "kind": "clips",
    "fingerprint": wanted.fingerprint,
    "frames": 75,
    "sources": 3,
  }
  assert account["started_from"]["steps"] == 7
  assert "data" not in account["started_from"]  # Its clips do not exist.
  rows = [
    line
    for line in (world / "README.md").read_text().splitlines()
    if line.startswith("| tokenizer |")
  ]
  assert [row.split("|")[2].strip() for row in rows[1:]] == ["7", "1,234"]
  assert "75 frames of 3 sources of noise" in rows[2]
  assert str(tmp_path) not in json.dumps(world_folder.read_manifest(world))


def test_a_copy_of_a_world_and_runs_that_start_from_it_keep_the_record(
  world, parts, tmp_path
):
  record = world_folder.read_manifest(world)["made_by"]
  copy = tmp_path / "copy"
  words = ["--workdir", str(world), "--dtype", "int8", "--out", str(copy)]
  assert main.main(["export", *words]) == 0
  assert world_folder.read_manifest(copy)["made_by"] == record
  # A run may start from the weights of a world.
  again = tiny_world.write_workdir(
    tmp_path / "again",
    "dynamics",
    tiny_world.MODELS["dynamics"],
    parts["dynamics"].params,
    "",
    "true",
    init_from=str(world),
  )
  found = trained_models.read(again).records["dynamics"]
  assert found["started_from"] == record["dynamics"]
