"""`genie scaling fit`: fits laws to the runs of a study, and predicts.

A prediction is made in two calls. Before the largest run starts:

  genie scaling fit RUNS.json --predict 6.8M --flops 2.2e14 \\
      --predictions PREDICTIONS.json

After it has ended and `genie scaling ladder` has added it to RUNS.json:

  genie scaling fit RUNS.json --predictions PREDICTIONS.json --out RESULTS.json
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

_EXAMPLE = """\
example:
  genie scaling fit RUNS.json --predict 6.8M --flops 2.2e14 \\
      --predictions PREDICTIONS.json
  genie scaling fit RUNS.json --predictions PREDICTIONS.json --out RESULTS.json

The first call writes a prediction before the run starts. The second one, with
the new run in RUNS.json, compares it with the measured loss.
"""
_LETTERS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `genie scaling fit`."""
  parser.add_argument(
    "runs", metavar="RUNS.json", help="file that `genie scaling ladder` wrote"
  )
  parser.add_argument(
    "--predict",
    metavar="SIZE",
    default=None,
    help="predict the loss of a run that is not in RUNS.json, by its "
    "parameters (6.8M, 6800000)",
  )
  parser.add_argument(
    "--flops",
    type=float,
    default=None,
    metavar="F",
    help="training FLOPs of that run, for the law in FLOPs",
  )
  parser.add_argument(
    "--predictions",
    metavar="FILE",
    default=None,
    help="with --predict: file to write, which must not exist; without: file "
    "to compare with the held-out run",
  )
  parser.add_argument(
    "--law",
    choices=("params", "flops", "params_and_tokens"),
    default="params",
    help="the law that counts (default: params); a file of predictions "
    "names its own",
  )
  parser.add_argument(
    "--hold-out",
    metavar="NAME",
    default=None,
    help="name or size of the rungs to hold out (default: those that RUNS.json "
    "holds out, else the largest)",
  )
  parser.add_argument(
    "--resamples",
    type=int,
    default=300,
    metavar="R",
    help="resamples of the intervals (default: 300)",
  )
  parser.add_argument(
    "--out", metavar="FILE", default=None, help="write the result as JSON"
  )


def add_command(commands: Any) -> None:
  """Adds `fit` to the sub-commands of `genie scaling`."""
  add_arguments(
    commands.add_parser(
      "fit",
      help="fit scaling laws, predict a larger run, and judge a prediction",
      description=__doc__,
      epilog=_EXAMPLE,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
  )


def run(args: argparse.Namespace) -> int:
  """Fits, or writes a prediction; returns 0."""
  # Imported here because SciPy and JAX take seconds, which --help can avoid.
  from genie_jax.core import errors, files, provenance
  from genie_jax.scaling import predictions, results
  from genie_jax.scaling import runs as runs_lib

  if args.resamples < 1:
    raise errors.UserError(f"--resamples={args.resamples} must be at least 1.")
  if args.predict is not None:
    return _predict(args)
  if args.flops is not None:
    raise errors.UserError("--flops describes a run to --predict; give both.")
  study = runs_lib.Study.read(args.runs)
  if args.predictions is not None:
    predictions.read(args.predictions)  # An invalid file fails at once.
  result = results.assemble(
    study,
    args.law,
    provenance.collect(_command(args)),
    prediction_path=args.predictions,
    held_out=args.hold_out,
    resamples=args.resamples,
  )
  print(render(result))
  if args.out:
    files.write_json(args.out, result)
    print(f"wrote {args.out}")
  return 0


def _predict(args: argparse.Namespace) -> int:
  from genie_jax.core import errors, provenance
  from genie_jax.scaling import fit, predictions, results
  from genie_jax.scaling import runs as runs_lib

  if args.out or args.hold_out:
    raise errors.UserError(
      "--predict takes no --out and no --hold-out; give --predictions FILE."
    )
  if args.predictions is None:
    raise errors.UserError(
      "--predict needs --predictions FILE, in which the prediction is kept."
    )
  predictions.refuse_existing(args.predictions)
  if args.flops is not None and not 0 < args.flops < math.inf:
    raise errors.UserError(f"--flops={args.flops} must be positive.")
  params = parse_size(args.predict)
  study = runs_lib.Study.read(args.runs)
  budgets = [run.tokens for run in study.runs if run.role == "rung"]
  target = fit.Target(
    args.predict, params, budgets[0] if budgets else 0, args.flops
  )
  content = results.predict(study, target, args.law, resamples=args.resamples)
  predictions.write(
    args.predictions,
    {"provenance": provenance.collect(_command(args)), **content},
  )
  for line in prediction_lines(content["losses"], content["last_rung_loss"]):
    print(line)
  print(f"wrote {args.predictions}; keep it, and start the run")
  return 0


def parse_size(text: str) -> float:
  """Returns the number of parameters that a text like "6.8M" means.

  Raises:
    UserError: The text is not a positive number.
  """
  from genie_jax.core import errors

  scale = _LETTERS.get(text[-1:].upper(), 1.0)
  try:
    value = float(text[:-1] if scale != 1 else text) * scale
  except ValueError:
    value = math.nan
  if not 0 < value < math.inf:
    raise errors.UserError(
      f"--predict={text} is not a number of parameters; write it like 6.8M or "
      "6800000."
    )
  return value


def _command(args: argparse.Namespace) -> list[str]:
  """Returns the words of the command."""
  words = ["genie", "scaling", "fit", str(args.runs)]
  for name in ("predict", "flops", "predictions", "law", "hold_out", "out"):
    value = getattr(args, name)
    if value is not None:
      words += [f"--{name.replace('_', '-')}", str(value)]
  return [*words, "--resamples", str(args.resamples)]


def prediction_lines(
  losses: Mapping[str, Mapping[str, float | None]],
  last: float,
  measured: float | None = None,
) -> list[str]:
  """Formats predictions, with their errors if the loss was measured."""
  rows = [*losses.items(), ("last rung again", {"loss": last, "low": None})]
  lines = []
  for name, row in rows:
    interval = (
      f"({row['low']:.4f} to {row['high']:.4f})"
      if row["low"] is not None
      else ""
    )
    error = f"{100 * (row['loss'] / measured - 1):+7.2f} %" if measured else ""
    lines.append(f"{name:20}{row['loss']:8.4f} {interval:20} {error}".rstrip())
  return lines


def render(result: Mapping[str, Any]) -> str:
  """Formats a result as lines of at most 80 columns."""
  verdict, target = result["verdict"], result["prediction"]["target"]
  lines = [f"{result['unit']}; intervals are 95 %"]
  for name, law in result["laws"].items():
    lines.append(f"{name}: {law['form']}, {len(law['runs'])} runs")
    for letter, value in law["parameters"].items():
      interval = (
        f" ({value['low']:.4g} to {value['high']:.4g})"
        if value["low"] is not None
        else ""
      )
      bound = "  at the end of its range" if letter in law["at_bounds"] else ""
      lines.append(f"  {letter} = {value['value']:.4g}{interval}{bound}")
  for name, reason in result["not_identified"].items():
    lines.append(f"{name} is not identified: {reason}.")
  made = result["prediction"]["date"] or "fitted now, without this run"
  lines += [
    f"held out: {target['name']}, {target['params']:,} parameters; prediction: "
    f"{made}",
    *prediction_lines(
      result["prediction"]["losses"],
      result["last_rung_loss"],
      result["measured_largest"],
    ),
    f"{'measured':20}{result['measured_largest']:8.4f}",
    f"within 3 %: {_word(verdict['within_3_percent'])}; error at most a third "
    f"of the drop: {_word(verdict['within_a_third_of_the_drop'])}; loss falls "
    f"with every size: {_word(verdict['loss_falls_with_every_size'])}",
  ]
  if back := result["backtest"]:
    lines.append(
      f"backtest on {back['size']}: error "
      f"{100 * back['relative_errors'][back['law']]:+.2f} %, pure power law "
      f"{100 * back['relative_errors']['pure_power']:+.2f} %, last rung again "
      f"{100 * back['relative_errors']['last_rung']:+.2f} %"
    )
  lines += _flops(result["rungs"])
  for size in result["batch_study"]:
    lines.append(f"batch sizes of {size['size']}:")
    for row in size["rows"]:
      mean = sum(row["losses"]) / len(row["losses"])
      lines.append(
        f"  {row['batch_size']:>6} clips x {row['steps']:>8} steps {mean:8.4f}"
      )
    if size["not_identified"]:
      lines.append(f"  no law: {size['not_identified']}.")
  if result["allocation"]:
    lines.append("compute-optimal sizes (FLOPs, parameters, tokens, loss):")
    for row in result["allocation"]["optimal"]:
      beyond = "  extrapolated" if row["extrapolated"] else ""
      lines.append(
        f"  {row['flops']:.2e} {row['params']:.3g} {row['tokens']:.3g} "
        f"{row['loss']:.4f}{beyond}"
      )
  return "\n".join(
    part
    for line in lines
    for part in (
      textwrap.wrap(line, 80, subsequent_indent="  ")
      if len(line) > 80
      else [line]
    )
  )


def _flops(rungs: Sequence[Mapping[str, Any]]) -> list[str]:
  """Formats FLOPs by formula and by compiler, where a run has both."""
  both = {
    run["size"]: run for run in rungs if run["compiled_flops"] is not None
  }
  return [
    f"FLOPs of {size}: {run['flops']:.3e} by formula, "
    f"{run['compiled_flops']:.3e} compiled "
    f"({run['compiled_flops'] / run['flops']:.3f})"
    for size, run in both.items()
  ]


def _word(value: bool) -> str:
  return "yes" if value else "no"


def main() -> int:
  """Entry point of `python -m genie_jax.cli.scaling_fit`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["scaling", "fit", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
