r"""Platformers dynamics: the 10.1B model over 16 frames of 920 tokens.

After:   experiments/platformers/tokenizer.py and lam.py, then
         `genie tokenize`
Run:     genie train --config experiments/platformers/dynamics.py \
             --workdir RUN/dynamics --config.data.path=TOKENS
Try it:  add `:smoke` (seconds)
Source:  Genie (arXiv:2402.15391), section 3: 256 TPU v5p, 942B tokens
Size:    10.08B parameters, 10.1B in the paper (`genie scaling table`)
Result:  not measured
"""

import ml_collections

from experiments.coinrun import dynamics as coinrun
from experiments.platformers import common
from genie_jax.scaling import table

TEMPERATURE = 2.0  # Of the 25 refinements (Genie, section 3).
SIZE = table.find("10.1B")
BATCH_SIZE, STEPS = SIZE.batch_size, SIZE.steps
# With one clip per chip at a time, 256 TPU v5p have memory to save the products
# for the backward pass. Recomputing them would take a quarter of a step; the
# second gathering of the weights takes a fiftieth.
REMAT, ACCUMULATE = "products", 2
# 5120 rows over 64 chips are a multiple of 16, the size of a tile. Over 256
# chips, gathering weights and scattering gradients would copy to fill tiles.
# Each group of 64 chips has all parameters and optimizer state, 1.8 GiB per
# chip.
MESH = dict(data=-1, fsdp=64, tensor=1, frame=1)


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  common.check(mode)
  config = coinrun.get_config(mode)
  common.set_world(config, mode)
  config.sampling.temperature = TEMPERATURE
  if mode == "":
    config.model = table.model(SIZE)
    config.data.batch_size, config.steps = BATCH_SIZE, STEPS
    config.model.transformer.remat = REMAT
    config.optimizer.accumulate = ACCUMULATE
    # 20 minutes of 256 chips are what a failure may cost.
    config.checkpoint_every = 200
    config.mesh.update(MESH)
  return config
