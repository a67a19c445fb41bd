r"""Dynamics of films: the next frame from tokens and latent actions.

After:   experiments/videos/tokenizer.py and lam.py, then `genie tokenize`
Run:     genie train --config experiments/videos/dynamics.py:laptop \
             --workdir RUN/dynamics --config.data.path=TOKENS
         `genie world` runs this and all other stages.
Try it:  `:smoke` (seconds), `:laptop`, or `:gpu`
Source:  experiments/coinrun/dynamics.py
Result:  laptop: see results/README.md; gpu: not measured
"""

import ml_collections

from experiments.coinrun import dynamics
from experiments.videos import common


def get_config(mode: str = "laptop") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base(dynamics, mode)
  if mode == "laptop":
    config.steps = 700
    config.optimizer = dynamics.optimizer("tiny", config.steps)
  if mode == "gpu":
    config.steps = 14_000
    config.optimizer = dynamics.optimizer("gpu", config.steps)
  return config
