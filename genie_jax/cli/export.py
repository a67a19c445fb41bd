"""`genie export`: checkpoints to a world folder."""

import argparse
import sys

_EXAMPLE = """\
example:
  genie export --workdir runs/tokenizer --workdir runs/joint \\
      --prompts clips --out world

The tokenizer and the LAM may be left out: the token folder on which the
dynamics model was trained carries those that made it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--workdir",
    action="append",
    required=True,
    metavar="DIR",
    dest="workdirs",
    help="workdir of `genie train`, or a saved model; give one for each stage",
  )
  add(
    "--out",
    required=True,
    metavar="DIR",
    help="world folder to write; an older world there is replaced",
  )
  add(
    "--prompts",
    default=None,
    metavar="DIR",
    help="clips, or a folder of pictures, to take prompts from (default: "
    "the clips that a given workdir was trained on)",
  )
  add(
    "--num-prompts",
    type=int,
    default=8,
    metavar="N",
    help="how many prompts, at most (default: 8)",
  )
  add(
    "--dtype",
    default="bfloat16",
    choices=("bfloat16", "float32", "int8"),
    help="precision of the weights; int8 is for the matrices of layers, the "
    "rest is bfloat16 then (default: bfloat16)",
  )
  add(
    "--name",
    default="",
    metavar="NAME",
    help="name of the world (default: that of the folder)",
  )
  add(
    "--metrics",
    default=None,
    metavar="FILE",
    help="metrics.json of `genie eval`, whose figures (without their "
    "details) the world then states",
  )
  add(
    "--shard-bytes",
    type=int,
    default=5_000_000_000,
    metavar="N",
    help="most bytes of weights in one file (default: 5 GB)",
  )
  add(
    "--stablehlo",
    action="store_true",
    help="also write encode, reset, step and decode as StableHLO programs "
    "for CPU, CUDA and TPU, which need JAX but not this package's models",
  )


def run(args: argparse.Namespace) -> int:
  """Writes the world; returns 0."""
  # Late imports: JAX takes seconds, which --help need not wait for.
  from genie_jax.core import errors, files
  from genie_jax.ports.stablehlo import exporter
  from genie_jax.worlds import export

  if args.num_prompts < 0:
    raise errors.UserError(
      f"--num-prompts must not be negative, as {args.num_prompts} is."
    )
  if args.shard_bytes < 1:
    raise errors.UserError(
      f"--shard-bytes must be positive, as {args.shard_bytes} is not."
    )
  metrics = files.read_json(args.metrics) if args.metrics else {}
  metrics.pop("details", None)
  manifest = export.export(
    args.workdirs,
    args.out,
    prompts=args.prompts,
    num_prompts=args.num_prompts,
    dtype=args.dtype,
    name=args.name,
    metrics=metrics,
    shard_bytes=args.shard_bytes,
    write_programs=exporter.write if args.stablehlo else None,
  )
  size = sum(entry["bytes"] for entry in manifest["files"].values())
  prompts = sum(name.startswith("prompts/") for name in manifest["files"])
  print(
    f"{args.out}: a world of {size / 1e6:.1f} MB with {prompts} prompts, "
    f"fingerprint {manifest['fingerprint'][:12]}."
  )
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.export`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["export", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
