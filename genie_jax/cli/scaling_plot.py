"""`genie scaling plot`: figures of a study, from its result file alone."""

import argparse
import sys
from typing import Any

_EXAMPLE = """\
example:
  genie scaling plot RESULTS.json --out FIGURES

Writes figure9 and fit, each as SVG and PNG, and runs.csv with every point.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `genie scaling plot`."""
  parser.add_argument(
    "result", metavar="RESULTS.json", help="file of `genie scaling fit --out`"
  )
  parser.add_argument("--out", required=True, metavar="DIR", help="folder")


def add_command(commands: Any) -> None:
  """Adds `plot` to the sub-commands of `genie scaling`."""
  add_arguments(
    commands.add_parser(
      "plot",
      help="draw training curves, losses, batch sizes and the fit",
      description=__doc__,
      epilog=_EXAMPLE,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
  )


def run(args: argparse.Namespace) -> int:
  """Draws the figures; returns 0."""
  # Imported here because Matplotlib takes a second, which --help can avoid.
  from genie_jax.scaling import figures, results

  for path in figures.draw(results.read(args.result), args.out):
    print(f"wrote {path}")
  return 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.scaling_plot`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["scaling", "plot", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
