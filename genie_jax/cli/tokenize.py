"""`genie tokenize`: encodes clips into token records."""

import argparse
import sys

_EXAMPLE = """\
example:
  genie tokenize --tokenizer runs/tokenizer --lam runs/lam \\
      --clips clips --out tokens

A record is one clip, encoded from its own first frame. If the run was
interrupted, run the same command again to resume it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--tokenizer",
    required=True,
    metavar="DIR",
    help="workdir or saved model of a tokenizer",
  )
  add(
    "--lam",
    default=None,
    metavar="DIR",
    help="workdir or saved model of a latent action model; without one, "
    "records have no latent actions",
  )
  add("--clips", required=True, metavar="DIR", help="clips to encode")
  add("--out", required=True, metavar="DIR", help="token folder to write")
  add(
    "--num-frames",
    type=int,
    default=0,
    metavar="T",
    help="frames per record (default: as in the tokenizer's clips)",
  )
  add(
    "--stride",
    type=int,
    default=0,
    metavar="N",
    help="frames between the starts of consecutive records (default: T, so "
    "that records do not overlap)",
  )
  add(
    "--keep-frames",
    action="store_true",
    help="keep the pixels in the records, for the joint stage",
  )
  add(
    "--uncompressed",
    action="store_true",
    help="with --keep-frames: store pixels uncompressed, which is larger and "
    "faster to read (tokens alone are never compressed)",
  )
  add(
    "--batch-size",
    type=int,
    default=32,
    metavar="N",
    help="number of clips to encode at a time (default: 32)",
  )
  add(
    "--records-per-shard",
    type=int,
    default=4096,
    metavar="N",
    help="records per file; a resumed run repeats at most one file "
    "(default: 4096)",
  )
  add(
    "--splits",
    default="",
    metavar="LIST",
    help="splits to encode, for example train,validation (default: all)",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the token folder; returns 0."""
  # Imported here because importing JAX takes seconds, which --help can avoid.
  from genie_jax.tokenizing import tokenize

  report = tokenize.tokenize(
    args.clips,
    args.out,
    tokenizer=args.tokenizer,
    lam=args.lam,
    options=tokenize.Options(
      num_frames=args.num_frames,
      stride=args.stride,
      keep_frames=args.keep_frames,
      uncompressed=args.uncompressed,
      batch_size=args.batch_size,
      records_per_shard=args.records_per_shard,
      splits=tuple(name for name in args.splits.split(",") if name),
    ),
  )
  kept = f", kept {report.kept_records}" if report.kept_records else ""
  splits = ", ".join(
    f"{name} {split['records']}"
    for name, split in report.manifest.splits.items()
  )
  print(
    f"{args.out}: wrote {report.records} records of "
    f"{report.manifest.num_frames} frames in {report.seconds:.0f} s{kept} "
    f"({splits})."
  )
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.tokenize`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["tokenize", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
