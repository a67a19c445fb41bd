"""Tests that worlds with FSQ can be exported, played and evaluated."""

import json

import numpy as np
import pytest

from genie_jax.cli import main
from genie_jax.tokenizing import tokenize
from genie_jax.worlds import export, world_folder
from tests.fixtures import stage_data, tiny_world

SHAPE = (16, 24, 3)  # SSIM needs more than 10 pixels a side.
WORLD = {
  "num_frames": 8,
  "height": 16,
  "width": 24,
  "token_patch": 8,
  "num_codes": 64,
  "num_latent_actions": 6,
  "fps": 15,
}
QUANTIZER = {"tokenizer": {"levels": (4, 16)}, "lam": {"levels": ()}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return stage_data.write_clips(
    tmp_path_factory.mktemp("clips") / "clips", SHAPE
  )


@pytest.fixture(scope="module")
def runs(clips, tmp_path_factory):
  """Workdirs of three stages; the dynamics model's data are new tokens."""
  folder = tmp_path_factory.mktemp("runs")
  for name in ("tokenizer", "lam", "dynamics"):
    fields = {}
    if name in QUANTIZER:
      fields["quantizer"] = {"name": "fsq", **QUANTIZER[name]}
    part = tiny_world.make_part(
      name, quantizer=fields.get("quantizer"), **WORLD
    )
    data = str(clips)
    if name == "dynamics":
      data = str(folder / "tokens")
      tokenize.tokenize(
        clips, data, tokenizer=folder / "tokenizer", lam=folder / "lam"
      )
    tiny_world.write_workdir(
      folder / name,
      name,
      tiny_world.MODELS[name],
      part.params,
      data,
      world={**tiny_world.WORLD, **WORLD},
      **fields,
    )
  return folder


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("worlds") / "world"
  export.export([runs / "dynamics"], folder, dtype="float32")
  return folder


def test_the_world_states_levels_and_stores_no_table(exported):
  parts = json.loads((exported / "config.json").read_text())["parts"]
  assert parts["tokenizer"]["quantizer"] == {"name": "fsq", "levels": [4, 16]}
  assert parts["lam"]["quantizer"] == {"name": "fsq", "levels": [6]}
  assert "quantizer" not in parts["dynamics"]
  stored = world_folder.store.load(exported).parts
  assert "codes" not in stored["tokenizer"].params
  assert "codes" not in stored["lam"].params


@pytest.mark.slow
def test_players_step_past_the_window_and_pixels_depend_on_tokens(exported):
  world = world_folder.load(exported).world
  clip = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
  inferred = world.infer_actions(clip[None])
  assert (
    inferred.shape == (1, 2) and (inferred >= 0).all() and (inferred < 6).all()
  )
  state, seen = world.reset(clip, seed=1), []
  for number in range(9):
    state, frame = world.step(state, number % 6)
    assert frame.shape == SHAPE and frame.dtype == np.uint8
    seen.append(frame)
  assert len(np.unique(np.stack(seen), axis=0)) > 1
  tokens = world.encode(clip[None])
  assert len(np.unique(tokens)) > 1 and tokens.max() < 64
  other = (np.asarray(tokens) + 1) % 64
  assert (world.decode(tokens) != world.decode(other)).any()


@pytest.mark.slow
def test_the_world_can_be_evaluated(exported, clips, tmp_path):
  code = main.main(
    [
      "eval",
      "--world",
      str(exported),
      "--clips",
      str(clips),
      "--out",
      str(tmp_path),
      *("--split", "validation", "--levels", "1", "--num-clips", "4"),
      *("--num-action-clips", "4", "--kmeans-patches", "100"),
    ]
  )
  assert code == 0
  found = json.loads((tmp_path / "metrics.json").read_text())
  assert np.isfinite(found["tokenizer_psnr"])
  assert 0 < found["code_usage"] <= 1 and found["code_perplexity"] > 1
  assert found["details"]["actions"]["codebook"]["num_codes"] == 6
