r"""Latent action model of films: buttons from video alone.

After:   genie data videos --videos FILMS --out DATA --size 80x48
Run:     genie train --config experiments/videos/lam.py:laptop \
             --workdir RUN/lam --config.data.path=DATA
         `genie world` runs this and all other stages.
Try it:  `:smoke` (seconds), `:laptop`, or `:gpu`
Source:  experiments/coinrun/lam.py; its codes explain how the picture moves
Result:  laptop: see results/README.md; gpu: not measured
"""

import ml_collections

from experiments.coinrun import common as coinrun
from experiments.coinrun import lam
from experiments.videos import common


def get_config(mode: str = "laptop") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base(lam, mode)
  if mode == "laptop":
    # Codes become directions of motion late (docs/lam.md).
    config.steps = 600
    config.optimizer = coinrun.laptop_muon(1e-3, config.steps)
  if mode == "gpu":
    config.steps = 12_000
    config.optimizer = coinrun.laptop_muon(2.5e-4, config.steps, 500)
  return config
