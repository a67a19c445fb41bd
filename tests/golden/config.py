"""Training configs of the golden workdirs: the smallest model of each stage.

Mode: tokenizer, lam, dynamics or joint. Each field that a config in
`experiments/` has is here too. The file imports nothing of the project, so a
later version can read it as a user's own config file.
"""

import ml_collections

# Height and width differ, so that an exchange of the two is noticed.
_WORLD = dict(
  num_frames=4,
  height=8,
  width=12,
  channels=3,
  fps=10,
  token_patch=4,
  num_codes=16,
  num_latent_actions=3,
)
_DATA = {
  "tokenizer": "clips",
  "lam": "clips",
  "dynamics": "tokens",
  "joint": "tokens_with_frames",
}


def get_config(mode: str) -> ml_collections.ConfigDict:
  """Returns the config of the stage that `mode` names."""
  if mode not in _DATA:
    raise ValueError(f"Unknown mode {mode!r}; use one of {', '.join(_DATA)}.")
  config = ml_collections.ConfigDict(
    dict(
      stage=mode,
      seed=0,
      actions="latent",
      init_from="",
      world=_WORLD,
      data=dict(
        path=_DATA[mode],
        split="train",
        eval_split="validation",
        batch_size=4,
        num_frames=_WORLD["num_frames"],
        stride=1,
        num_workers=0,
        num_threads=1,
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1, frame=1),
      steps=2,
      log_every=1,
      eval_every=1000,
      eval_batches=1,
      checkpoint_every=1000,
      keep_checkpoints=1,
      keep_every=0,
    )
  )
  lam = dict(
    patch=2,
    shrink=2,
    predict="shift",
    match=True,
    reach=(1, 2),
    code_dim=4,
    unit_norm=True,
    actions_enter="add",
    encoder=_stack(window=2),
    decoder=_stack(window=1),
  )
  dynamics = dict(
    actions_enter="add",
    last_frame=True,
    last_frame_reach=1,
    transformer=_stack(),
  )
  if mode == "tokenizer":
    still = dict(final_norm=False, residual_scale=0.0)
    config.model = dict(
      code_dim=8,
      unit_norm=False,
      start="cosine",
      output="linear",
      encoder=_stack(**still),
      decoder=_stack(**still),
    )
    config.loss = dict(squared_error=100.0, codebook=0.0, commitment=0.02)
  if mode in ("lam", "joint"):
    config.model = lam
    config.loss = dict(squared_error=100.0, codebook=1.0, commitment=0.25)
  if mode != "dynamics":
    config.codebook = dict(
      learn_by="average", share_decay=0.99, centre_decay=0.99, dead_below=0.05
    )
  if mode in ("dynamics", "joint"):
    config.model = (
      dynamics if mode == "dynamics" else dict(lam=lam, dynamics=dynamics)
    )
    config.mask = dict(
      per="frame",
      rate="cosine",
      low=0.0,
      high=1.0,
      clean_frame=0.2,
      clean_past=0.0,
    )
    config.sampling = dict(
      refinements=2,
      schedule="cosine",
      order="random",
      temperature=1.0,
      choice_temperature=4.5,
    )
    # One world states how its window slides, the other leaves it to the
    # player's default.
    if mode == "dynamics":
      config.slide = dict(mode="exact", drop=2)
    config.start = "codebook"
  config.optimizer = dict(
    name="muon" if mode in ("dynamics", "joint") else "adamw",
    peak_lr=1e-3,
    end_lr=1e-4,
    warmup_steps=1,
    schedule="cosine",
    decay_steps=0,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=1e-4,
    clip_norm=1.0,
    accumulate=1,
    mu_dtype="float32",
    momentum=0.95,
  )
  return config


def _stack(**changes) -> dict:
  """Returns the fields of the smallest transformer."""
  return (
    dict(
      num_layers=1,
      width=8,
      num_heads=2,
      head_dim=4,
      mlp_dim=8,
      remat="none",
      dtype="float32",
      unroll=1,
    )
    | changes
  )
