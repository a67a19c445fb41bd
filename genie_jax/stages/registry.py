"""Stages and their data by the name in `config.stage`."""

from collections.abc import Callable
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.data import sources
from genie_jax.models import build
from genie_jax.stages import dynamics, joint, lam, tokenizer
from genie_jax.train import stage

_MAKERS: dict[str, Callable[[ml_collections.ConfigDict], stage.Stage]] = {
  "tokenizer": tokenizer.make,
  "lam": lam.make,
  "dynamics": dynamics.make,
  "joint": joint.make,
}


def make(config: ml_collections.ConfigDict) -> stage.Stage:
  """Builds the stage that a config names.

  Raises:
    UserError: There is no such stage, or its config does not make sense.
  """
  if config.stage not in _MAKERS:
    raise errors.UserError(
      f"config.stage={config.stage!r} is unknown"
      f"{errors.closest(config.stage, _MAKERS)}; use one of "
      f"{', '.join(_MAKERS)}."
    )
  return _MAKERS[config.stage](config)


def source(config: ml_collections.ConfigDict, split: str) -> Any:
  """Opens one split of the data that a config's stage reads.

  The manifest is checked against `config.world` first.

  Args:
    config: A training config.
    split: "train", "validation" or "test".

  Raises:
    UserError: No data path, a folder of another kind, or a manifest that
      does not fit the config.
  """
  data, world = config.data, config.world
  if not data.path:
    raise errors.UserError(
      "config.data.path is empty; give the folder of the data with "
      "--config.data.path=DIR."
    )
  frame = [world.height, world.width, world.channels]
  if config.stage in ("tokenizer", "lam"):
    opened = sources.WindowSource(
      data.path, split, data.num_frames, data.stride, keys=("frames",)
    )
    opened.manifest.check({"frame_shape": frame})
    return opened
  keys = (
    ("tokens", "frames")
    if config.stage == "joint"
    else ("tokens", dynamics.ACTIONS[config.actions])
  )
  opened = sources.TokenSource(
    data.path,
    split,
    data.num_frames,
    keys,
    merge_aliases=config.actions == "true",
  )
  wanted = {
    "frame_shape": frame,
    "token_grid": list(build.token_grid(world)),
    "num_codes": world.num_codes,
  }
  if config.stage == "dynamics":
    which = {"latent": "num_latent_actions", "true": "num_actions"}
    wanted[which[config.actions]] = world.num_latent_actions
  opened.manifest.check(wanted)
  return opened
