"""`genie plan`: memory, step time, MFU, days and cost, before renting a chip.

The train step is compiled by the real TPU compiler for chips that need not be
here; no TPU is needed.
"""

import argparse
import math
import os
import sys
from typing import Any

from genie_jax.core import errors

_EXAMPLE = """\
example:
  genie plan --config experiments/platformers/dynamics.py \\
      --topology v5p:4x8x8 --json plan.json

Needs the library libtpu; see docs/plan.md. Exit code 2 when
the run, or a row of --scaling-table, does not fit the chips or cannot be
planned; the JSON is written all the same.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags; `--config.*` overrides come as `args.overrides`."""
  parser.epilog = _EXAMPLE
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  add = parser.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE.py[:MODE]",
    help="what would be trained",
  )
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--topology",
    metavar="CHIP:AxBxC",
    help="chips of one slice, for example v5p:4x8x8 or v5e:16x16",
  )
  what.add_argument(
    "--scaling-table",
    metavar="all|ROW,ROW",
    help="plan rows of the paper's scaling table on the paper's chips; "
    "--config is experiments/scaling/dynamics.py",
  )
  add(
    "--slices",
    type=int,
    default=1,
    metavar="N",
    help="how many such slices (default 1)",
  )
  add(
    "--price",
    type=float,
    default=None,
    metavar="MONEY",
    help="price of a chip for an hour",
  )
  add("--json", default=None, metavar="FILE", help="also write the plan there")
  add(
    "--breakdown",
    action="store_true",
    help="also print seconds by part of the model",
  )
  add(
    "--search",
    action="store_true",
    help="try meshes, remat policies and batch splits; rank them",
  )
  add(
    "--limit",
    type=int,
    default=8,
    metavar="N",
    help="how many --search compiles at most (default 8)",
  )
  add(
    "--fixes",
    type=int,
    default=2,
    metavar="N",
    help="how many changes to compile when the run does not fit (default 2)",
  )
  add(
    "--hlo",
    default=None,
    metavar="FILE",
    help="also write the compiled program's text there",
  )
  add(
    "--sample",
    action="store_true",
    help="plan a frame of the trained world instead of a training step: "
    "memory, seconds a frame, frames a second",
  )
  add(
    "--tokenizer",
    default=None,
    metavar="FILE.py[:MODE]",
    help="with --sample: the tokenizer's config (default: tokenizer.py "
    "beside --config)",
  )
  add(
    "--players",
    type=int,
    default=1,
    metavar="N",
    help="with --sample: players that one call serves (default 1)",
  )
  add(
    "--slide",
    choices=("exact", "rolling", "re-encode"),
    default="exact",
    help="with --sample: what happens at the window's end (default exact)",
  )
  add(
    "--option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="option of the TPU compiler, for example "
    "xla_tpu_scoped_vmem_limit_kib=98304; may be given many times",
  )


def run(args: argparse.Namespace) -> int:
  """Prints the plan; returns 0, or 2 when it does not fit."""
  _check(args)
  # Before JAX is imported: a plan never uses a device of this machine.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # The cache cannot read back what is compiled for chips that are not here.
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
  from genie_jax.plan import aot_compile

  options = _options(args.option)
  if args.scaling_table:
    return _scaling_table(args, options)
  from genie_jax.core import config as config_lib
  from genie_jax.plan import topology

  found = topology.parse(args.topology, args.slices)
  config = config_lib.load(args.config, args.overrides)
  aot_compile.prepare()
  if args.sample:
    return _sample(args, config, found, options)
  if args.search:
    return _search(args, config, found, options)
  return _one(args, config, found, options)


def _check(args: argparse.Namespace) -> None:
  """Refuses numbers that no plan can be made with."""
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
        f"--{name}={value}: give a number of {least} or more."
      )


def _one(args, config, topology, options) -> int:
  from genie_jax.core import files
  from genie_jax.plan import child_process, training
  from genie_jax.plan.search import advice

  report, text = child_process.make(config, topology, args.price, options)
  report |= {"config": args.config, "overrides": list(args.overrides)}
  if not report["fits"]:
    report["changes_tried"] = advice.try_changes(
      config,
      topology,
      args.fixes,
      lambda *words: child_process.make(*words, args.price, options),
      say=lambda line: print(f"genie plan: {line}", file=sys.stderr),
    )
  if args.hlo and text:
    files.write_atomic(args.hlo, text)
  if args.json:
    files.write_json(args.json, report)
  print(training.render(report, args.breakdown))
  if not report["fits"]:
    raise errors.UserError(f"{args.config} {advice.verdict(report)}")
  return 0


def _sample(args, config, topology, options) -> int:
  from genie_jax.core import config as config_lib
  from genie_jax.core import files
  from genie_jax.plan import child_process, play

  path, _, mode = args.config.partition(":")
  beside = os.path.join(os.path.dirname(path), "tokenizer.py")
  tokenizer = config_lib.load(args.tokenizer or f"{beside}:{mode}")
  report, text = child_process.play(
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
      "more chips, which share the weights, or fewer --players."
    )
  return 0


def _search(args, config, topology, options) -> int:
  from genie_jax.core import files, progress
  from genie_jax.plan import child_process
  from genie_jax.plan.search import search

  rows = search.run(
    config,
    topology,
    args.limit,
    lambda *words: child_process.make(*words, args.price, options),
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
      f"{args.config}: none of the {len(rows)} layouts that were tried fits "
      f"{topology.slices} x {topology.name}; raise --limit, or use more "
      "chips."
    )
  print(f"best: {rows[0]['flags']}, remat {rows[0]['remat']}")
  return 0


def _scaling_table(args, options) -> int:
  from genie_jax.core import config as config_lib
  from genie_jax.core import files, progress
  from genie_jax.plan import aot_compile, child_process, topology
  from genie_jax.scaling import paper

  runs = paper.find(args.scaling_table)
  # All of them first: a slip in an override ends here, not in every row.
  configs = [
    config_lib.load(f"{args.config}:{run_.size}", args.overrides)
    for run_ in runs
  ]
  aot_compile.prepare()
  rows: list[dict[str, Any]] = []
  pairs = list(zip(runs, configs, strict=True))
  for run_, config in progress.track(pairs, unit="rows", description="plans"):
    place = topology.parse(run_.topology)
    try:
      report, _ = child_process.make(
        paper.lay_out(config, run_), place, args.price, options
      )
      rows.append(paper.row(run_, report))
    except errors.UserError as error:
      rows.append(_refused(run_, place, str(error)))
    if args.json:  # After each row: a whole table takes an hour.
      files.write_json(args.json, rows)
  print(paper.render(rows))
  lost = [f"{row['size']} {_why(row)}" for row in rows if not row["fits"]]
  if lost:
    raise errors.UserError(
      f"{len(lost)} of {len(rows)} rows of --scaling-table have no plan: "
      f"{'; '.join(lost)}."
    )
  return 0


def _refused(run_, place, reason: str) -> dict[str, Any]:
  """Returns a row like `paper.row` of a run that cannot be planned."""
  return {
    "size": run_.size,
    "topology": run_.topology,
    "paper_days": run_.days,
    "hbm_limit_gib": place.chip.hbm_gib,
    "fits": False,
    "refused": reason,
    **dict.fromkeys(
      (
        "days",
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


def _why(row: dict[str, Any]) -> str:
  """Returns why a row of the table has no plan."""
  if "refused" in row:
    return f"is refused ({row['refused'].rstrip('.')})"
  used, limit = row["hbm_gib_per_chip"], row["hbm_limit_gib"]
  return f"does not fit the {limit:g} GiB of a chip of {row['topology']}" + (
    "" if used is None else f" (needs {used:.1f})"
  )


def _options(words: list[str]) -> dict[str, str]:
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
