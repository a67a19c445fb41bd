"""Functions that the platformer configs share.

Each config is the CoinRun config of the same name (Genie, appendix F) with
another world and other sizes; only the differences are stated.

Modes:
  ""     the paper's final model
  smoke  a few steps in seconds, to check that everything runs; frames stay
         90 x 160, so that rows are padded as in the full model
"""

import ml_collections

from genie_jax.scaling import table

MODES = ("", "smoke")


def check(mode: str) -> None:
  """Raises ValueError if the configs have no such mode."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )


def set_world(config: ml_collections.ConfigDict, mode: str) -> None:
  """Changes a CoinRun config to the world of the platformers."""
  config.world.update(table.WORLD)
  if mode == "smoke":
    config.world.update(num_frames=4, token_patch=16, num_codes=64)
  else:
    config.data.update(num_workers=8, num_threads=16)
  config.data.num_frames = config.world.num_frames


def stack(layers: int, width: int, heads: int) -> dict:
  """Returns a space-time transformer with heads of 64 channels."""
  return table.stack(layers, width, heads, head_dim=64)
