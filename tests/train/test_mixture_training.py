"""Tests training on a mixture of two data sets, through the commands."""

import json
import pathlib
import shutil

import pytest

from genie_jax.cli import main
from genie_jax.core import config as config_lib
from tests.fixtures import stage_data

CONFIG = f"{pathlib.Path(__file__).parents[2]}/experiments/coinrun/dynamics.py"
SHAPE = (64, 64, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two token folders of one tokenizer; their records differ in length."""
  root = tmp_path_factory.mktemp("mixed")
  tokenizer = stage_data.random_part(
    "tokenizer",
    config_lib.load(CONFIG.replace("dynamics", "tokenizer") + ":smoke", ()),
  )
  for name, frames in (("one", 8), ("two", 12)):
    stage_data.write_tokens(
      root / name,
      SHAPE,
      grid=(4, 4),
      num_codes=64,
      num_frames=frames,
      tokenizer=tokenizer,
    )
  stage_data.write_clips(root / "clips", SHAPE)
  return root


FLAGS = (
  "--config.data.batch_size=8",
  "--config.actions=true",
  "--config.world.num_latent_actions=15",
  "--config.start=random",
  # A test of evaluations would compile as much again.
  "--config.eval_batches=0",
  "--config.held_out_clips=0",
)


def train(run, mixture, *flags):
  return main.main(
    ["train", "--config", f"{CONFIG}:smoke", "--workdir", str(run)]
    + [f"--config.data.mixture={mixture!r}", *FLAGS, *flags]
  )


@pytest.mark.slow
def test_a_run_on_a_mixture_resumes_and_its_world_names_the_sets(
  folders, tmp_path, capsys
):
  run, one, two = f"{tmp_path}/run", f"{folders}/one", f"{folders}/two"
  assert train(run, ((one, 3.0), (two, 1)), "--config.steps=2") == 0
  capsys.readouterr()
  assert train(run, ((one, 1.0), (two, 1.0))) == 2
  assert "data of fingerprint" in capsys.readouterr().err
  moved = str(tmp_path / "moved")
  shutil.copytree(two, moved)
  assert train(run, ((one, 6.0), (moved, 2.0))) == 0
  assert "trained to step 4" in capsys.readouterr().out
  world = tmp_path / "world"
  assert (
    main.main(
      ["export", "--workdir", run, "--out", str(world)]
      + ["--prompts", str(folders / "clips")]
    )
    == 0
  )
  made_by = json.loads((world / "manifest.json").read_text())["made_by"]
  data = made_by["dynamics"]["data"]
  assert data["sources"] == 4 and data["frames"] == 2 * 4 * (8 + 12)
  assert [entry["weight"] for entry in data["mixture"]] == [6.0, 2.0]
  assert "of squares and squares" in (world / "README.md").read_text()


def test_a_mixture_that_cannot_be_is_one_line(folders, tmp_path, capsys):
  one = str(folders / "one")
  for mixture, flags, words in (
    (((one, 0.0),), (), "but must be a finite number of more than 0"),
    (((one, 1.0),), (f"--config.data.path={one}",), "give one of them"),
    (((one, 1.0), (f"{one}/none", 1.0)), (), "none/manifest.json does not"),
  ):
    assert train(tmp_path / "run", mixture, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
  assert not (tmp_path / "run").exists()
