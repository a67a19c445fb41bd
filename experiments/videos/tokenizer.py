r"""Tokenizer of films: the one of CoinRun on wider frames.

After:   genie data videos --videos FILMS --out DATA --size 80x48
Run:     genie train --config experiments/videos/tokenizer.py:laptop \
             --workdir RUN/tokenizer --init-from RUN/tokenizer_images \
             --config.data.path=DATA
         `genie world` runs this and all other stages.
Try it:  `:smoke` (seconds), `:laptop`, or `:gpu`
Source:  experiments/coinrun/tokenizer.py
Result:  laptop: see results/README.md; gpu: not measured
"""

import ml_collections

from experiments.coinrun import common as coinrun
from experiments.coinrun import tokenizer
from experiments.videos import common


def get_config(mode: str = "laptop") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base(tokenizer, mode)
  # The hero of a film may be anywhere.
  config.centre.weight = 1.0
  if mode == "laptop":
    config.steps = 120
    config.optimizer = coinrun.laptop_adamw(1e-3, config.steps)
  if mode == "gpu":
    config.steps = 10_000
    config.optimizer = coinrun.laptop_adamw(3e-4, config.steps, 500)
  return config
