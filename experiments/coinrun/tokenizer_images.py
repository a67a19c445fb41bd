r"""CoinRun tokenizer on single frames, before it is trained on clips.

After:   genie data coinrun --out DATA
Run:     genie train --config experiments/coinrun/tokenizer_images.py:tiny \
             --workdir RUN/tokenizer_images --config.data.path=DATA
Try it:  `:smoke` (seconds), `:tiny` (for the demo), `:small`, or `:gpu` (one
         GPU, docs/gpu.md)
Source:  Differs from the paper, which trains on clips from the start: 32 single
         frames of 32 clips vary much more than the 32 frames of four clips.
         Other video tokenizers also start from images (Phenaki,
         arXiv:2210.02399; MAGVIT, arXiv:2212.05199).
Result:  see experiments/coinrun/tokenizer.py, which starts from these weights
"""

import ml_collections

from experiments.coinrun import common, tokenizer

MODES = ("tiny", "smoke", "small", "large", "gpu")


def get_config(mode: str = "tiny") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of MODES."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )
  config = tokenizer.get_config(mode)
  config.data.num_frames = 1
  pick = lambda **values: common.pick(mode, **values)
  config.data.batch_size = pick(smoke=8, tiny=32, small=32, gpu=256)
  config.steps = pick(smoke=4, tiny=800, small=4000, large=3500, gpu=4000)
  config.optimizer = common.laptop_muon(4e-3, config.steps)
  if mode == "gpu":
    config.optimizer = common.laptop_muon(
      1.3e-3, config.steps, warmup_steps=500
    )
  return config
