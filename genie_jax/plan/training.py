"""Plans a training run: memory, step time, total time and cost."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from genie_jax.models import build
from genie_jax.plan import aot_compile, whole_run
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.calibration import ratios
from genie_jax.plan.cost import schedule
from genie_jax.plan.hlo import op_names, parse, saved_activations

_DAY = 86_400.0

# Name in a plan -> pass of `op_names.classify`.
_PASSES = {
  "forward": "forward",
  "backward": "backward",
  "recomputed": "recomputed",
  "optimizer and other": "",
}

# Every plan explains its method, as its times are estimates, not measurements.
METHOD = (
  "compute: the TPU compiler's cycle estimates, times the trip counts of loops",
  "kernels: the largest of bytes / HBM bandwidth, padded FLOPs / half of peak, "
  "and vector operations / vector rate",
  "collectives: bytes / bandwidth of the links of all torus dimensions that a "
  "group spans, plus a microsecond per hop; they overlap with the instructions "
  "scheduled between their start and end",
  "compiled FLOPs: matrix products, and kernels with padded tiles, times the "
  "trip counts of loops",
  "not included: input, checkpoints, evaluation, slow hosts, restarts",
)


def plan(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  price: float | None = None,
  options: Mapping[str, str] | None = None,
  whole: bool = False,
) -> tuple[dict[str, Any], str]:
  """Plans a training run.

  Args:
    config: A training config.
    topology: The chips.
    price: Price of one chip for one hour; None omits the cost.
    options: Compiler options in addition to the usual ones.
    whole: Whether to plan as well what a run does besides its steps.

  Returns:
    The plan as JSON values, and the text of the compiled program ("" if the
    run does not fit).

  Raises:
    UserError: The config is invalid, or does not split over the devices.
  """
  step = aot_compile.build(config, topology)
  report = _facts(step, topology)
  try:
    compiled = aot_compile.compile_step(step, options)
  except aot_compile.OutOfMemory as error:
    return report | out_of_memory_report(error, topology), ""
  module = parse.parse(compiled.text)
  report |= memory_report(
    compiled.memory, topology, saved_activations.peak_bytes(module)
  )
  found = schedule.estimate(module, topology_lib.network(topology, step.mesh))
  report["compile_seconds"] = round(compiled.seconds, 1)
  report |= _time_report(found, report, topology, price)
  if whole:
    report["whole_run"] = whole_run.plan(step, topology, found.total)
  return report, compiled.text


def remat_of(config: ml_collections.ConfigDict) -> str | dict[str, str]:
  """Returns the remat policy of a config.

  If its transformers have different policies, returns path -> policy.
  """
  found = {
    path: node.remat for path, node in aot_compile.transformers(config.model)
  }
  names = set(found.values())
  return names.pop() if len(names) == 1 else found


def set_remat(config: ml_collections.ConfigDict, policy: str) -> None:
  """Sets the remat policy of every transformer of a config."""
  for _, node in aot_compile.transformers(config.model):
    node.remat = policy


def _facts(
  step: aot_compile.Step, topology: topology_lib.Topology
) -> dict[str, Any]:
  """Returns the part of a plan that is known before the compilation."""
  config = step.config
  clips = config.data.batch_size
  tokens = config.data.num_frames * math.prod(build.token_grid(config.world))
  params = step.abstract_state.params
  num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  devices_per_chip = topology.chip.devices
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
    "params": num_params,
    # Parameters are float32.
    "params_per_chip": aot_compile.device_bytes(params) / 4 * devices_per_chip,
    "model_flops_per_step": step.stage.flops_per_clip * clips,
    "hbm_limit_gib": topology.chip.hbm_gib,
    "assumptions": [
      *topology.chip.assumptions,
      *(
        ()
        if topology.chip.kernels
        else (
          "plain attention, as Pallas kernels do not compile for "
          f"{topology.chip.name}",
        )
      ),
    ],
    "method": list(METHOD),
  }


def memory_report(
  found: aot_compile.Memory,
  topology: topology_lib.Topology,
  activations: float | None = None,
) -> dict[str, Any]:
  """Returns the part of a plan about the memory of a chip, by use.

  Args:
    found: Bytes on one device.
    topology: The chips.
    activations: Bytes of the temporaries that are saved activations, from
      `saved_activations.peak_bytes`; None if there is no backward pass.
  """
  gib = lambda num_bytes: round(
    num_bytes * topology.chip.devices / aot_compile.GIB, 3
  )
  used = gib(found.peak)
  # The sum of the activations may exceed the temporaries, since the compiler
  # can let two values share memory.
  saved = min(activations or 0.0, found.temporaries)
  return {
    "fits": used <= topology.chip.hbm_gib,
    "hbm_gib_per_chip": used,
    "hbm_gib_by_use": {
      "parameters": gib(found.params),
      "optimizer": gib(found.optimizer),
      "other_arguments": gib(found.arguments - found.params - found.optimizer),
      **({} if activations is None else {"activations": gib(saved)}),
      "temporaries": gib(found.temporaries - saved),
      "program": gib(found.code),
    },
  }


def out_of_memory_report(
  error: aot_compile.OutOfMemory, topology: topology_lib.Topology
) -> dict[str, Any]:
  """Returns the part of a plan about memory and time if it does not fit."""
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
        "mfu_kernels_four_times_as_slow",
        "calibrated",
        "tokens_per_day",
        "days",
        "chip_hours",
        "cost",
      )
    ),
  }


def _time_report(
  found: schedule.Estimate,
  report: Mapping[str, Any],
  topology: topology_lib.Topology,
  price: float | None,
) -> dict[str, Any]:
  """Returns the part of a plan about time, FLOPs and cost."""
  peak = topology.chip.peak_flops * topology.num_chips
  flops = report["model_flops_per_step"]
  seconds, steps = found.total, report["steps"]
  days = seconds * steps / _DAY
  hours = 24 * days * topology.num_chips
  mfu = lambda factor: flops / (peak * schedule.step_seconds(found, factor))
  compiled = sum(found.flops.values()) * topology.num_devices
  return {
    "compiled_flops_per_step": compiled,
    "compiled_flops_by_pass": {
      name: found.flops.get(key, 0) * topology.num_devices
      for name, key in _PASSES.items()
    },
    "step_seconds": seconds,
    "step_seconds_compute": found.compute,
    "step_seconds_kernels": found.kernels,
    "step_seconds_exposed_comm": found.exposed,
    "step_seconds_hidden_comm": sum(
      x.seconds - x.exposed for x in found.collectives.values()
    ),
    "mfu": mfu(1.0),
    "mfu_kernels_twice_as_slow": mfu(2.0),
    "mfu_kernels_four_times_as_slow": mfu(4.0),
    "calibrated": ratios.calibrated(
      seconds, mfu(1.0), compiled / (peak * seconds), topology.chip.name
    ),
    "tokens_per_day": report["tokens_per_step"] * _DAY / seconds,
    "days": days,
    "chip_hours": hours,
    "price_per_chip_hour": price,
    "cost": None if price is None else hours * price,
    "host_bytes": found.host_bytes,
    "assumptions": [
      *report["assumptions"],
      *(
        [f"host link: {topology.chip.host_bandwidth / 1e9:g} GB/s a chip"]
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
      for (part, direction), value in sorted(
        found.parts.items(), key=lambda item: item[1], reverse=True
      )
    ],
  }


def render(report: Mapping[str, Any], with_breakdown: bool = False) -> str:
  """Formats a plan as text.

  Args:
    report: From `plan`.
    with_breakdown: Whether to add a table of seconds by part of the model.
  """
  lines = [
    f"{report['stage']}: {_count(report['params'])} parameters, "
    f"{_count(report['params_per_chip'])} per chip, on "
    f"{report['slices']} x {report['topology']} ({report['chips']} chips)",
    "mesh "
    + ", ".join(f"{k} {v}" for k, v in report["mesh"].items())
    + f"; {report['batch_size']} clips per step, "
    f"{report['clips_per_chip']:g} per chip; accumulate "
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
  """Formats a number of parameters in billions or millions."""
  return f"{number / 1e9:.3f}B" if number >= 1e9 else f"{number / 1e6:.3f}M"


def memory_lines(report: Mapping[str, Any]) -> list[str]:
  """Formats the memory of a plan."""
  used, limit = report["hbm_gib_per_chip"], report["hbm_limit_gib"]
  if used is None:
    return [f"memory: does not fit into the chip's {limit:g} GiB"]
  lines = [f"memory {used:.2f} GiB of {limit:g} GiB per chip"]
  if report["hbm_gib_by_use"]:
    lines += [
      f"  {name.replace('_', ' '):16}{value:9.2f}"
      for name, value in report["hbm_gib_by_use"].items()
    ]
  return lines


def copied_lines(report: Mapping[str, Any]) -> list[str]:
  """Formats the list of tensors that the compiler replicates fully."""
  copied = report.get("copied_whole")
  return (
    [
      "",
      "copied completely to every device, as the compiler knows no direct way "
      "between two layouts:",
      *(f"  {line}" for line in copied),
    ]
    if copied
    else []
  )


def _time_lines(report: Mapping[str, Any]) -> list[str]:
  """Formats time, FLOPs and cost of a plan."""
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
    lines.append(f"  kernel {name} is unknown: estimated from its shapes")
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
    f"model FLOPs {model:.4g} per step",
    f"compiled FLOPs {compiled:.4g} per step, {compiled / model:.3f} times the "
    "model FLOPs:",
    f"  {passes}",
    f"MFU {report['mfu']:.1%}; {report['mfu_kernels_twice_as_slow']:.1%} "
    f"and {report['mfu_kernels_four_times_as_slow']:.1%} if every kernel takes "
    "2 and 4 times its estimate",
    *ratios.render(report["calibrated"], report["topology"].partition(":")[0]),
    f"{report['tokens_per_day'] / 1e9:.2f}B tokens per day; "
    f"{report['steps']} steps in {report['days']:.2f} days, "
    f"{report['chip_hours']:,.0f} chip-hours",
  ]
  if report["cost"] is not None:
    lines.append(
      f"cost {report['cost']:,.0f} at "
      f"{report['price_per_chip_hour']:g} per chip-hour"
    )
  return lines
