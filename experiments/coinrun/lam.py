r"""CoinRun latent action model: buttons from video alone.

After:   genie data procgen --game coinrun --policy walker --states --out DATA
         (the paper's case study: genie data coinrun --out DATA)
Run:     genie train --config experiments/coinrun/lam.py \
             --workdir RUN/lam --config.data.path=DATA
Try it:  add `:smoke` (seconds), `:tiny` (for the demo), `:small`, or `:gpu`
         (one GPU, docs/gpu.md)
Source:  Genie (arXiv:2402.15391), appendix F, table 16
Result:  tiny, walker, after 4 minutes: left, right and jump among the eight
         codes (docs/lam.md); full size and gpu: not measured
"""

import ml_collections

from experiments.coinrun import common


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base("lam", mode)
  pick = lambda **values: common.pick(mode, **values)
  config.model = model(mode)
  config.loss, config.codebook = loss(), common.codebook(mode)
  # The squared error is divided by that of copying the frame plus this value,
  # or not at all if it is 0. Otherwise falls, which change many pixels, get
  # most of the codes (docs/lam.md).
  config.copy_floor = pick(
    full=0.0, smoke=0.001, tiny=0.001, small=0.001, gpu=0.001
  )
  if config.copy_floor:
    config.loss["squared_error"] = 0.8
  config.quantizer = common.quantizer()
  # With a positive weight, this share of the transitions has true keys in the
  # loss: no longer unsupervised. See genie_jax/stages/labels.py.
  config.labels = dict(weight=0.0, share=0.025)
  # A code of gpu depends on 8 frames (`Lam.context`): six layers of attention
  # over two frames reach seven, and comparing frames reaches one more.
  config.data.batch_size = pick(full=36, smoke=4, tiny=14, small=14, gpu=64)
  config.data.num_frames = pick(full=16, smoke=4, tiny=8, small=8, gpu=8)
  config.steps = pick(full=200_000, smoke=4, tiny=500, small=1000, gpu=15_000)
  config.optimizer = common.laptop_muon(1e-3, config.steps)
  if mode == "gpu":
    config.optimizer = common.laptop_muon(
      2.5e-4, config.steps, warmup_steps=500
    )
  if mode == "":
    config.optimizer = common.adamw(
      peak_lr=3e-5, end_lr=3e-6, warmup_steps=5_000
    )
  return config


def model(mode: str) -> dict:
  """Returns the model's fields, also for the joint config."""
  pick = lambda **values: common.pick(mode, **values)
  stack = common.stack(
    mode,
    **pick(
      full=dict(layers=8, width=512, heads=8),
      smoke=dict(layers=1, width=32, heads=2),
      tiny=dict(layers=2, width=96, heads=3),
      small=dict(layers=2, width=96, heads=3),
      gpu=dict(layers=6, width=384, heads=6),
    ),
  )
  full = mode == ""
  return dict(
    # At half resolution, four pixels are about the size of CoinRun's hero.
    patch=pick(full=16, smoke=8, tiny=8, small=8, gpu=4),
    # In short runs, a plain LAM ignores its actions for a long time. With a
    # smaller image and shifted frames, the codes become directions of motion
    # within 500 steps (docs/lam.md).
    shrink=1 if full else 2,
    predict="frame" if full else "shift",
    match=not full,
    reach=(0, 0) if full else (4, 2),
    code_dim=pick(full=32, smoke=8, tiny=16, small=16, gpu=16),
    unit_norm=True,
    actions_enter="add",
    # With a window, a code does not depend on where the clip was cut. The
    # decoder sees all frames before, so that a code need only say what is new.
    encoder=dict(stack, window=0 if full else 2),
    decoder=dict(stack, window=0),
  )


def loss() -> dict:
  """Returns the weights of VQ-VAE's losses, which the paper does not state."""
  return dict(squared_error=100.0, codebook=1.0, commitment=0.25)
