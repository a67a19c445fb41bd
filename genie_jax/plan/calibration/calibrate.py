"""Plans published runs and compares the seconds with the published ones."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors, provenance, schema
from genie_jax.plan import aot_compile, training
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.calibration import decoder, published, ratios
from genie_jax.plan.cost import schedule

VERSION = 2
_LIBRARIES = ("jax", "jaxlib", "flax", "optax")


def published_seconds(run: published.Run) -> float:
  """Returns the published seconds of a step with the planned batch.

  Raises:
    ValueError: The row has neither seconds nor TFLOP/s.
  """
  if run.seconds is not None:
    return run.seconds * run.planned_batch / run.batch_per_device
  if run.teraflops is None:
    raise ValueError(f"The row {run.name!r} has no published speed.")
  topology = topology_lib.parse(run.topology)
  sequences = run.planned_batch * topology.num_devices / topology.num_chips
  flops = sequences * run.shape.flops_per_sequence(run.length)
  return flops / (run.teraflops * 1e12)


def step_of(run: published.Run) -> aot_compile.Step:
  """Returns the train step of a published run, ready to compile.

  It is the step of `genie train`, with its layouts, optimizer and compiler
  options, of a stage that trains the run's model.
  """
  topology = topology_lib.parse(run.topology)
  config = ml_collections.ConfigDict(
    {
      "stage": "decoder",
      "steps": 1000,
      "mesh": {
        "data": 1,
        "fsdp": run.fsdp,
        "tensor": run.tensor,
        "frame": 1,
      },
      # MaxText's defaults: configs/base.yml.
      "optimizer": {
        "name": "adamw",
        "b1": 0.9,
        "b2": 0.95,
        "weight_decay": 0.1,
        "clip_norm": 1.0,
        "mu_dtype": run.mu_dtype,
      },
      "data": {"batch_size": run.planned_batch * topology.num_devices},
    }
  )
  stage = decoder.make(run.shape, run.length, run.remat, run.kernel)
  return aot_compile.build_from_stage(stage, config, topology)


def plan(run: published.Run) -> tuple[dict[str, Any], str]:
  """Plans a published run.

  Args:
    run: The run.

  Returns:
    A row of the result as JSON values, and the text of the compiled program
    ("" if it does not fit into memory; then the planned values are None).
  """
  topology = topology_lib.parse(run.topology)
  step = step_of(run)
  row = _facts(run)
  try:
    compiled = aot_compile.compile_step(step)
  except aot_compile.OutOfMemory as error:
    return (
      row | _NO_PLAN | training.out_of_memory_report(error, topology),
      "",
    )
  network = topology_lib.network(topology, step.mesh)
  found = schedule.estimate(compiled.text, network)
  peak = topology.chip.peak_flops * topology.num_chips
  flops = step.stage.flops_per_clip * step.config.data.batch_size
  seconds = row["published_seconds"]
  row |= {
    "planned_seconds": found.total,
    "ratio": found.total / seconds,
    "mfu": flops / (found.total * peak),
    "published_mfu": flops / (seconds * peak),
    "planned_seconds_by_part": {
      "compute": found.compute,
      "kernels": found.kernels,
      "exposed_communication": found.exposed,
    },
    "collectives": schedule.summary(found),
    "compiled_flops_over_model_flops": sum(found.flops.values())
    * topology.num_devices
    / flops,
    "loops_of_unknown_length": found.unknown_loops,
    "unknown_kernels": sorted(found.unknown_kernels),
    "host_gigabytes": found.host_bytes / 1e9,
    "compile_seconds": round(compiled.seconds, 1),
  }
  row |= training.memory_report(compiled.memory, topology)
  return row, compiled.text


def without_plan(run: published.Run, reason: str) -> dict[str, Any]:
  """Returns a row, like `plan`, of a run that cannot be planned.

  Args:
    run: The run.
    reason: Why it cannot be planned.
  """
  return _facts(run) | _NO_PLAN | {"fits": False, "refused": reason}


# The values that a row without a plan lacks.
_NO_PLAN: dict[str, None] = dict.fromkeys(("planned_seconds", "ratio", "mfu"))


def _facts(run: published.Run) -> dict[str, Any]:
  """Returns the part of a row that is known before the compilation."""
  topology = topology_lib.parse(run.topology)
  return {
    "name": run.name,
    "source": run.source,
    "setup": run.setup,
    "chips": topology.num_chips,
    "topology": topology.name,
    "mesh": {"fsdp": run.fsdp, "tensor": run.tensor},
    "batch_size": run.planned_batch * topology.num_devices,
    "published_batch_size": run.batch_per_device * topology.num_devices,
    "sequence_length": run.length,
    "parameters": run.shape.params,
    "remat": vars(run.remat),
    "assumptions": list(run.assumptions),
    "published_seconds": published_seconds(run),
    "published_teraflops_per_chip": run.teraflops,
  }


def result(rows: Sequence[Mapping[str, Any]], command: str) -> dict[str, Any]:
  """Returns the whole result as JSON values.

  Args:
    rows: From `plan` or `without_plan`, each with its "program".
    command: The command line that computes them.
  """
  order = list(published.RUNS)
  rows = sorted(rows, key=lambda row: order.index(row["name"]))
  values = [row["ratio"] for row in compared(rows)]
  return {
    "version": VERSION,
    "rows": rows,
    "geometric_mean": ratios.geometric_mean(values) if values else None,
    "worst": ratios.worst(values) if values else None,
    "held_out": ratios.held_out(values),
    "command": command,
  }


def compared(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Returns the rows whose seconds are compared: those that fit by plan.

  The compiler schedules a program that does not fit for memory, without
  overlapping communication, so its seconds are not those of the published run,
  which did fit.
  """
  return [row for row in rows if row["ratio"] is not None and row["fits"]]


def stored_ratios(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what ships with the package: the ratios of a result.

  Raises:
    UserError: There are too few for a range.
  """
  rows = compared(found["rows"])
  if len(rows) < ratios.LEAST:
    raise errors.UserError(
      f"--save-ratios needs {ratios.LEAST} runs that fit by plan, and there "
      f"are {len(rows)}; plan more of them with --calibrate."
    )
  commits = {row["program"]["commit"] or "unknown" for row in rows}
  return {
    "version": ratios.VERSION,
    "commits": sorted(commits),
    "rows": [
      {
        "name": row["name"],
        "topology": row["topology"],
        "ratio": row["ratio"],
        "share_of_peak": row["published_mfu"]
        * row["compiled_flops_over_model_flops"],
      }
      for row in rows
    ],
  }


# What `resumed` reads of a result.
FORM = {
  "version": object,
  "rows": schema.Maybe([{"name": str, "program": dict}]),
}


def resumed(
  found: Mapping[str, Any], names: Sequence[str]
) -> list[dict[str, Any]]:
  """Returns the rows of an earlier result that stay as they are.

  These are the rows that are not wanted now, and the wanted ones that the same
  program has planned. A row that could not be planned is planned again.

  Args:
    found: A result that was written before.
    names: The rows that are wanted.

  Raises:
    UserError: The result is of another version, or no result.
  """
  if found.get("version") != VERSION:
    raise errors.UserError(
      f"--json has a file of version {found.get('version')}, and rows are "
      f"added to version {VERSION} only; write to another file."
    )
  now = program()
  return [
    row
    for row in found.get("rows", ())
    if row["name"] in published.RUNS
    and (
      row["name"] not in names
      or (now["clean"] and row["program"] == now and "refused" not in row)
    )
  ]


def program() -> dict[str, Any]:
  """Returns what a row depends on: the commit and the libraries."""
  # Results are edited while they are made, and are not part of the program;
  # the stored ratios are such a result.
  commit = provenance.commit(
    "genie_jax", f":(exclude,glob)**/{ratios.PATH.name}"
  )
  return {
    "commit": None if commit is None else commit.removesuffix("+"),
    "clean": commit is not None and not commit.endswith("+"),
    "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES}
    | {"libtpu": aot_compile.library_requirement()},
  }


def failures(rows: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns one line for each row without a plan, with the reason."""
  return [
    f"{row['name']} "
    + (
      f"cannot be planned ({row['refused'].rstrip('.')})"
      if "refused" in row
      else "does not fit its chips"
    )
    for row in rows
    if row["ratio"] is None or not row["fits"]
  ]


def render(found: Mapping[str, Any]) -> str:
  """Formats a result as a table."""
  lines = [f"{'':34}{'published':>10}{'planned':>9}{'ratio':>7}{'MFU':>8}"]
  number = lambda value, form: "-" if value is None else format(value, form)
  lines += [
    f"{row['name']:34}{row['published_seconds']:10.3f}"
    f"{number(row['planned_seconds'], '9.3f'):>9}"
    f"{number(row['ratio'], '7.3f'):>7}{number(row['mfu'], '8.1%'):>8}"
    + ("" if row["fits"] else "  does not fit")
    for row in found["rows"]
  ]
  if found["geometric_mean"] is not None:
    count = len(compared(found["rows"]))
    lines.append(
      f"planned / published: geometric mean {found['geometric_mean']:.3f}, "
      f"worst {found['worst']:.3f}, of {count} runs that fit by plan"
    )
  if found["held_out"] is not None:
    lines.append(ratios.render_held_out(found["held_out"]))
  return "\n".join(lines)
