r"""CoinRun tokenizer: space-time VQ-VAE on 64 x 64 frames.

After:   genie data coinrun --out DATA
Run:     genie train --config experiments/coinrun/tokenizer.py \
             --workdir RUN/tokenizer --config.data.path=DATA
         The tiny, small and gpu modes start from the weights of
         experiments/coinrun/tokenizer_images.py: add
         --init-from RUN/tokenizer_images
Try it:  add `:smoke` (seconds), `:tiny` (for the demo), `:small`, or `:gpu`
         (one GPU, docs/gpu.md)
Source:  Genie (arXiv:2402.15391), appendix F, table 15
Result:  PSNR on 60 held-out levels, two CPU cores, both stages together: tiny
         26.5 dB after 6.6 minutes (k-means 24.6 dB), small 28.5 dB after 28
         minutes (k-means 25.2 dB) (results/); full size and gpu: not measured
"""

import ml_collections

from experiments.coinrun import common


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base("tokenizer", mode)
  pick = lambda **values: common.pick(mode, **values)
  stack = pick(
    full=dict(layers=8, width=512, heads=8),
    smoke=dict(layers=1, width=32, heads=2),
    tiny=dict(layers=2, width=128, heads=4),
    small=dict(layers=3, width=128, heads=4),
    gpu=dict(layers=6, width=384, heads=6),
  )
  # All modes but the paper's start as a transform codec, which training
  # improves.
  short = dict(final_norm=False, residual_scale=0.0) if mode else {}
  config.model = dict(
    code_dim=pick(full=32, smoke=8, tiny=64, small=64, gpu=32),
    unit_norm=mode == "",
    start="cosine" if mode else "random",
    output="linear" if mode else "sigmoid",
    encoder=dict(common.stack(mode, **stack), **short),
    decoder=dict(common.stack(mode, **stack), **short),
  )
  # The paper does not state the weights. Squared errors of pixels in [0, 1] are
  # about 0.004 at 24 dB. Distances on the sphere are about 0.1; distances of
  # cosine coefficients are the squared error of a whole patch: about 3 for the
  # 8 x 8 pixels of the short modes, and a quarter for the 4 x 4 of gpu.
  config.loss = dict(
    squared_error=100.0,
    codebook=1.0 if mode == "" else 0.0,
    commitment=pick(full=0.25, smoke=0.02, tiny=0.02, small=0.02, gpu=0.08),
  )
  # The hero is in the middle of the frame, and about five pixels wide.
  config.centre = dict(side=12, weight=3.0 if mode == "large" else 1.0)
  config.quantizer = common.quantizer()
  config.codebook = common.codebook(mode)
  config.data.batch_size = pick(
    full=48, smoke=4, tiny=4, small=4, large=2, gpu=16
  )
  config.data.num_frames = config.world.num_frames
  config.steps = pick(
    full=300_000, smoke=4, tiny=300, small=1200, large=1200, gpu=15_000
  )
  config.optimizer = common.laptop_adamw(1e-3, config.steps)
  if mode == "gpu":
    config.optimizer = common.laptop_adamw(3e-4, config.steps, warmup_steps=500)
  if mode == "":
    config.optimizer = common.adamw()
  return config
