"""Tests that the shipped world has the published figures and can be played."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from genie_jax.core import files
from genie_jax.worlds import world_folder

RESULTS = pathlib.Path(__file__).parents[2] / "experiments/coinrun/results"
WORLD = RESULTS / "world"


def test_it_is_the_world_of_the_published_figures():
  manifest = world_folder.read_manifest(WORLD)
  figures = files.read_json(RESULTS / "world.json")
  assert manifest["fingerprint"] == figures["world_fingerprint"]
  assert manifest["metrics"]["delta_psnr"] == figures["delta_psnr"]
  card = (WORLD / "README.md").read_text()
  assert f"| delta psnr | {figures['delta_psnr']:.4g} |" in card
  assert set(manifest["made_by"]) == {"tokenizer", "lam", "dynamics"}
  assert sum(path.stat().st_size for path in WORLD.rglob("*")) < 25e6


def test_its_long_rollouts_reach_the_required_quality():
  found = files.read_json(RESULTS / "world_quality.json")
  world = world_folder.load(WORLD).world
  assert found["world"] == world.fingerprint
  assert found["frames"] == 64
  shipped = dict(
    vars(world.sampling),
    **{f"slide_{name}": value for name, value in vars(world.slide).items()},
  )
  [row] = [row for row in found["rows"] if shipped.items() <= row.items()]
  assert row["delta_4"] >= 0.5
  assert min(row["changed_by_frame"]) > 0 and len(row["changed_by_frame"]) == 8
  assert 0.7 <= row["motion"] <= 1.3
  assert 0.7 <= row["entropy"] <= 1.3


@pytest.mark.parametrize("mode", ["tiny", "small", "world"])
def test_published_figures_follow_the_protocol(mode):
  figures = files.read_json(RESULTS / f"{mode}.json")
  assert figures["meets_protocol"] and figures["split"] == "test"
  assert figures["delta_psnr_low"] > 0.5
  assert figures["action_nmi_low"] > figures["shuffled_nmi_high"]
  assert (
    figures["changed_pixel_psnr"]
    > (figures["copy_last_frame_changed_pixel_psnr"])
  )
  assert figures["code_usage"] > 0.5


def test_its_buttons_change_the_frames():
  world = world_folder.load(WORLD).world
  picture = PIL.Image.open(WORLD / "prompts/00.png").convert("RGB")
  prompt = np.asarray(picture)[None]  # [1, H, W, C]
  last = [
    world.rollout(prompt, np.full(4, action), seed=0)[-1].astype(int)
    for action in (0, 1)
  ]
  # In 8-bit levels, on average over the frame.
  assert np.abs(last[0] - prompt[0].astype(int)).mean() > 1
  assert np.abs(last[0] - last[1]).mean() > 1
