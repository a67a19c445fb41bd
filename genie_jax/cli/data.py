"""`genie data`: collects clips, and checks folders of clips or tokens."""

import argparse
import os
import sys

_COINRUN_EXAMPLE = """\
example, a small set for a laptop (about 15 seconds on two cores):
  genie data coinrun --out clips --levels 200 --validation-levels 60 \\
      --test-levels 60 --frames-per-level 500
the paper's 10 million transitions (about 10 GB):
  genie data coinrun --out clips --workers 16

Needs libGL and glib: apt-get install -y libgl1 libglib2.0-0
If the run was interrupted, run the same command again to resume it.
"""
_INSPECT_EXAMPLE = """\
example:
  genie data inspect clips --contact-sheet clips.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sub-commands `coinrun` and `inspect`."""
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
  add = coinrun.add_argument
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
    "--workers",
    type=int,
    default=None,
    metavar="N",
    help="number of processes that play; the data does not depend on it "
    "(default: one per core)",
  )
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


def run(args: argparse.Namespace) -> int:
  """Runs the sub-command; returns the exit code."""
  return {"coinrun": _coinrun, "inspect": _inspect}[args.data_command](args)


def _coinrun(args: argparse.Namespace) -> int:
  from data_pipelines.coinrun import collect

  options = collect.Options(
    levels=args.levels,
    validation_levels=args.validation_levels,
    test_levels=args.test_levels,
    frames_per_level=args.frames_per_level,
    mode=args.mode,
    policy_seed=args.policy_seed,
    levels_per_shard=args.levels_per_shard,
  )
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
  return 0


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
