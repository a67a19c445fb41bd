r"""A miniature of the paper's scaling study, for CPUs, on CoinRun tokens.

The mode of the config is a size, WIDTHxLAYERS. The ladder has eight sizes from
43 thousand to 4.3 million parameters. All see the same number of tokens, 384
steps of 8 clips of 16 frames; the largest is held out, to be predicted from the
others.

After:   a tokenizer and LAM with 8 x 8 tokens of 1024 codes and 8 latent
         actions, then `genie tokenize` into TOKENS, 16 frames a record
Run:     genie scaling ladder experiments/scaling/miniature.py --out OUT \
             --config.data.path=TOKENS
         the held-out size, once `genie scaling fit` has predicted it:
         the same command with --held-out PREDICTION
         one size alone:
         genie train --config experiments/scaling/miniature.py:64x4 \
             --workdir RUN --config.data.path=TOKENS
Try it:  add `:smoke` to the config of `genie train` (seconds)
Source:  Genie (arXiv:2402.15391), section 3.1: the shape of the study, and the
         mean of the last 300 losses. The model is that of the case study
         (appendix F, table 17), smaller; the schedule is warm-up, stable,
         decay (arXiv:2404.06395, arXiv:2405.18392), so that one run serves
         three token counts
Result:  experiments/scaling/results/miniature.json; read docs/scaling.md, "A
         ladder that was run", for what it says and what it does not
"""

import ml_collections

from experiments.coinrun import common

# Width and layers. Heads have 8 channels at every size, because learning rates
# transfer over width only if the width of a head stays the same.
SIZES = {
  "16x2": (16, 2),
  "24x2": (24, 2),
  "32x3": (32, 3),
  "48x3": (48, 3),
  "64x4": (64, 4),
  "80x4": (80, 4),
  "96x4": (96, 4),
  "200x6": (200, 6),
}
MODES = ("", "smoke", *SIZES)
_HEAD_DIM = 8
_STEPS, _BATCH = 384, 8


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of `MODES` ("" is 64x4)."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )
  smoke = mode == "smoke"
  config = common.base("dynamics", "smoke" if smoke else "large")
  width, layers = SIZES["16x2" if smoke else mode or "64x4"]
  config.model = dict(
    actions_enter="add",
    last_frame=False,
    last_frame_reach=0,
    transformer=common.stack(
      "large", layers=layers, width=width, heads=width // _HEAD_DIM
    ),
  )
  config.start = "random"
  # The paper's masks: one rate per clip, uniform in [0.5, 1].
  config.mask = dict(
    per="clip",
    rate="uniform",
    low=0.5,
    high=1.0,
    clean_frame=0.0,
    clean_past=0.0,
    noise=0.0,
  )
  config.sampling = dict(
    refinements=2 if smoke else 8,
    schedule="cosine",
    order="random",
    temperature=1.0,
    choice_temperature=4.5,
  )
  config.data.batch_size = 4 if smoke else _BATCH
  config.steps = 4 if smoke else _STEPS
  config.z_loss = 0.0
  config.optimizer = common.adamw(
    # Only a start: the ladder sweeps three sizes and fits a law to them.
    peak_lr=4e-3,
    end_lr=0.0,
    # A twelfth of the run; cool-downs to fewer steps share it.
    warmup_steps=2 if smoke else 32,
    schedule="wsd",
    decay_steps=1 if smoke else _STEPS // 4,
    # The paper's 0.9 averages ten batches, too few of 8 clips.
    b2=0.95,
    clip_norm=1.0,
    # The rates of the ladder follow a sweep. "completep" transfers that of a
    # base model instead; then use learning_rates=dict(law="constant").
    transfer="none",
    base_width=64,
    base_layers=4,
  )
  if not smoke:
    # 4 divides the 300 updates of the paper's mean loss.
    config.log_every = 4
    # Only at the end: each evaluation also draws previews.
    config.eval_every = _STEPS
    config.eval_batches = 8
    config.held_out_clips = 64
    config.checkpoint_every = 128
  return config


def get_ladder() -> dict:
  """Returns the study; see `genie_jax.scaling.ladder`."""
  fitted = [size for size in SIZES if size != "200x6"]
  return dict(
    config="experiments/scaling/miniature.py",
    decay_share=0.25,
    # Smaller batches need smaller steps (arXiv:2205.10287).
    learning_rates=dict(
      sweep=["sweep", "sweep_small"], law="power", batch_exponent=0.5
    ),
    groups=[
      # A third of the steps: the optimum moves little, the cost is a third.
      dict(
        name="sweep",
        sizes=["16x2", "32x3", "64x4"],
        steps=[128],
        peak_lrs=[1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3],
      ),
      # The best rate of a small model is beyond these.
      dict(
        name="sweep_small",
        sizes=["16x2", "32x3"],
        steps=[128],
        peak_lrs=[64e-3, 128e-3],
      ),
      dict(
        name="rungs",
        role="rung",
        sizes=fitted,
        peak_lrs="law",
        cool_downs=[96, 192],
      ),
      dict(
        name="seeds",
        role="rung",
        sizes=["16x2", "32x3", "48x3"],
        seeds=[1, 2],
        peak_lrs="law",
      ),
      # With the runs of 8 clips, which are among the rungs, three batch sizes,
      # each at the same number of tokens and at the same number of steps.
      dict(
        name="small_batch",
        sizes=["48x3"],
        batch_sizes=[4],
        steps=[384, 768],
        peak_lrs="law",
      ),
      dict(
        name="large_batch",
        sizes=["48x3"],
        batch_sizes=[16],
        steps=[192, 384],
        peak_lrs="law",
      ),
      dict(
        name="held_out",
        role="rung",
        held_out=True,
        sizes=["200x6"],
        peak_lrs="law",
      ),
    ],
  )
