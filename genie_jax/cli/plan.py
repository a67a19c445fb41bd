"""`genie plan`: memory, step time, MFU, days and cost of a training run.

It compiles the train step with the TPU compiler and needs no TPU.
"""

import argparse
import math
import os
import sys
import typing
from typing import Any

from genie_jax.core import errors

if typing.TYPE_CHECKING:
  import ml_collections

  from genie_jax.plan import topology as topology_lib
  from genie_jax.scaling import paper

_EXAMPLE = """\
example:
  genie plan --config experiments/platformers/dynamics.py \\
      --topology v5p:4x8x8 --json plan.json

Needs the library libtpu; see docs/plan.md. The exit code is 2 if the run, or
a row of --scaling-table, does not fit or cannot be planned; the JSON file is
written in any case.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; `--config.*` overrides are in `args.overrides`."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--config",
    default=None,
    metavar="FILE.py[:MODE]",
    help="the config of the training run; needed except for --calibrate",
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--topology",
    metavar="CHIP:AxBxC",
    help="chips of one slice, for example v5p:4x8x8 or v5e:16x16; or GPUs, for "
    "example h100:8 or, for nodes of eight, h100:32x8",
  )
  what.add_argument(
    "--scaling-table",
    metavar="all|ROW,ROW",
    help="plan rows of the paper's scaling table on the paper's chips; "
    "--config must be experiments/scaling/dynamics.py",
  )
  what.add_argument(
    "--calibrate",
    metavar="all|RUN,RUN",
    help="plan published training runs of language models and compare the "
    "seconds with the published ones",
  )
  add(
    "--slices",
    type=int,
    default=1,
    metavar="N",
    help="number of such slices (default 1)",
  )
  add(
    "--price",
    type=float,
    default=None,
    metavar="MONEY",
    help="price of one chip for one hour, to compute the cost",
  )
  add(
    "--json",
    default=None,
    metavar="FILE",
    help="also write the plan to this file",
  )
  add(
    "--whole-run",
    action="store_true",
    help="also plan evaluation, previews and checkpoints (compiles two more "
    "programs)",
  )
  add(
    "--measured",
    default=None,
    metavar="WORKDIR",
    help="compare the plan with the measured speed of a run of this config on "
    "these chips",
  )
  add(
    "--save-ratios",
    action="store_true",
    help="with --calibrate and --json: also write the ratios from which every "
    "plan's range of seconds is computed",
  )
  add(
    "--breakdown",
    action="store_true",
    help="also print seconds by part of the model",
  )
  add(
    "--search",
    action="store_true",
    help="plan different meshes, remat policies and batch splits, and rank "
    "them",
  )
  add(
    "--limit",
    type=int,
    default=8,
    metavar="N",
    help="maximum number of layouts that --search compiles (default 8)",
  )
  add(
    "--fixes",
    type=int,
    default=2,
    metavar="N",
    help="maximum number of changes to compile if the run does not fit "
    "(default 2)",
  )
  add(
    "--hlo",
    default=None,
    metavar="FILE",
    help="also write the text of the compiled program to this file",
  )
  add(
    "--sample",
    action="store_true",
    help="plan a frame of the trained world instead of a training step: "
    "memory, seconds per frame, frames per second",
  )
  add(
    "--tokenizer",
    default=None,
    metavar="FILE.py[:MODE]",
    help="with --sample: the tokenizer's config (default: tokenizer.py in the "
    "folder of --config)",
  )
  add(
    "--players",
    type=int,
    default=1,
    metavar="N",
    help="with --sample: number of players that one call serves (default 1)",
  )
  add(
    "--slide",
    choices=("exact", "rolling", "re-encode"),
    default="exact",
    help="with --sample: what happens when the window is full (default exact)",
  )
  add(
    "--option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="option of the TPU compiler, for example "
    "xla_tpu_scoped_vmem_limit_kib=98304; may be repeated",
  )


def run(args: argparse.Namespace) -> int:
  """Prints the plan and returns 0.

  Raises:
    UserError: The arguments are invalid, or the run does not fit.
  """
  _check(args)
  # Set before JAX is imported, as a plan uses no device of this machine.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # The cache cannot load programs that were compiled for other devices.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  from genie_jax.plan import aot_compile

  options = _options(args.option)
  if args.calibrate:
    return _calibrate(args)
  if args.scaling_table:
    return _scaling_table(args, options)
  from genie_jax.core import config as config_lib
  from genie_jax.plan import gpu, topology

  if gpu.names_gpu(args.topology):
    return _gpu(args)
  found = topology.parse(args.topology, args.slices)
  config = config_lib.load(args.config, args.overrides)
  aot_compile.set_up_compiler()
  if args.sample:
    return _sample(args, config, found, options)
  if args.search:
    return _search(args, config, found, options)
  return _one(args, config, found, options)


def _check(args: argparse.Namespace) -> None:
  """Raises UserError for flags that do not fit, and numbers out of range."""
  if not args.config and not args.calibrate:
    raise errors.UserError("genie plan needs --config FILE.py.")
  if args.save_ratios and not (args.calibrate and args.json):
    raise errors.UserError(
      "--save-ratios needs --calibrate all --json FILE; what it saves is "
      "computed from the rows of this file."
    )
  for name, least in (
    ("players", 1),
    ("price", 0),
    ("limit", 1),
    ("fixes", 0),
    ("slices", 1),
  ):
    value = getattr(args, name)
    if value is not None and not least <= value < math.inf:
      raise errors.UserError(
        f"--{name}={value} is out of range; give a number of {least} or more."
      )


def _one(
  args: argparse.Namespace,
  config: "ml_collections.ConfigDict",
  topology: "topology_lib.Topology",
  options: dict[str, str],
) -> int:
  """Plans one training run."""
  from genie_jax.core import files
  from genie_jax.plan import child_process, measured, training, whole_run
  from genie_jax.plan.search import advice

  # Read first: it takes no time, and may be missing.
  seconds = measured.step_seconds(args.measured) if args.measured else None
  planner = lambda config, topology: child_process.plan_training(
    config, topology, args.price, options, args.whole_run
  )
  report, text = planner(config, topology)
  report |= {"config": args.config, "overrides": list(args.overrides)}
  if seconds is not None and report["fits"]:
    report["measured"] = measured.compare(report, seconds)
  if not report["fits"]:
    report["changes_tried"] = advice.try_changes(
      config,
      topology,
      args.fixes,
      planner,
      log=lambda line: print(f"genie plan: {line}", file=sys.stderr),
    )
  if args.hlo and text:
    files.write_atomic(args.hlo, text)
  if args.json:
    files.write_json(args.json, report)
  print(training.render(report, args.breakdown))
  if "whole_run" in report:
    print("\n".join(whole_run.lines(report["whole_run"])))
  if "measured" in report:
    print("\n".join(measured.lines(report["measured"])))
  if not report["fits"]:
    raise errors.UserError(f"{args.config} {advice.verdict(report)}")
  return 0


def _gpu(args: argparse.Namespace) -> int:
  """Plans one training run on GPUs, which is not compiled."""
  from genie_jax.core import config as config_lib
  from genie_jax.core import files
  from genie_jax.plan import gpu

  for name in ("search", "sample", "whole_run", "measured", "hlo", "breakdown"):
    if getattr(args, name):
      flag = name.replace("_", "-")
      raise errors.UserError(
        f"--{flag} needs a compiled program, and plans for GPUs are not "
        f"compiled; leave it out, or give a TPU as --topology."
      )
  if args.option or args.slices > 1:
    raise errors.UserError(
      "--option and --slices are for TPUs; for GPUs write --topology "
      "GPU:NODESxCOUNT, for example h100:32x8."
    )
  cluster = gpu.parse(args.topology)
  config = config_lib.load(args.config, args.overrides)
  report = gpu.plan(config, cluster, args.price)
  report |= {"config": args.config, "overrides": list(args.overrides)}
  if args.json:
    files.write_json(args.json, report)
  print(gpu.render(report))
  if not report["fits"]:
    raise errors.UserError(
      f"{args.config} needs up to {report['memory_margin']:g} x "
      f"{report['memory_gib_per_gpu']:.1f} GiB, more than the "
      f"{report['memory_limit_gib']:.1f} GiB of a GPU of {cluster.name}; use "
      "more GPUs with a larger config.mesh.fsdp, a larger "
      "config.optimizer.accumulate, or another remat policy."
    )
  return 0


def _sample(
  args: argparse.Namespace,
  config: "ml_collections.ConfigDict",
  topology: "topology_lib.Topology",
  options: dict[str, str],
) -> int:
  """Plans one frame of a world."""
  from genie_jax.core import config as config_lib
  from genie_jax.core import files
  from genie_jax.plan import child_process, play

  path, _, mode = args.config.partition(":")
  default = os.path.join(os.path.dirname(path), "tokenizer.py")
  tokenizer = config_lib.load(args.tokenizer or f"{default}:{mode}")
  report, text = child_process.plan_play(
    config, tokenizer, topology, args.players, args.slide, options
  )
  report |= {"config": args.config, "overrides": list(args.overrides)}
  if args.hlo and text:
    files.write_atomic(args.hlo, text)
  if args.json:
    files.write_json(args.json, report)
  print(play.render(report))
  if not report["fits"]:
    raise errors.UserError(
      f"{args.config} --sample needs more than the "
      f"{report['hbm_limit_gib']:g} GiB of a chip of {topology.name}; use "
      "more chips, which split the weights, or fewer --players."
    )
  return 0


def _search(
  args: argparse.Namespace,
  config: "ml_collections.ConfigDict",
  topology: "topology_lib.Topology",
  options: dict[str, str],
) -> int:
  """Plans several layouts of a training run."""
  from genie_jax.core import files, progress
  from genie_jax.plan import child_process
  from genie_jax.plan.search import search

  rows = search.run(
    config,
    topology,
    args.limit,
    lambda config, topology: child_process.plan_training(
      config, topology, args.price, options
    ),
    lambda items: progress.track(items, unit="plans", description="search"),
  )
  if args.json:
    files.write_json(
      args.json,
      {"config": args.config, "topology": topology.name, "search": rows},
    )
  print(search.render(rows))
  if not any(row["fits"] for row in rows):
    raise errors.UserError(
      f"{args.config}: none of the {len(rows)} compiled layouts fits "
      f"{topology.slices} x {topology.name}; raise --limit, or use more "
      "chips."
    )
  print(f"best: {rows[0]['flags']}, remat {rows[0]['remat']}")
  return 0


def _scaling_table(args: argparse.Namespace, options: dict[str, str]) -> int:
  """Plans rows of the paper's scaling table."""
  from genie_jax.core import config as config_lib
  from genie_jax.core import files, progress
  from genie_jax.plan import aot_compile, child_process, topology
  from genie_jax.scaling import paper

  runs = paper.find(args.scaling_table)
  # Load all configs first, so that an error in an override is reported once.
  configs = [
    config_lib.load(f"{args.config}:{row.size}", args.overrides) for row in runs
  ]
  aot_compile.set_up_compiler()
  rows: list[dict[str, Any]] = []
  pairs = list(zip(runs, configs, strict=True))
  for run_, config in progress.track(pairs, unit="rows", description="plans"):
    slice_ = topology.parse(run_.topology)
    try:
      report, _ = child_process.plan_training(
        paper.lay_out(config, run_), slice_, args.price, options
      )
      rows.append(paper.row(run_, report))
    except errors.UserError as error:
      rows.append(_row_without_plan(run_, slice_, str(error)))
    # Written after each row, as the full table takes an hour.
    if args.json:
      files.write_json(args.json, rows)
  print(paper.render(rows))
  failed = [f"{row['size']} {_reason(row)}" for row in rows if not row["fits"]]
  if failed:
    raise errors.UserError(
      f"{len(failed)} of {len(rows)} rows of --scaling-table have no plan: "
      f"{'; '.join(failed)}."
    )
  return 0


def _calibrate(args: argparse.Namespace) -> int:
  """Plans published runs."""
  import pathlib
  import shlex

  from genie_jax.core import files, progress
  from genie_jax.plan import aot_compile, child_process
  from genie_jax.plan.calibration import calibrate, published, ratios

  runs = published.find(args.calibrate)
  aot_compile.set_up_compiler()
  command = shlex.join(["genie", "plan", "--calibrate", args.calibrate])
  rows: list[dict[str, Any]] = []
  names = [run_.name for run_ in runs]
  if args.json and pathlib.Path(args.json).exists():
    rows = calibrate.resumed(files.read_json(args.json, calibrate.FORM), names)
  done = {row["name"] for row in rows}
  missing = [run_ for run_ in runs if run_.name not in done]
  for run_ in progress.track(missing, unit="runs", description="plans"):
    program, text = calibrate.program(), ""
    try:
      row, text = child_process.plan_published(run_)
    except errors.UserError as error:
      row = calibrate.without_plan(run_, str(error))
    rows.append(row | {"program": program})
    if args.hlo and text:
      files.write_atomic(args.hlo, text)
    # Written after each row, as all of them take a long time.
    if args.json:
      files.write_json(args.json, calibrate.result(rows, command))
  found = calibrate.result(rows, command)
  print(calibrate.render(found))
  if args.save_ratios:
    files.write_json(ratios.PATH, calibrate.stored_ratios(found))
    print(f"wrote {ratios.PATH}")
  failed = calibrate.failures(row for row in rows if row["name"] in names)
  if failed:
    raise errors.UserError(
      f"{len(failed)} of {len(names)} runs of --calibrate have no plan: "
      f"{'; '.join(failed)}."
    )
  return 0


def _row_without_plan(
  run_: "paper.Run", topology: "topology_lib.Topology", reason: str
) -> dict[str, Any]:
  """Returns a row of the table, like `paper.row`, for a run without a plan."""
  return {
    "size": run_.size,
    "topology": run_.topology,
    "paper_days": run_.days,
    "chips": topology.num_chips,
    "hbm_limit_gib": topology.chip.hbm_gib,
    "fits": False,
    "refused": reason,
    **dict.fromkeys(
      (
        "days",
        "days_low",
        "days_high",
        "cost",
        "cost_low",
        "cost_high",
        "ratio",
        "flops_ratio",
        "hbm_gib_per_chip",
        "step_seconds",
        "mfu",
        "mesh",
        "remat",
        "accumulate",
        "copied_whole",
        "compile_seconds",
      )
    ),
  }


def _reason(row: dict[str, Any]) -> str:
  """Returns why a row of the table has no plan."""
  if "refused" in row:
    return f"cannot be planned ({row['refused'].rstrip('.')})"
  used, limit = row["hbm_gib_per_chip"], row["hbm_limit_gib"]
  return f"does not fit the {limit:g} GiB of a chip of {row['topology']}" + (
    "" if used is None else f" (needs {used:.1f})"
  )


def _options(words: list[str]) -> dict[str, str]:
  """Parses the values of --option."""
  options = {}
  for word in words:
    name, equals, value = word.partition("=")
    if not equals:
      raise errors.UserError(
        f"--option {word!r} has no value; write --option NAME=VALUE."
      )
    options[name] = value
  return options


def main() -> int:
  """Entry point of `python -m genie_jax.cli.plan`."""
  from genie_jax.cli import main as main_lib

  return main_lib.main(["plan", *sys.argv[1:]])


if __name__ == "__main__":
  sys.exit(main())
