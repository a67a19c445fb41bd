"""Fields that the CoinRun configs share: worlds, loops and optimizers by mode.

Modes:
  ""     the paper's full case study (Genie, appendix F, tables 15 to 17)
  smoke  a few steps in seconds, to check that everything runs
  tiny   `make demo`: all stages within 25 minutes on two CPU cores
  small  within 75 minutes on two CPU cores
  large  a few hours on one or two CPU cores (docs/worlds.md)
  gpu    planned for one GPU with 24 GB and about eight hours; not measured
         (docs/gpu.md)

The mode gpu has the recipe of smoke, tiny, small and large, the "short modes",
with the frames and tokens of the paper, wider models and bfloat16. Its learning
rates are those of small, times the width of small's model over its own.
"""

import ml_collections

MODES = ("", "smoke", "tiny", "small", "large", "gpu")
_ON_CPU = ("smoke", "tiny", "small", "large")


def check(mode: str) -> None:
  """Raises ValueError if the configs have no such mode."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )


def pick(mode: str, **values):
  """Returns the value of a mode; "full" is that of the mode "".

  A value that is not given for `large` is that of `small`.
  """
  if mode == "large" and mode not in values:
    mode = "small"
  return values[mode or "full"]


def base(stage: str, mode: str) -> ml_collections.ConfigDict:
  """Returns the fields of all stages with their defaults for a mode."""
  check(mode)
  config = ml_collections.ConfigDict()
  config.stage = stage
  config.seed = 0
  config.actions = "latent"
  config.init_from = ""
  laptop = dict(
    num_frames=8,
    height=64,
    width=64,
    channels=3,
    fps=15,
    token_patch=8,
    num_codes=1024,
    # The paper's case study has 6; with 8, more codes are left for left and
    # right when some describe jumps and falls (docs/lam.md).
    num_latent_actions=8,
  )
  # 15 frames per second is procgen's own rate; the paper does not state one.
  config.world = pick(
    mode,
    full=dict(
      num_frames=16,
      height=64,
      width=64,
      channels=3,
      fps=15,
      token_patch=4,
      num_codes=1024,
      num_latent_actions=6,
    ),
    smoke=dict(laptop, token_patch=16, num_codes=64),
    tiny=laptop,
    small=laptop,
    large=dict(laptop, num_frames=16),
    # Frames and tokens of the paper, buttons of the short modes.
    gpu=dict(laptop, num_frames=16, token_patch=4),
  )
  config.data = dict(
    path="",
    # Several folders instead of one path: ((folder, weight), ...).
    mixture=(),
    split="train",
    eval_split="validation",
    batch_size=4,
    num_frames=config.world.num_frames,
    stride=1,
    num_workers=0,
    num_threads=1,
  )
  config.mesh = dict(data=1, fsdp=-1, tensor=1, frame=1)
  config.steps = 4
  config.log_every = pick(mode, full=100, smoke=1, tiny=25, small=50, gpu=100)
  config.eval_every = pick(
    mode, full=5000, smoke=2, tiny=400, small=1000, gpu=2000
  )
  config.eval_batches = pick(mode, full=16, smoke=1, tiny=4, small=8, gpu=16)
  # Clips of the held-out loss by which runs are compared, at most all of the
  # evaluation split; 0 for none.
  config.held_out_clips = pick(
    mode, full=256, smoke=2, tiny=32, small=64, gpu=256
  )
  config.checkpoint_every = pick(
    mode, full=1000, smoke=2, tiny=200, small=500, gpu=1000
  )
  # A run of one process also saves after this time; 0 for steps only.
  config.checkpoint_minutes = 10.0
  # Between checkpoints, runs with several replicas of the state also save it in
  # this folder of each host after so many steps; 0 for never.
  config.emergency_every = 0
  config.emergency_folder = ""
  config.keep_checkpoints = 2
  # These checkpoints are never deleted, for later analysis; 0 for none.
  config.keep_every = pick(mode, full=25_000, smoke=0, tiny=0, small=0, gpu=0)
  # A step, save or evaluation that lasts longer ends the process (unless ten
  # times the median is longer still); 0 turns this off.
  config.watchdog_seconds = 600.0
  return config


def adamw(**changes) -> dict:
  """Returns the paper's optimizer (appendix F) with some fields changed."""
  fields = dict(
    name="adamw",
    peak_lr=3e-4,
    end_lr=3e-4,
    warmup_steps=10_000,
    schedule="cosine",
    decay_steps=0,
    b1=0.9,
    b2=0.9,
    eps=1e-8,
    weight_decay=1e-4,
    # The paper states none of the following. Without clipping, and with one
    # non-finite gradient that ends the run, weeks on hundreds of chips depend
    # on no batch being odd; these two are what runs of this size need.
    clip_norm=1.0,
    max_skipped=10,
    # These are off.
    clip_outliers=0.0,
    clip_update_rms=0.0,
    no_decay=[],
    accumulate=1,
    mu_dtype="float32",
    momentum=0.95,
    transfer="none",
    base_width=0,
    base_layers=0,
  )
  unknown = set(changes) - set(fields)
  if unknown:
    raise ValueError(f"The optimizer has no field {sorted(unknown)}.")
  return dict(fields, **changes)


def laptop_adamw(peak_lr: float, steps: int, warmup_steps: int = 50) -> dict:
  """Returns AdamW for the short modes and the mode gpu."""
  return adamw(
    peak_lr=peak_lr,
    end_lr=peak_lr / 20,
    warmup_steps=min(warmup_steps, steps // 4),
    b2=0.95,
    max_skipped=0,
  )


def laptop_muon(peak_lr: float, steps: int, warmup_steps: int = 50) -> dict:
  """Returns Muon for short runs; it needs half of AdamW's steps for a loss."""
  return dict(laptop_adamw(peak_lr, steps, warmup_steps), name="muon")


def stack(mode: str, *, layers: int, width: int, heads: int) -> dict:
  """Returns fields of a space-time transformer; its MLP has 4 times the width.

  On CPUs float32 is faster than bfloat16. With the laptop sizes, unrolling the
  layers and recomputing nothing makes a tokenizer's step a tenth shorter, and
  does not change the time of a dynamics model's step.
  """
  on_cpu = mode in _ON_CPU
  return dict(
    num_layers=layers,
    width=width,
    num_heads=heads,
    head_dim=width // heads,
    mlp_dim=4 * width,
    remat="none" if on_cpu else "full",
    dtype="float32" if on_cpu else "bfloat16",
    unroll=layers if on_cpu else 1,
  )


def quantizer() -> dict:
  """Returns the quantizer, which turns vectors into codes.

  "vq" is the paper's. "fsq" uses `levels`, whose product is the number of
  codes; if `levels` is empty, it chooses them. See docs/quantizers.md.
  """
  return dict(name="vq", levels=())


def codebook(mode: str) -> dict:
  """Returns how codebooks learn and when a code counts as dead.

  The quantizer "fsq" reads only `share_decay`.

  The paper uses the plain objective ("gradient") and does not mention dead
  codes; here they are reset to inputs in every mode. In all modes but the
  paper's, codes are moving averages of their inputs, which do not depend on the
  learning rate.
  """
  return dict(
    learn_by="average" if mode else "gradient",
    # Averages replace what the gradient would do; see nn/vq.py.
    loss_gradient=mode == "",
    share_decay=0.99,
    centre_decay=0.99,
    dead_below=0.05,
  )
