r"""CoinRun dynamics: MaskGIT over 16 frames of 16 x 16 tokens.

After:   experiments/coinrun/tokenizer.py and lam.py, then `genie tokenize`
Run:     genie train --config experiments/coinrun/dynamics.py \
             --workdir RUN/dynamics --config.data.path=TOKENS
Try it:  add `:smoke` (seconds), `:tiny` (for the demo), `:small`, or `:gpu`
         (one GPU, docs/gpu.md); add --config.actions=true
         --config.world.num_latent_actions=15 for the same model on true
         actions
Source:  Genie (arXiv:2402.15391), appendix F, table 17
Result:  on random keys with six latent actions, delta_4 PSNR on 60 held-out
         levels, two CPU cores: tiny 2.41 dB (2.00 to 2.83) after 6 minutes,
         small 5.57 dB (4.92 to 6.26) after 14 (results/); full size and gpu:
         not measured
"""

import ml_collections

from experiments.coinrun import common


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `common.MODES`."""
  config = common.base("dynamics", mode)
  pick = lambda **values: common.pick(mode, **values)
  config.model = model(mode)
  config.mask, config.sampling = mask(mode), sampling(mode)
  config.start = start(mode)
  # Weight of the squared logarithm of the softmax's sum; the paper has none.
  config.z_loss = 0.0
  # Fewest and most transitions of a press of "jump" in training; () for the
  # length in the records.
  config.press_frames = ()
  config.data.batch_size = pick(
    full=36, smoke=4, tiny=8, small=8, large=4, gpu=16
  )
  config.steps = pick(
    full=200_000, smoke=4, tiny=1200, small=1800, large=3500, gpu=20_000
  )
  config.optimizer = optimizer(mode, config.steps)
  return config


def start(mode: str) -> str:
  """Returns how embeddings are initialised, also for the joint config."""
  return "codebook" if mode else "random"


def model(mode: str) -> dict:
  """Returns the model's fields, also for the joint config."""
  return dict(
    actions_enter="add",
    last_frame=mode != "",
    last_frame_reach=0 if mode == "" else 1,
    transformer=common.stack(
      mode,
      **common.pick(
        mode,
        full=dict(layers=12, width=512, heads=8),
        smoke=dict(layers=1, width=32, heads=2),
        tiny=dict(layers=4, width=128, heads=4),
        small=dict(layers=4, width=128, heads=4),
        large=dict(layers=4, width=160, heads=5),
        gpu=dict(layers=10, width=512, heads=8),
      ),
    ),
  )


def mask(mode: str) -> dict:
  """Returns how training hides tokens.

  With the paper's single uniform rate per clip, the model never sees a past
  without hidden tokens, although the past is always complete when it is played.
  The other modes draw one rate per frame, including low rates and complete
  frames. docs/sampling.md compares both.
  """
  if mode == "":
    return dict(
      per="clip",
      rate="uniform",
      low=0.5,
      high=1.0,
      clean_frame=0.0,
      clean_past=0.0,
      noise=0.0,
    )
  return dict(
    per="frame",
    rate="cosine",
    low=0.0,
    high=1.0,
    clean_frame=0.2,
    clean_past=0.0,
    # Keeps long rollouts together at temperature 1 (docs/worlds.md).
    noise=0.3,
  )


def sampling(mode: str) -> dict:
  """Returns the sampler (Genie, appendix F: 25 steps at temperature 1.0)."""
  return dict(
    refinements=common.pick(mode, full=25, smoke=2, tiny=8, small=8, gpu=16),
    schedule="cosine",
    order="random",
    # At a lower temperature the hero often stays where he is (docs/worlds.md).
    temperature=1.0,
    choice_temperature=4.5,
  )


def optimizer(mode: str, steps: int) -> dict:
  """Returns the optimizer, also for the joint config."""
  if mode == "":
    return common.adamw(peak_lr=3e-5, end_lr=3e-6, warmup_steps=5_000)
  if mode == "gpu":
    return common.laptop_muon(2e-3, steps, warmup_steps=500)
  return common.laptop_muon(8e-3, steps)
