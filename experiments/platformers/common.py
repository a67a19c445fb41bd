"""What the platformer configs share: how they differ from the case study.

Each is the CoinRun config of the same name (Genie, appendix F) in another
world and in other sizes, so that only what differs is said again.

Modes:
  ""     the paper's final model
  smoke  a few steps in seconds, to see that everything runs; frames stay
         90 x 160, so that rows are padded as in the real one
"""

import ml_collections

from genie_jax.scaling import table

MODES = ("", "smoke")


def check(mode: str) -> None:
  """Raises unless a config has this mode."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )


def set_world(config: ml_collections.ConfigDict, mode: str) -> None:
  """Puts a CoinRun config into the platformers' world."""
  config.world.update(table.WORLD)
  if mode == "smoke":
    config.world.update(num_frames=4, token_patch=16, num_codes=64)
  else:
    config.data.update(num_workers=8, num_threads=16)
  config.data.num_frames = config.world.num_frames


def stack(layers: int, width: int, heads: int) -> dict:
  """Returns a space-time transformer with heads of 64 channels."""
  return table.stack(layers, width, heads, head_dim=64)
