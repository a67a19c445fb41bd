r"""CoinRun LAM and dynamics in one step, the paper's schedule.

After:   experiments/coinrun/tokenizer.py, then `genie tokenize --keep-frames`
Run:     genie train --config experiments/coinrun/joint.py \
             --workdir RUN/joint --config.data.path=TOKENS
Try it:  add `:smoke` (seconds), `:tiny`, `:small` or `:gpu` (one GPU,
         docs/gpu.md)
Source:  Genie (arXiv:2402.15391), appendix F, tables 16 and 17
Result:  not measured; the demo trains the LAM first and then the dynamics
         model with the same objective (lam.py, dynamics.py)
"""

import ml_collections

from experiments.coinrun import common, dynamics, lam


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base("joint", mode)
  pick = lambda **values: common.pick(mode, **values)
  config.model = dict(lam=lam.model(mode), dynamics=dynamics.model(mode))
  config.loss, config.codebook = lam.loss(), common.codebook(mode)
  config.quantizer = common.quantizer()  # Of the LAM.
  config.mask, config.sampling = dynamics.mask(mode), dynamics.sampling(mode)
  config.start = dynamics.start(mode)
  config.z_loss = 0.0  # As in dynamics.py.
  config.data.batch_size = pick(full=36, smoke=4, tiny=8, small=8, gpu=16)
  config.steps = pick(full=200_000, smoke=4, tiny=600, small=3000, gpu=20_000)
  config.optimizer = dynamics.optimizer(mode, config.steps)
  return config
