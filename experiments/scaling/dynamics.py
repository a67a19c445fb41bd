r"""Scaling study: dynamics models from 41M to 10.1B on platformers.

The mode is a size as named in the paper: 41M (the default, the smallest), 96M,
192M, 404M, 811M, 1.6B, 2.7B; 2.3B for the study of batch sizes (add
--config.data.batch_size=128, 256 or 448); 10.1B for the final model, with its
own batch size and number of steps.

After:   experiments/platformers/tokenizer.py and lam.py, then
         `genie tokenize`
Run:     genie train --config experiments/scaling/dynamics.py:404M \
             --workdir RUN/404M --config.data.path=TOKENS
Try it:  add `:smoke` (seconds)
Source:  Genie (arXiv:2402.15391), section 3.1, tables 10 and 11: 200,000
         steps of 256 clips, 754B tokens
Size:    `genie scaling table` prints our sizes next to the paper's
Result:  not measured
"""

import ml_collections

from experiments.platformers import dynamics
from genie_jax.scaling import table

MODES = ("", "smoke", *table.SIZES)


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `MODES`."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )
  if mode == "smoke":
    return dynamics.get_config(mode)
  size = table.find(mode or "41M")
  config = dynamics.get_config()
  config.model = table.model(size)
  config.data.batch_size, config.steps = size.batch_size, size.steps
  # The paper's single learning rate, that of the case study, is unchanged;
  # docs/scaling.md has other choices.
  if size.name != dynamics.SIZE.name:
    # The final model's layout for 256 TPU v5p does not suit other rows' chips.
    config.optimizer.accumulate = 1
    config.mesh.update(data=1, fsdp=-1)
  else:
    config.model.transformer.remat = dynamics.REMAT
  return config
