r"""Trains latent action models and measures what their codes say about keys.

Collect:   for policy in walker random; do genie data procgen --game coinrun \
               --policy $policy --states --out CLIPS/$policy --levels 100 \
               --validation-levels 60 --test-levels 60 --frames-per-level 512
           done
Run:       python benchmarks/lam.py --clips CLIPS --out RUNS \
               --policy walker --candidate default --candidate before --json F
Published: the same with `--split test --num-clips 3840` and seeds 0, 1 and 2

A row is a candidate (a name in CANDIDATES), a policy and a training seed. It
trains the demo's config (experiments/coinrun/lam.py:tiny) with the candidate's
overrides by `genie train`, and compares the codes of held-out clips with the
keys that were pressed (genie_jax.evals.control). Candidates are chosen on the
split `validation`. --json keeps the rows of earlier runs; a row is replaced by
one of the same candidate, policy, seed and split. The columns:

  action_nmi        NMI of code and key; keys with the same effect are merged
  horizontal_nmi    the same with left, right and neither
  ground_*          transitions that begin on the ground
  attainable_*      the larger of what a supervised model reads from the frames
                    and of the sign of the true motion
  motion_*          the sign of the true motion
  previous_code_*   the code of the transition before, compared with this key
  *_gain_low        lower end of the difference of the two
  accuracy_after_change   share of keys that the best map from codes to keys
                    tells, in the first four transitions after a change
  purity_low        lower end of the share of keys that the codes tell
  majority_share_high     upper end of the share of the most frequent key
  names             what the player does while each code occurs
  cut_agreement     share of codes that do not change if the clip is cut at any
                    frame before, from the second transition after the cut on
  seconds           of training, all starts
"""

import argparse
import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import training_runs

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib
from genie_jax.evals import actions as actions_lib
from genie_jax.evals import clips as clips_lib
from genie_jax.evals import codebook, control, inverse_dynamics
from genie_jax.sampling import prepare
from genie_jax.worlds import trained_models

_BATCH = 32  # Clips per call.
_PLAIN_ERROR = (
  "--config.copy_floor=0.0",
  "--config.loss.squared_error=100.0",
)
_ADAMW = ("--config.optimizer.name=adamw",)
# The decoder sees the last frame only; as many transitions a step.
_ONE_FRAME = (
  "--config.model.decoder.window=1",
  "--config.data.num_frames=4",
  "--config.data.batch_size=32",
)
# What experiments/coinrun/lam.py:tiny was before codes meant anything.
_BEFORE = (
  *_ADAMW,
  *_ONE_FRAME,
  "--config.world.num_latent_actions=6",
  "--config.model.predict=change",
  "--config.model.match=False",
  "--config.model.encoder.window=0",
  *_PLAIN_ERROR,
)

# Name -> overrides of the config. docs/lam.md has the result of each.
CANDIDATES: dict[str, tuple[str, ...]] = {
  "default": (),
  "before": _BEFORE,
  "before_window": (*_BEFORE, "--config.model.encoder.window=2"),
  "adamw": _ADAMW,
  "floor_0.003": ("--config.copy_floor=0.003",),
  "floor_0.0003": ("--config.copy_floor=0.0003",),
  "plain_error": _PLAIN_ERROR,
  "no_match": ("--config.model.match=False",),
  "no_shift": ("--config.model.predict=change",),
  "six_codes": ("--config.world.num_latent_actions=6",),
  "one_frame": _ONE_FRAME,
  "four_pixels": ("--config.model.patch=4",),
  "full_resolution": ("--config.model.shrink=1",),
  "labels": ("--config.labels.weight=5.0",),
}


def codes_of(part: Any, frames: np.ndarray) -> np.ndarray:
  """Returns latent actions, int32 [n, T-1], of uint8 frames [n, T, ...]."""
  module = prepare.hashable(part.module)

  @jax.jit
  def encode(params, frames):
    scaled = frames.astype(jnp.float32) / 255
    return module.apply({"params": params}, scaled, method="encode")

  params = jax.device_put(part.params)
  found = [
    np.asarray(encode(params, frames[start : start + _BATCH]))
    for start in range(0, len(frames), _BATCH)
  ]
  return np.concatenate(found)


def cut_agreement(part: Any, frames: np.ndarray) -> float:
  """Returns the share of codes that stay the same if a clip is cut.

  Args:
    part: The LAM.
    frames: uint8 [n, T, H, W, C].

  Returns:
    Over all cuts, from the second transition after the cut on.
  """
  whole = codes_of(part, frames)
  same = [
    (codes_of(part, frames[:, cut:])[:, 1:] == whole[:, cut + 1 :]).ravel()
    for cut in range(1, frames.shape[1] - 2)
  ]
  return float(np.concatenate(same).mean())


def measure(
  part: Any,
  clips: clips_lib.Clips,
  meanings: Mapping[str, list[int]],
  reader: inverse_dynamics.KeyReader,
  seed: int,
) -> dict[str, Any]:
  """Returns the figures of a row.

  Args:
    part: The LAM.
    clips: Held-out clips with actions and states.
    meanings: What each key means, of the manifest.
    reader: A supervised model of the same clips.
    seed: Of the bootstrap.
  """
  codes = codes_of(part, clips.frames)
  found = control.transitions(
    codes, clips.actions, clips.arrays["states"], clips.levels
  )
  num_codes = part.config["world"]["num_latent_actions"]
  read = reader.read(clips.frames)
  labels = {
    question: values[clips.actions]
    for question, values in actions_lib.key_labels(meanings).items()
  }
  judged = {
    question: control.judge(
      found, values, num_codes, seed=seed, supervised=read[question]
    )
    for question, values in labels.items()
  }
  effect, sideways = judged["effect"], judged["horizontal"]
  agreement = actions_lib.agreement(
    codes.ravel(),
    labels["effect"].ravel(),
    np.repeat(clips.levels, codes.shape[1]),
    num_codes,
    aliases={},
    seed=seed,
  )
  after = sideways["after_change"]
  return {
    "action_nmi": effect["all"].nmi.value,
    "action_nmi_low": effect["all"].nmi.low,
    "attainable_action_nmi": effect["all"].attainable_nmi.value,
    "motion_action_nmi": effect["all"].motion_nmi.value,
    "previous_code_nmi": effect["all"].previous_nmi.value,
    "action_gain_low": effect["all"].gain_nmi.low,
    "horizontal_nmi": sideways["all"].nmi.value,
    "horizontal_nmi_low": sideways["all"].nmi.low,
    "attainable_horizontal_nmi": sideways["all"].attainable_nmi.value,
    "motion_horizontal_nmi": sideways["all"].motion_nmi.value,
    "previous_code_horizontal_nmi": sideways["all"].previous_nmi.value,
    "horizontal_gain_low": sideways["all"].gain_nmi.low,
    "ground_horizontal_nmi": sideways["ground"].nmi.value,
    "ground_horizontal_nmi_low": sideways["ground"].nmi.low,
    "attainable_ground_horizontal_nmi": sideways["ground"].attainable_nmi.value,
    "motion_ground_horizontal_nmi": sideways["ground"].motion_nmi.value,
    "previous_code_ground_horizontal_nmi": (
      sideways["ground"].previous_nmi.value
    ),
    "ground_horizontal_gain_low": sideways["ground"].gain_nmi.low,
    "jump_nmi": judged["jump"]["all"].nmi.value,
    "accuracy_after_change": effect["after_change"].accuracy.value,
    "previous_code_accuracy_after_change": (
      effect["after_change"].previous_accuracy.value
    ),
    "attainable_accuracy_after_change": (
      effect["after_change"].attainable_accuracy.value
    ),
    "horizontal_accuracy_after_change": after.accuracy.value,
    "previous_code_horizontal_accuracy_after_change": (
      after.previous_accuracy.value
    ),
    "attainable_horizontal_accuracy_after_change": (
      after.attainable_accuracy.value
    ),
    "purity_low": agreement.purity.low,
    "majority_share_high": effect["all"].majority.high,
    "cut_agreement": cut_agreement(part, clips.frames[:256]),
    "names": [
      {name: one[name] for name in ("button", "name", "share", "interval")}
      for one in control.name_codes(found, num_codes, seed=seed)
    ],
    "codes": codebook.summary(codebook.counts(codes, num_codes)),
    "figures": {
      question: {
        name: dataclasses.asdict(one) for name, one in situations.items()
      }
      for question, situations in judged.items()
    },
  }


@functools.cache
def key_reader(
  folder: pathlib.Path, num_frames: int
) -> inverse_dynamics.KeyReader:
  """Returns the supervised model of a clips folder, trained once."""
  return inverse_dynamics.fit_folder(folder, num_frames=num_frames, seed=0)


def row(
  candidate: str, policy: str, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
  """Trains one LAM, unless that was done, and returns its row."""
  folder = pathlib.Path(args.clips) / policy
  keys = manifest_lib.Manifest.read(folder).made_by.get("keys")
  if keys is None:
    raise errors.UserError(
      f"{folder} has no true states; collect it again with --states."
    )
  workdir = args.out / policy / f"{candidate}-{seed}"
  load = os.getloadavg()[0]
  seconds = training_runs.train(
    f"lam.py:{args.mode}",
    workdir,
    [
      f"--config.data.path={folder}",
      f"--config.seed={seed}",
      *CANDIDATES[candidate],
    ],
  )
  part, _ = trained_models.part(workdir, "lam")
  num_frames = part.config["world"]["num_frames"]
  clips = clips_lib.pick(
    folder,
    args.split,
    num_frames=num_frames,
    num_clips=args.num_clips,
    num_levels=args.levels,
    with_actions=True,
    seed=0,
    arrays=("states",),
  )
  return {
    "configuration": candidate,
    "overrides": list(CANDIDATES[candidate]),
    "mode": args.mode,
    "policy": policy,
    "seed": seed,
    "split": args.split,
    "num_clips": args.num_clips,
    "levels": args.levels,
    **measure(part, clips, keys, key_reader(folder, num_frames), seed=0),
    "seconds": seconds["wall"],
    "cpu_seconds": seconds["cpu"],
    "load_average": load,
  }


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows as Markdown, with what is attainable in brackets."""
  lines = [
    "| candidate | policy | seed | keys | previous code | left/right "
    "| on the ground | right after a change | cut | CPU s |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  of = lambda row, name: f"{row[name]:.3f} ({row[f'attainable_{name}']:.3f})"
  for one in rows:
    lines.append(
      f"| {one['configuration']} | {one['policy']} | {one['seed']} "
      f"| {of(one, 'action_nmi')} | {one['previous_code_nmi']:.3f} "
      f"| {of(one, 'horizontal_nmi')} | {of(one, 'ground_horizontal_nmi')} "
      f"| {of(one, 'horizontal_accuracy_after_change')} "
      f"| {one['cut_agreement']:.3f} | {one['cpu_seconds']:.0f} |"
    )
  return "\n".join(lines)


def main() -> None:
  """Trains and measures the rows that the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--clips", required=True, metavar="DIR", help="one folder per policy")
  add("--out", required=True, type=pathlib.Path, metavar="DIR", help="workdirs")
  add("--json", metavar="F", help="also keep the rows in this file")
  add("--mode", choices=("tiny", "smoke"), default="tiny")
  add("--candidate", action="append", choices=CANDIDATES, metavar="NAME")
  add("--policy", action="append", metavar="NAME", help="default: walker")
  add("--seed", action="append", type=int, metavar="N", help="default: 0")
  add("--split", choices=("validation", "test"), default="validation")
  add("--levels", type=int, default=60, help="held out")
  add("--num-clips", type=int, default=1024)
  args = parser.parse_args()
  rows: list[dict[str, Any]] = []
  if args.json and pathlib.Path(args.json).exists():
    rows = files.read_json(args.json)["rows"]
  same = ("configuration", "policy", "seed", "split", "mode")
  for candidate in args.candidate or CANDIDATES:
    for policy in args.policy or ["walker"]:
      for seed in args.seed or [0]:
        made = row(candidate, policy, seed, args)
        rows = [
          old for old in rows if any(old[name] != made[name] for name in same)
        ] + [made]
        print(table(rows), flush=True)
        if args.json:
          files.write_json(args.json, {"rows": rows})


if __name__ == "__main__":
  main()
