r"""Platformers latent action model: eight buttons from video alone.

The paper trains it together with the dynamics model (joint.py). Training it
first and freezing it gives the dynamics model the same objective.

After:   a clips folder of 90 x 160 frames at 10 per second
Run:     genie train --config experiments/platformers/lam.py \
             --workdir RUN/lam --config.data.path=CLIPS
Try it:  add `:smoke` (seconds)
Source:  Genie (arXiv:2402.15391), section 2.1
Size:    370M parameters, about 300M in the paper; the attention layers alone
         have 336M
Result:  not measured
"""

import ml_collections

from experiments.coinrun import lam as coinrun
from experiments.platformers import common, dynamics


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  common.check(mode)
  config = coinrun.get_config(mode)
  common.set_world(config, mode)
  if mode == "":
    set_size(config.model)
    # 2.3 GiB and 45.5 ms per step on 256 TPU v5p; with all recomputed, 0.5 GiB
    # and 46.7 ms (`genie plan --topology v5p:4x8x8`).
    config.model.encoder.remat = config.model.decoder.remat = "products"
    config.data.batch_size, config.steps = dynamics.BATCH_SIZE, dynamics.STEPS
  return config


def set_size(model: ml_collections.ConfigDict) -> None:
  """Sets a LAM to its final size, also in the joint config."""
  stack = common.stack(layers=20, width=1024, heads=16)
  model.encoder, model.decoder = stack, dict(stack, window=0)
