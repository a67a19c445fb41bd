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
# One clip a chip at a time leaves room on 256 TPU v5p to keep what the
# backward pass needs: recomputing it would take a quarter of a step, the
# second gathering of the weights takes a fiftieth.
REMAT, ACCUMULATE = "products", 2
# 5120 rows over 64 chips are whole tiles of 16; over 256 chips each gathering
# of weights and scattering of gradients would copy to fill tiles. What 64
# chips hold of parameters and optimizer, 1.8 GiB each, the others repeat.
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
    config.mesh.update(MESH)
  return config
