"""`genie data`: collects clips, and checks folders of clips or tokens."""

import argparse
import dataclasses
import os
import sys
from typing import Any

from genie_jax.cli import curation, data_videos

_COINRUN_EXAMPLE = """\
example, a small set for a laptop (about 15 seconds on two cores):
  genie data coinrun --out clips --levels 200 --validation-levels 60 \\
      --test-levels 60 --frames-per-level 500
the paper's 10 million transitions (about 10 GB):
  genie data coinrun --out clips --workers 16

Needs libGL and glib: apt-get install -y libgl1 libglib2.0-0
If the run was interrupted, run the same command again to resume it.
"""
_PROCGEN_EXAMPLE = """\
example, CoinRun played by a policy that walks both ways:
  genie data procgen --game coinrun --policy walker --out clips --levels 200 \\
      --validation-levels 60 --test-levels 60 --frames-per-level 512

policies:
  random   uniformly random keys, as in the paper
  walker   holds a direction for up to two seconds, jumps, and turns around or
           jumps when it is stuck
  planner  follows a planner's path to the goal, with random pushes (coinrun)
  mix      plays each level with one of the others, see --shares

Needs libGL and glib: apt-get install -y libgl1 libglib2.0-0
If the run was interrupted, run the same command again to resume it.
"""
_IMPORT_EXAMPLE = """\
example:
  genie data import --from coinrun_episodes --format jafar --out clips

Pickles in the folder are read without being run. Splits are kept where the
project has them, and otherwise drawn by source. docs/imports.md describes the
folders of each format.
If the run was interrupted, run the same command again to resume it.
"""
_INSPECT_EXAMPLE = """\
example:
  genie data inspect clips --contact-sheet clips.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sub-commands."""
  commands = parser.add_subparsers(
    dest="data_command", metavar="COMMAND", required=True
  )
  coinrun = commands.add_parser(
    "coinrun",
    help="collect CoinRun clips with random actions",
    description="Collects CoinRun clips as in appendix F of the Genie paper.",
    epilog=_COINRUN_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  _add_collection(coinrun)
  procgen = commands.add_parser(
    "procgen",
    help="collect clips of any of procgen's 16 games, with a policy",
    description="Collects clips of a game of procgen.",
    epilog=_PROCGEN_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = procgen.add_argument
  add(
    "--game",
    required=True,
    metavar="NAME",
    help="bigfish, bossfight, caveflyer, chaser, climber, coinrun, dodgeball, "
    "fruitbot, heist, jumper, leaper, maze, miner, ninja, plunder or starpilot",
  )
  add(
    "--policy",
    default="walker",
    metavar="NAME",
    help="random, walker, planner or mix (default: walker)",
  )
  add(
    "--shares",
    default="",
    metavar="NAME=SHARE,...",
    help="for --policy mix, for example random=0.2,walker=0.8",
  )
  add(
    "--states",
    action="store_true",
    help="also record the agent's true position, velocity and support, for "
    "evaluations that compare a world with the game",
  )
  _add_collection(procgen)
  data_videos.add_arguments(commands)
  _add_import(commands)
  inspect = commands.add_parser(
    "inspect",
    help="print a manifest and check every record",
    description="Prints the manifest of a folder of clips or tokens, and "
    "checks the SHA-256 of every shard, and every record.",
    epilog=_INSPECT_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  inspect.add_argument("folder", metavar="DIR", help="folder to check")
  inspect.add_argument(
    "--contact-sheet",
    metavar="FILE.png",
    help="also write an image with frames of several sources",
  )
  curation.add_arguments(commands)


def _add_import(commands: Any) -> None:
  """Adds the sub-command `import`."""
  parser = commands.add_parser(
    "import",
    help="write clips from a folder of Jafar, Jasmine or GenieRedux",
    description="Writes a clips folder from the clips of another project.",
    epilog=_IMPORT_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--from", dest="source", required=True, metavar="DIR", help="to read")
  add(
    "--format",
    required=True,
    metavar="NAME",
    help="jafar, jasmine or genieredux",
  )
  add("--out", required=True, metavar="DIR", help="folder to write")
  add("--name", default="", metavar="NAME", help="name of the data set")
  add(
    "--fps",
    type=float,
    default=None,
    metavar="N",
    help="frames per second (default: 15 for games, 10 for films of jasmine)",
  )
  add(
    "--frame-size",
    default="",
    metavar="HxW",
    help="rows and columns of a frame, for jasmine, whose files do not state "
    "them (default: square, or 90x160 for films)",
  )
  add(
    "--codec",
    default="zstd",
    metavar="NAME",
    help="zstd, which keeps every bit, or h264 (default: zstd)",
  )
  add(
    "--clips-per-shard",
    type=int,
    default=64,
    metavar="N",
    help="most clips of one file (default: 64)",
  )
  add(
    "--workers",
    type=int,
    default=None,
    metavar="N",
    help="number of processes; the data does not depend on it (default: one "
    "per core)",
  )


def _add_collection(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that all games have."""
  add = parser.add_argument
  add("--out", required=True, metavar="DIR", help="folder to write")
  add(
    "--levels",
    type=int,
    default=10_000,
    metavar="N",
    help="number of train levels, from seed 0 (default: 10000)",
  )
  add(
    "--validation-levels",
    type=int,
    default=100,
    metavar="N",
    help="number of validation levels, from seed 10000 (default: 100)",
  )
  add(
    "--test-levels",
    type=int,
    default=100,
    metavar="N",
    help="number of test levels, from seed 10100 (default: 100)",
  )
  add(
    "--frames-per-level",
    type=int,
    default=1_000,
    metavar="N",
    help="number of steps played per level (default: 1000)",
  )
  add(
    "--mode",
    default="hard",
    metavar="MODE",
    help="hard (as in the paper) or easy (default: hard)",
  )
  add(
    "--policy-seed",
    type=int,
    default=0,
    metavar="N",
    help="seed of the random actions (default: 0)",
  )
  add(
    "--levels-per-shard",
    type=int,
    default=50,
    metavar="N",
    help="levels per file; each worker collects one file at a time "
    "(default: 50)",
  )
  add(
    "--counterfactuals",
    type=int,
    default=None,
    metavar="N",
    help="also record, for N moments of each validation and test level, what "
    "the game draws while each key is held, into the folder "
    "DIR/counterfactuals; `genie eval` then compares a world with the game",
  )
  add(
    "--counterfactual-frames",
    type=int,
    default=8,
    metavar="N",
    help="frames for which each key is held (default: 8)",
  )
  add(
    "--standing",
    type=int,
    default=None,
    metavar="N",
    help="the same for N moments of each of these levels in which the agent "
    "stands with room on both sides, into DIR/standing; `genie eval` then "
    "measures whether a world walks (coinrun)",
  )
  add(
    "--workers",
    type=int,
    default=None,
    metavar="N",
    help="number of processes that play; the data does not depend on it "
    "(default: one per core)",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the sub-command; returns the exit code."""
  if args.data_command == "inspect":
    return _inspect(args)
  if curation.handles(args.data_command):
    return curation.run(args)
  if args.data_command == "videos":
    return data_videos.run(args)
  if args.data_command == "import":
    return _import(args)
  return _collect(args)


def _import(args: argparse.Namespace) -> int:
  from data_pipelines.imports import folder
  from genie_jax.core import errors
  from genie_jax.data import inspection

  size = None
  if args.frame_size:
    parts = args.frame_size.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
      raise errors.UserError(
        f"--frame-size {args.frame_size!r} must be rows and columns, for "
        "example 64x64."
      )
    size = (int(parts[0]), int(parts[1]))
  report = folder.import_folder(
    args.source,
    args.out,
    folder.Options(
      format=args.format,
      name=args.name,
      fps=args.fps,
      frame_size=size,
      codec=args.codec,
      clips_per_shard=args.clips_per_shard,
    ),
    len(os.sched_getaffinity(0)) if args.workers is None else args.workers,
  )
  for name, reason in report.skipped:
    shown = name if name.isprintable() else repr(name)
    print(f"skipped {shown}: {reason}", file=sys.stderr)
  print(inspection.describe(report.manifest))
  print(
    f"{args.out}: {report.clips} clips in {report.seconds:.1f} s, "
    f"{report.kept_clips} of them kept of an earlier run, "
    f"{len(report.skipped)} skipped"
  )
  return 0


def _collect(args: argparse.Namespace) -> int:
  from data_pipelines.procgen import collect, counterfactuals

  options = collect.Options(
    levels=args.levels,
    validation_levels=args.validation_levels,
    test_levels=args.test_levels,
    frames_per_level=args.frames_per_level,
    mode=args.mode,
    policy_seed=args.policy_seed,
    levels_per_shard=args.levels_per_shard,
  )
  if args.data_command == "procgen":
    options = dataclasses.replace(
      options,
      game=args.game,
      policy=args.policy,
      shares=_shares(args.shares),
      states=args.states,
    )
  held = []
  if args.counterfactuals is not None:
    held.append(
      counterfactuals.Options(args.counterfactuals, args.counterfactual_frames)
    )
  if args.standing is not None:
    held.append(
      counterfactuals.Options(
        args.standing, counterfactuals.ROOM_FRAMES, standing=True
      )
    )
  for wanted in held:
    wanted.check(options)  # Before the clips, which take longer.
  workers = args.workers
  if workers is None:
    workers = len(os.sched_getaffinity(0))
  report = collect.collect(args.out, options, workers)
  print(
    f"{args.out}: wrote {report.frames} frames in {report.seconds:.1f} s, "
    f"{report.frames / report.seconds:.0f} frames/s, kept "
    f"{report.kept_frames} of an earlier run; {report.bytes_per_frame:.0f} "
    f"bytes/frame; fingerprint {report.manifest.fingerprint[:12]}"
  )
  for wanted in held:
    found = counterfactuals.collect_moments(args.out, options, wanted, workers)
    print(
      f"{found.manifest.folder}: {found.moments} moments in "
      f"{found.seconds:.1f} s; {found.bytes_per_moment / 1000:.0f} kB/moment; "
      f"fingerprint {found.manifest.fingerprint[:12]}"
    )
  return 0


def _shares(text: str) -> tuple[tuple[str, float], ...]:
  """Returns the pairs of "random=0.2,walker=0.8"."""
  from genie_jax.core import errors

  pairs = [part.partition("=") for part in text.split(",") if part]
  try:
    shares = {name.strip(): float(share) for name, _, share in pairs}
  except ValueError:
    shares = {}
  if len(shares) != len(pairs):
    raise errors.UserError(
      f"--shares {text!r} must give each policy one number, for example "
      "random=0.2,walker=0.8."
    )
  return tuple(sorted(shares.items()))


def _inspect(args: argparse.Namespace) -> int:
  from genie_jax.core import progress
  from genie_jax.data import inspection, manifest

  found = manifest.Manifest.read(args.folder)
  print(inspection.describe(found))
  records = sum(split["records"] for split in found.splits.values())
  with progress.track(
    total=records, unit="records", description="checking"
  ) as bar:
    inspection.verify(found, bar.update)
  print(f"{records} records checked: none is damaged, all match the manifest")
  if args.contact_sheet:
    from genie_jax.core import images

    rows = inspection.contact_rows(found)
    height = next(iter(rows.values())).shape[1]
    # Small grids are enlarged to about the size of a CoinRun frame.
    sheet = images.strip(rows, scale=max(1, 64 // height))
    images.save_png(args.contact_sheet, sheet)
    print(f"wrote {args.contact_sheet}")
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.data`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["data", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
