"""The world in the tree: it is the one that was measured, and it plays."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from genie_jax.core import files
from genie_jax.infer import bundle

RESULTS = pathlib.Path(__file__).parents[2] / "experiments/coinrun/results"
WORLD = RESULTS / "small/world"


def test_it_is_the_world_of_the_stated_figures():
  manifest = bundle.read_manifest(WORLD)
  assert manifest["fingerprint"] == files.read_json(
      RESULTS / "small.json")["world_fingerprint"]


@pytest.mark.parametrize("mode", ["tiny", "small"])
def test_stated_figures_follow_the_protocol(mode):
  figures = files.read_json(RESULTS / f"{mode}.json")
  assert figures["meets_protocol"] and figures["split"] == "test"
  assert figures["delta_psnr_low"] > 0.3
  assert figures["action_nmi_low"] > figures["shuffled_nmi_high"]
  assert figures["changed_pixel_psnr"] > (
      figures["copy_last_frame_changed_pixel_psnr"])
  assert figures["code_usage"] > 0.5


def test_its_buttons_move_the_picture():
  world = bundle.load(WORLD).world
  picture = PIL.Image.open(WORLD / "prompts/00.png").convert("RGB")
  prompt = np.asarray(picture)[None]  # [1, H, W, C]
  last = [
      world.rollout(prompt, np.full(4, action), seed=0)[-1].astype(int)
      for action in (0, 1)]
  # In 8-bit levels, on average over the frame.
  assert np.abs(last[0] - prompt[0].astype(int)).mean() > 1
  assert np.abs(last[0] - last[1]).mean() > 1
