r"""Tokenizer of films on single frames, before it is trained on clips.

After:   genie data videos --videos FILMS --out DATA --size 80x48
Run:     genie train --config experiments/videos/tokenizer_images.py:laptop \
             --workdir RUN/tokenizer_images --config.data.path=DATA
         `genie world` runs this and all other stages.
Try it:  `:smoke` (seconds), `:laptop`, or `:gpu`
Source:  experiments/coinrun/tokenizer_images.py
Result:  see experiments/videos/tokenizer.py, which starts from these weights
"""

import ml_collections

from experiments.coinrun import tokenizer_images
from experiments.videos import common


def get_config(mode: str = "laptop") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base(tokenizer_images, mode)
  config.centre.weight = 1.0
  return config
