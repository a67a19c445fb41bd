r"""Platformers classifier: good clips against bad ones, a ResNet-18.

After:   a clips folder and a table of ratings from `genie data label`
         (docs/platformers.md)
Run:     genie train --config experiments/platformers/classifier.py \
             --workdir RUN/classifier --config.data.path=CLIPS \
             --config.data.labels=CLIPS-labels.csv
Try it:  add `:smoke` (seconds) or `:tiny` (minutes on one CPU core)
Source:  Genie (arXiv:2402.15391), appendix B.1: a ResNet-18 of 11M parameters,
         10,000 clips of 16 seconds at 10 frames per second and 160 x 90 pixels,
         rating 5 against rating 1
Size:    11M parameters, 11M in the paper
Result:  not measured; `:tiny` on 229 clips of recorded games reached a
         precision of 0.36 and a recall of 0.27, no better than rules on three
         numbers (docs/platformers.md)

The paper states neither which frames of a clip the network sees nor how it was
trained. Ours sees runs of 4 adjacent frames, spread evenly over the clip, and
averages their features; see genie_jax/models/classifier.py.

Modes:
  ""     the paper's size
  smoke  a few steps in seconds, to check that everything runs
  tiny   a narrower network and frames of half the size, for one CPU core
"""

import ml_collections

from experiments.coinrun import common as coinrun
from genie_jax.data import clip_list
from genie_jax.scaling import table

MODES = ("", "smoke", "tiny")


def get_config(mode: str = "") -> ml_collections.ConfigDict:
  """Returns the configuration; `mode` is one of MODES."""
  if mode not in MODES:
    raise ValueError(
      f"Unknown mode {mode!r}; use one of {', '.join(map(repr, MODES))}."
    )
  config = coinrun.base("classifier", mode)
  del config.actions
  config.world = dict(table.WORLD)
  config.model = coinrun.pick(
    mode,
    full=dict(features=64, shrink=1, run=4, dtype="bfloat16"),
    smoke=dict(features=8, shrink=4, run=4, dtype="float32"),
    tiny=dict(features=16, shrink=2, run=4, dtype="float32"),
  )
  config.augment = dict(mirror=True, exchange=True, colour=0.3, gamma=0.4)
  config.data.update(
    labels="",
    # Clips as they were rated: 16 seconds at 10 frames per second.
    clip_frames=clip_list.CLIP_FRAMES,
    # 4 runs of 4 frames; small modes look at fewer places of a clip at once.
    num_frames=coinrun.pick(mode, full=16, smoke=8, tiny=4),
    # Each clip is read at this many different places.
    shifts=coinrun.pick(mode, full=10, smoke=1, tiny=40),
    balance=True,
    batch_size=coinrun.pick(mode, full=64, smoke=4, tiny=64),
    num_workers=coinrun.pick(mode, full=4, smoke=0, tiny=0),
    num_threads=coinrun.pick(mode, full=4, smoke=1, tiny=1),
  )
  del config.data.stride
  # 6,000 steps of 64 are about 40 passes over 10,000 clips.
  config.steps = coinrun.pick(mode, full=6_000, smoke=4, tiny=200)
  config.optimizer = coinrun.adamw(
    peak_lr=coinrun.pick(mode, full=5e-4, smoke=1e-3, tiny=1e-3),
    end_lr=0.0,
    warmup_steps=coinrun.pick(mode, full=300, smoke=1, tiny=20),
    b2=0.99,
    weight_decay=coinrun.pick(mode, full=0.05, smoke=0.05, tiny=0.2),
    clip_norm=1.0,
  )
  config.eval_every = coinrun.pick(mode, full=500, smoke=2, tiny=100)
  config.checkpoint_every = coinrun.pick(mode, full=500, smoke=2, tiny=100)
  config.keep_every = 0
  return config
