"""`genie scaling`: the scaling study: sizes, runs, fits and figures."""

import argparse
import sys

from genie_jax.cli import scaling_fit, scaling_ladder, scaling_plot

_EXAMPLE = """\
example:
  genie scaling table --json table.json
  genie scaling table --plan experiments/scaling/dynamics.py --price 2

Parameters are counted from shapes, so counting those of the 10.1B model takes
a second and almost no memory.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sub-commands."""
  parser.epilog = _EXAMPLE
  commands = parser.add_subparsers(
    dest="scaling_command", metavar="COMMAND", required=True
  )
  table = commands.add_parser(
    "table",
    help="compare our parameter counts with the paper's",
    description="Prints the models of the paper's scaling study (tables 10 and "
    "11), the model of its batch size study, and its final model.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  table.add_argument(
    "--json",
    default=None,
    metavar="FILE",
    help="also write the table to this file",
  )
  table.add_argument(
    "--plan",
    default=None,
    metavar="FILE.py",
    help="plan each row on the paper's chips instead (about an hour): days, "
    "their calibrated range, and cost; the file is "
    "experiments/scaling/dynamics.py",
  )
  table.add_argument(
    "--price",
    default=None,
    metavar="MONEY",
    help="with --plan: price of one chip for one hour",
  )
  scaling_ladder.add_arguments(commands)
  scaling_fit.add_command(commands)
  scaling_plot.add_command(commands)


def run(args: argparse.Namespace) -> int:
  """Runs a sub-command; returns its exit code."""
  others = {
    "ladder": scaling_ladder.run,
    "fit": scaling_fit.run,
    "plot": scaling_plot.run,
  }
  return others.get(args.scaling_command, _table)(args)


def _table(args: argparse.Namespace) -> int:
  """Prints the table; returns 0."""
  if args.plan:
    from genie_jax.cli import main as main_lib

    words = ["plan", "--config", args.plan, "--scaling-table", "all"]
    for name in ("json", "price"):
      value = getattr(args, name)
      words += [] if value is None else [f"--{name}", value]
    return main_lib.main(words)
  # Imported here because importing JAX takes seconds, which --help can avoid.
  from genie_jax.core import files
  from genie_jax.scaling import table

  rows = table.rows()
  print(table.render(rows))
  if args.json:
    files.write_json(args.json, rows)
    print(f"wrote {args.json}")
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.scaling`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["scaling", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
