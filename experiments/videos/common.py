"""What the configs for films change of those for CoinRun.

Modes:
  smoke   a few steps in seconds, to check that everything runs
  laptop  all stages within an hour on two CPU cores (docs/own_videos.md)
  gpu     one GPU with 24 GB and about eight hours; planned and not measured

The models, losses and optimizers are those of experiments/coinrun in the modes
smoke, tiny and gpu. What differs is the shape of the frames: films are wider
than high, at 10 frames per second. With 80 x 48 pixels and patches of 8, a
frame has 60 tokens, about as many as CoinRun's 64 in the mode tiny.
"""

import types
from collections.abc import Mapping

import ml_collections

MODES = ("laptop", "gpu", "smoke")
_COINRUN: Mapping[str, str] = {"laptop": "tiny", "gpu": "gpu", "smoke": "smoke"}

# Frames per second of the clips that `genie data videos` cuts by default.
FPS = 10
# Width and height, multiples of the patches: 8 pixels, in gpu 4, in smoke 16.
SIZES = {"laptop": (80, 48), "gpu": (96, 56), "smoke": (80, 48)}


def base(module: types.ModuleType, mode: str) -> ml_collections.ConfigDict:
  """Returns a CoinRun config with the frames of films.

  Args:
    module: A config of experiments/coinrun.
    mode: One of `MODES`.

  Raises:
    ValueError: There is no such mode.
  """
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )
  config = module.get_config(_COINRUN[mode])
  config.world.width, config.world.height = SIZES[mode]
  config.world.fps = FPS
  return config
