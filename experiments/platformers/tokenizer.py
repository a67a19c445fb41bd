r"""Platformers tokenizer: 90 x 160 frames to 23 x 40 tokens.

After:   a clips folder of 90 x 160 frames at 10 per second
Run:     genie train --config experiments/platformers/tokenizer.py \
             --workdir RUN/tokenizer --config.data.path=CLIPS
Try it:  add `:smoke` (seconds)
Source:  Genie (arXiv:2402.15391), section 2.1; its PSNR is 36.5 dB at this
         batch size
Size:    212M parameters, about 200M in the paper
Result:  not measured
"""

import ml_collections

from experiments.coinrun import tokenizer as coinrun
from experiments.platformers import common

# Three clips per chip on 128 TPU v5p: saving the products takes 28 GiB and
# 0.52 s per step, recomputing all 5 GiB and 0.55 s, and saving everything
# 59 GiB and, due to memory traffic, 0.62 s (`genie plan --topology v5p:4x4x8`).
REMAT = "products"


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  common.check(mode)
  config = coinrun.get_config(mode)
  common.set_world(config, mode)
  if mode == "":
    config.model.encoder = common.stack(layers=12, width=512, heads=8)
    config.model.decoder = common.stack(layers=20, width=1024, heads=16)
    config.model.encoder.remat = config.model.decoder.remat = REMAT
    config.data.batch_size = 384
  return config
