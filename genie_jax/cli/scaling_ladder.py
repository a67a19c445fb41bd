"""`genie scaling ladder`: runs the cells of a scaling study."""

import argparse
import os
import shlex
import sys

_EXAMPLE = """\
example:
  genie scaling ladder experiments/scaling/miniature.py --out runs/ladder \\
      --config.data.path=TOKENS --dry-run
  genie scaling ladder experiments/scaling/miniature.py --out runs/ladder \\
      --config.data.path=TOKENS

The same command resumes after a stop: finished cells do not run again. A field
of the config that is given here is that of every cell. docs/scaling.md
describes the ladder file.
"""


def add_arguments(commands) -> None:
  """Adds the sub-command `ladder` to those of `genie scaling`."""
  parser = commands.add_parser(
    "ladder",
    help="run the cells of a scaling study",
    description="Runs the training runs of a ladder file one after the other, "
    "and collects their results in OUT/runs.json.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  # `--config.*` overrides are accepted by commands that have a config.
  parser.set_defaults(config=None)
  add = parser.add_argument
  add(
    "file",
    metavar="FILE",
    help="ladder file, for example experiments/scaling/miniature.py",
  )
  add("--out", required=True, metavar="DIR", help="folder of the study")
  add(
    "--held-out",
    default=None,
    metavar="FILE",
    help="run the held-out cells too; FILE is the prediction of their loss, "
    "from `genie scaling fit`, which must exist before they start",
  )
  add(
    "--cell",
    action="append",
    default=[],
    metavar="NAME",
    help="run only this cell; may be repeated",
  )
  what = parser.add_mutually_exclusive_group()
  what.add_argument(
    "--status", action="store_true", help="print the state of each cell"
  )
  what.add_argument(
    "--dry-run",
    action="store_true",
    help="print the cost of what is left, from a step measured here or, with "
    "--topology, from `genie plan`",
  )
  what.add_argument(
    "--print-commands",
    action="store_true",
    help="print, and write to OUT/commands.txt, one `genie train` command a "
    "line for each cell that can start now, for the array job of a scheduler",
  )
  what.add_argument(
    "--collect",
    action="store_true",
    help="only write OUT/runs.json from the finished cells",
  )
  add(
    "--count-flops",
    action="store_true",
    help="also count the FLOPs of each compiled step, for OUT/runs.json; takes "
    "some seconds for each size and batch",
  )
  add(
    "--topology",
    default=None,
    metavar="NAME",
    help="with --dry-run: chips that run one cell, for example v5p:2x2x1",
  )
  add(
    "--price",
    type=float,
    default=None,
    help="with --topology: price of a chip for an hour",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the study; returns 0, 1 if a cell failed, 128 + signal if stopped."""
  if args.topology:
    # As in `genie plan`: a plan uses no device of this machine.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  import dataclasses

  from genie_jax.core import errors
  from genie_jax.scaling import ladder as ladder_lib
  from genie_jax.scaling import study as study_lib

  if (args.topology or args.price is not None) and not args.dry_run:
    raise errors.UserError("--topology and --price need --dry-run.")
  ladder = ladder_lib.load(args.file)
  given = dict(
    flag.removeprefix("--config.").split("=", 1) for flag in args.overrides
  )
  ladder = dataclasses.replace(ladder, overrides={**ladder.overrides, **given})
  ladder_lib.check(ladder)
  study = study_lib.Study(ladder, args.out, args.held_out)
  if args.status:
    print(study_lib.status(study))
    return 0
  if args.dry_run:
    return _dry_run(study, args)
  if args.print_commands:
    return _print_commands(study)
  code = 0
  if not args.collect:
    code = study.run(args.cell, _log)
    if code > 1:
      return code
  if args.count_flops:
    from genie_jax.scaling import cost

    done = [cell for cell in study.cells if study.workspace.is_done(cell)]
    cost.count_flops(study.workspace, done, study.configs, _log)
  return _collect(study) or code


def _log(line: str) -> None:
  print(f"genie scaling ladder: {line}", file=sys.stderr, flush=True)


def _dry_run(study, args: argparse.Namespace) -> int:
  """Prints what the cells that are not done cost."""
  from genie_jax.scaling import cost

  cells = [cell for cell in study.cells if not study.workspace.is_done(cell)]
  done = {
    cell.name: max(state.step - cell.fork_step, 0)
    for cell, state in zip(study.cells, study.states().values(), strict=True)
  }
  chips = None
  if args.topology:
    from genie_jax.plan import aot_compile

    aot_compile.set_up_compiler()
    seconds, chips = cost.planned(cells, study.configs, args.topology, _log)
  else:
    seconds = cost.measured(study.workspace, cells, study.configs, _log)
  print(cost.render(cells, study.configs, seconds, done, chips, args.price))
  return 0


def _print_commands(study) -> int:
  """Prints and writes the commands of the cells that can start."""
  from genie_jax.core import files

  states = study.states()
  lines = [
    shlex.join(study.command(cell))
    for cell in study.cells
    if states[cell.name].status in ("ready", "stopped", "failed")
    and not study.waits_for(cell)
  ]
  waiting = sum(state.status == "waits" for state in states.values())
  path = study.workspace.out / "commands.txt"
  files.write_atomic(path, "".join(line + "\n" for line in lines))
  print("\n".join(lines))
  _log(
    f"{len(lines)} commands are in {path}; {waiting} cells wait for others, so "
    "repeat this afterwards"
    if waiting
    else f"{len(lines)} commands are in {path}"
  )
  return 0


def _collect(study) -> int:
  """Writes runs.json; returns 1 if a finished cell has no valid result."""
  found, invalid = study.collect(["genie", *sys.argv[1:]], _log)
  if found is None:
    _log("no cell is done, so runs.json was not written")
    return 1 if invalid else 0
  path = study.workspace.out / "runs.json"
  found.write(path)
  missing = len(found.provenance["missing"])
  print(
    f"{path}: {len(found.runs)} runs"
    + (f"; {missing} cells are not done" if missing else "")
  )
  return 1 if invalid else 0


def main() -> int:
  """Entry point of `python -m genie_jax.cli.scaling_ladder`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["scaling", "ladder", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
