r"""Platformers LAM and dynamics in one step, the paper's schedule.

After:   experiments/platformers/tokenizer.py, then
         `genie tokenize --keep-frames`
Run:     genie train --config experiments/platformers/joint.py \
             --workdir RUN/joint --config.data.path=TOKENS
Try it:  add `:smoke` (seconds)
Source:  Genie (arXiv:2402.15391), section 3
Size:    10.45B parameters; with the tokenizer 10.66B, 10.7B in the paper
Result:  not measured
"""

import ml_collections

from experiments.coinrun import joint as coinrun
from experiments.platformers import common, dynamics, lam
from genie_jax.scaling import table


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  common.check(mode)
  config = coinrun.get_config(mode)
  common.set_world(config, mode)
  config.sampling.temperature = dynamics.TEMPERATURE
  if mode == "":
    lam.set_size(config.model.lam)
    config.model.dynamics = table.model(dynamics.SIZE)
    config.model.dynamics.transformer.remat = dynamics.REMAT
    config.optimizer.accumulate = dynamics.ACCUMULATE
    config.mesh.update(dynamics.MESH)
    config.data.batch_size, config.steps = dynamics.BATCH_SIZE, dynamics.STEPS
  return config
