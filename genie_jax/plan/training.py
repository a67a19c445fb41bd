"""What a training run would need and take, before a chip is rented."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from genie_jax.core import chips
from genie_jax.models import build
from genie_jax.plan import aot_compile
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.cost import collectives, schedule
from genie_jax.plan.hlo import op_names, parse, saved_activations

_DAY = 86_400.0

# What a plan calls the passes of `op_names.of`.
_PASSES = {
  "forward": "forward",
  "backward": "backward",
  "recomputed": "recomputed",
  "optimizer and other": "",
}

# Said in every plan, since no measurement stands behind it.
METHOD = (
  "compute: the TPU compiler's cycle estimates, loops by their trip counts",
  "kernels: the largest of bytes over HBM bandwidth, padded FLOPs over half "
  "of peak, vector operations over the vector rate",
  "collectives: bytes over the links of all torus dimensions that a group "
  "spans, and a microsecond a hop; hidden behind what the schedule puts "
  "between their start and end",
  "compiled FLOPs: of matrix products, and of kernels with padded tiles; "
  "loops by their trip counts",
  "not in it: input, checkpoints, evaluation, slow hosts, restarts",
)


def make(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  price: float | None = None,
  options: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], str]:
  """Plans one run.

  Args:
    config: A training config.
    topology: The chips.
    price: Of a chip for an hour; None leaves the cost out.
    options: For the compiler, beside the usual ones.

  Returns:
    The plan as JSON values, and the compiled program's text ("" when it does
    not fit).

  Raises:
    UserError: The config does not make sense, or does not split over the
      devices.
  """
  step = aot_compile.build(config, topology)
  report = _facts(step, topology)
  try:
    compiled = aot_compile.compile_step(step, options)
  except aot_compile.OutOfMemory as error:
    return report | too_large(error, topology), ""
  module = parse.parse(compiled.text)
  report |= memory(compiled.memory, topology, saved_activations.of(module))
  found = schedule.of(
    module,
    collectives.network(
      step.mesh.devices.flat, topology.dims, topology.wrap, topology.chip
    ),
  )
  report["compile_seconds"] = round(compiled.seconds, 1)
  return report | _time(found, report, topology, price), compiled.text


def remat_of(config: Any) -> str | dict[str, str]:
  """Returns the remat policy of a config, by part where there are several."""
  found = {
    path: node.remat for path, node in aot_compile.transformers(config.model)
  }
  names = set(found.values())
  return names.pop() if len(names) == 1 else found


def set_remat(config: ml_collections.ConfigDict, policy: str) -> None:
  """Gives every transformer of a config one remat policy."""
  for _, node in aot_compile.transformers(config.model):
    node.remat = policy


def _facts(
  step: aot_compile.Step, topology: topology_lib.Topology
) -> dict[str, Any]:
  config = step.config
  clips = config.data.batch_size
  tokens = config.data.num_frames * math.prod(build.token_grid(config.world))
  params = sum(math.prod(x.shape) for x in jax.tree.leaves(step.like.params))
  per_chip = topology.chip.devices
  return {
    "stage": config.stage,
    "topology": topology.name,
    "slices": topology.slices,
    "chips": topology.num_chips,
    "devices": topology.num_devices,
    "mesh": dict(step.mesh.shape),
    "remat": remat_of(config),
    "accumulate": config.optimizer.get("accumulate", 1),
    "batch_size": clips,
    "clips_per_chip": clips / topology.num_chips,
    "steps": config.steps,
    "tokens_per_step": clips * tokens,
    "params": params,
    "params_per_chip": aot_compile.device_bytes(step.like.params)
    / 4
    * per_chip,
    "model_flops_per_step": step.stage.flops_per_clip * clips,
    "hbm_limit_gib": topology.chip.hbm_gib,
    "assumptions": [
      *topology.chip.assumptions,
      *(
        ()
        if topology.chip.kernels
        else (f"plain attention: no kernel compiles for {topology.chip.name}",)
      ),
    ],
    "method": list(METHOD),
  }


def memory(
  found: aot_compile.Memory,
  topology: topology_lib.Topology,
  kept: float | None = None,
) -> dict[str, Any]:
  """Returns the memory of a chip by its use, as a plan's JSON has it.

  Args:
    found: Bytes on one device.
    topology: The chips.
    kept: Bytes of the temporaries that a backward pass finds saved, from
      `saved_activations.of`; None where there is no backward pass.
  """
  gib = lambda num_bytes: round(
    num_bytes * topology.chip.devices / aot_compile.GIB, 3
  )
  used = gib(found.peak)
  # Where the compiler lays two of them over each other, they are all there is.
  saved = min(kept or 0.0, found.temporaries)
  return {
    "fits": used <= topology.chip.hbm_gib,
    "hbm_gib_per_chip": used,
    "hbm_gib_by_use": {
      "parameters": gib(found.params),
      "optimizer": gib(found.optimizer),
      "other_arguments": gib(found.arguments - found.params - found.optimizer),
      **({} if kept is None else {"activations": gib(saved)}),
      "temporaries": gib(found.temporaries - saved),
      "program": gib(found.code),
    },
  }


def too_large(
  error: aot_compile.OutOfMemory, topology: topology_lib.Topology
) -> dict[str, Any]:
  """Returns what a plan's JSON says of a program that does not fit."""
  devices = topology.chip.devices
  gib = lambda x: None if x is None else round(x * devices / aot_compile.GIB, 3)
  return {
    "fits": False,
    "hbm_gib_per_chip": gib(error.needed),
    "hbm_limit_gib": gib(error.limit) or topology.chip.hbm_gib,
    "hbm_gib_by_use": None,
    "compile_seconds": round(error.seconds, 1),
    **dict.fromkeys(
      (
        "compiled_flops_per_step",
        "compiled_flops_by_pass",
        "step_seconds",
        "step_seconds_compute",
        "step_seconds_kernels",
        "step_seconds_exposed_comm",
        "mfu",
        "mfu_kernels_twice_as_slow",
        "tokens_per_day",
        "days",
        "chip_hours",
        "cost",
      )
    ),
  }


def _time(found: schedule.Estimate, report, topology, price) -> dict[str, Any]:
  peak = topology.chip.peak_flops * topology.num_chips
  flops = report["model_flops_per_step"]
  seconds, steps = found.total, report["steps"]
  days = seconds * steps / _DAY
  hours = 24 * days * topology.num_chips
  return {
    "compiled_flops_per_step": found.flops.total() * topology.num_devices,
    "compiled_flops_by_pass": {
      name: found.flops[key] * topology.num_devices
      for name, key in _PASSES.items()
    },
    "step_seconds": seconds,
    "step_seconds_compute": found.compute,
    "step_seconds_kernels": found.kernels,
    "step_seconds_exposed_comm": found.exposed,
    "step_seconds_hidden_comm": sum(
      x.seconds - x.exposed for x in found.collectives.values()
    ),
    "mfu": flops / (seconds * peak),
    "mfu_kernels_twice_as_slow": flops
    / (peak * schedule.step_seconds(found, 2.0)),
    "tokens_per_day": report["tokens_per_step"] * _DAY / seconds,
    "days": days,
    "chip_hours": hours,
    "price_per_chip_hour": price,
    "cost": None if price is None else hours * price,
    "host_bytes": found.host_bytes,
    "assumptions": [
      *report["assumptions"],
      *(
        [f"host link: {chips.HOST_BANDWIDTH / 1e9:g} GB/s a chip"]
        if found.host_bytes
        else []
      ),
    ],
    "collectives": schedule.summary(found),
    "kernels": dict(found.kernel_seconds),
    "kernels_bounded_by_shape_alone": sorted(found.unknown_kernels),
    "seconds_from_bytes_alone": dict(found.unestimated),
    "loops_of_unknown_length": found.unknown_loops,
    "breakdown": [
      {"part": part, "pass": direction, "seconds": value}
      for (part, direction), value in found.parts.most_common()
    ],
  }


def render(report: Mapping[str, Any], with_breakdown: bool = False) -> str:
  """Returns a plan as text of at most 80 columns."""
  lines = [
    f"{report['stage']}: {_count(report['params'])} parameters, "
    f"{_count(report['params_per_chip'])} a chip, on "
    f"{report['slices']} x {report['topology']} ({report['chips']} chips)",
    "mesh "
    + ", ".join(f"{k} {v}" for k, v in report["mesh"].items())
    + f"; {report['batch_size']} clips a step, "
    f"{report['clips_per_chip']:g} a chip; accumulate "
    f"{report['accumulate']}",
    f"remat {report['remat']}",
    "",
    *memory_lines(report),
    *copied_lines(report),
  ]
  if report["step_seconds"] is not None:
    lines += ["", *_time_lines(report)]
    if with_breakdown:
      lines += [
        "",
        op_names.render(
          {
            (row["part"], row["pass"]): row["seconds"]
            for row in report["breakdown"]
          }
        ),
      ]
  lines += ["", f"compiled in {report['compile_seconds']} s"]
  lines += [f"  {line}" for line in report["method"]]
  lines += [f"  assumed: {line}" for line in report["assumptions"]]
  return "\n".join(lines)


def _count(number: float) -> str:
  return f"{number / 1e9:.3f}B" if number >= 1e9 else f"{number / 1e6:.3f}M"


def memory_lines(report: Mapping[str, Any]) -> list[str]:
  """Returns a plan's memory as lines of text."""
  used, limit = report["hbm_gib_per_chip"], report["hbm_limit_gib"]
  if used is None:
    return [f"memory: does not fit the chip's {limit:g} GiB"]
  lines = [f"memory {used:.2f} GiB of {limit:g} GiB a chip"]
  if report["hbm_gib_by_use"]:
    lines += [
      f"  {name.replace('_', ' '):16}{value:9.2f}"
      for name, value in report["hbm_gib_by_use"].items()
    ]
  return lines


def copied_lines(report: Mapping[str, Any]) -> list[str]:
  """Returns what the partitioner copies whole as lines of text."""
  copied = report.get("copied_whole")
  return (
    [
      "",
      "copied whole to every device, since the compiler knows no way "
      "between two layouts:",
      *(f"  {line}" for line in copied),
    ]
    if copied
    else []
  )


def _time_lines(report) -> list[str]:
  lines = [f"step {report['step_seconds']:.4f} s"]
  for name in ("compute", "kernels", "exposed_comm", "hidden_comm"):
    value = report[f"step_seconds_{name}"]
    lines.append(f"  {name.replace('_', ' '):16}{value:9.4f}")
  for kind, row in report["collectives"].items():
    lines.append(
      f"  {kind:27}{row['count']:6.0f} x {row['bytes'] / 1e9:9.3f} GB "
      f"{row['seconds']:8.4f} s, {row['exposed']:8.4f} exposed"
    )
  for name, value in report["kernels"].items():
    lines.append(f"  kernel {name:36}{value:9.4f} s")
  for name in report["kernels_bounded_by_shape_alone"]:
    lines.append(f"  kernel {name} is not known: bounded by its shapes")
  for name in report["loops_of_unknown_length"]:
    lines.append(f"  loop {name}: trip count unknown, counted once")
  model, compiled = (
    report[f"{name}_flops_per_step"] for name in ("model", "compiled")
  )
  passes = ", ".join(
    f"{name} {value / model:.3f}"
    for name, value in report["compiled_flops_by_pass"].items()
  )
  lines += [
    f"model FLOPs {model:.4g} a step",
    f"compiled FLOPs {compiled:.4g} a step, {compiled / model:.3f} of the "
    "model's:",
    f"  {passes}",
    f"MFU {report['mfu']:.1%}; {report['mfu_kernels_twice_as_slow']:.1%} "
    "with every kernel twice as slow",
    f"{report['tokens_per_day'] / 1e9:.2f}B tokens a day; "
    f"{report['steps']} steps in {report['days']:.2f} days, "
    f"{report['chip_hours']:,.0f} chip-hours",
  ]
  if report["cost"] is not None:
    lines.append(
      f"cost {report['cost']:,.0f} at "
      f"{report['price_per_chip_hour']:g} a chip-hour"
    )
  return lines
