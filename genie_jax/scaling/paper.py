"""Plans of the scaling table on the paper's chips, compared with its days.

Genie, table 10, gives chips and days of each run. The FLOPs that the paper
states differ from ours, so the table also has the ratio of the FLOPs. The range
of the planned days and cost is that of `plan.calibration`: a prediction
interval from planned and published seconds of other runs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import topology as topology_lib
from genie_jax.scaling import table

# Bytes of a parameter, its gradient and two moments, all float32.
_STATE_BYTES = 16
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Run:
  """A row of the paper's table.

  Attributes:
    size: Name of the model in `table.SIZES`.
    topology: The paper's kind and number of chips. The paper does not state
      their arrangement, so this is the most compact one.
    days: The paper's training time; None if it states none.
  """

  size: str
  topology: str
  days: float | None


RUNS = {
  run.size: run
  for run in (
    Run("41M", "v2:8x8", 3),
    Run("96M", "v2:8x8", 6),
    Run("192M", "v2:8x8", 9),
    Run("404M", "v2:8x8", 18),
    Run("811M", "v3:8x16", 7),
    Run("1.6B", "v3:8x16", 12),
    Run("2.7B", "v3:16x16", 16),
    Run("10.1B", "v5p:4x8x8", None),
  )
}


def find(names: str) -> list[Run]:
  """Returns rows of the table.

  Args:
    names: "all", or names separated by commas.

  Raises:
    UserError: A name is unknown.
  """
  return errors.select("--scaling-table", names, RUNS, "a row of the table")


def lay_out(
  config: ml_collections.ConfigDict, run: Run, tensor: int = 1
) -> ml_collections.ConfigDict:
  """Returns a copy of a config with a mesh for the chips of its row.

  The axis fsdp is as small as possible, so that three quarters of the memory
  remain for activations. If there are more devices than clips, frames are
  split. If there are more clips than devices, each microbatch has one clip per
  device.

  Args:
    config: The config of this row's model.
    run: The row.
    tensor: Size of the mesh axis tensor.
  """
  config = ml_collections.ConfigDict(config.to_dict())
  topology = topology_lib.parse(run.topology)
  chip, devices = topology.chip, topology.num_devices
  params = table.find(run.size).paper_parameters
  state = _STATE_BYTES * params / tensor
  room = chip.hbm_gib * _GIB / chip.devices / 4
  frame = max(1, devices // (tensor * config.data.batch_size))
  fsdp = min(
    devices // (tensor * frame), 2 ** max(0, math.ceil(math.log2(state / room)))
  )
  config.mesh.update(data=-1, fsdp=fsdp, tensor=tensor, frame=frame)
  config.optimizer.accumulate = max(
    1, config.data.batch_size * tensor * frame // devices
  )
  return config


def row(run: Run, report: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row of the table as JSON values.

  Args:
    run: The row of the paper.
    report: The plan of the run.
  """
  days, cost = report["days"], report["cost"]
  calibrated = report["calibrated"]
  # Days and cost are proportional to the seconds of a step.
  of = lambda total, name: (
    total * calibrated[f"seconds_{name}"] / report["step_seconds"]
    if total is not None and calibrated
    else None
  )
  stated = table.find(run.size).paper_flops
  ours = report["model_flops_per_step"] * report["steps"]
  return {
    "size": run.size,
    "topology": run.topology,
    "paper_days": run.days,
    "chips": topology_lib.parse(run.topology).num_chips,
    "days": days,
    "days_low": of(days, "low"),
    "days_high": of(days, "high"),
    "cost": cost,
    "cost_low": of(cost, "low"),
    "cost_high": of(cost, "high"),
    "ratio": None if not (days and run.days) else days / run.days,
    "flops_ratio": None if stated is None else ours / stated,
    **{
      name: report[name]
      for name in (
        "fits",
        "hbm_gib_per_chip",
        "hbm_limit_gib",
        "step_seconds",
        "mfu",
        "mesh",
        "remat",
        "accumulate",
        "copied_whole",
        "compile_seconds",
      )
    },
  }


def render(rows: Sequence[Mapping[str, Any]]) -> str:
  """Formats rows as a table of at most 80 columns."""
  lines = [
    f"{'':48}{'days':>8}{'':16}{'FLOPs':>6}",
    f"{'size':6}{'topology':11}{'GiB of limit':>15} {'step s':>7} "
    f"{'MFU':>6} {'paper':>7} {'plan':>7} {'ratio':>6} {'ratio':>6}",
  ]
  number = lambda value, form: "-" if value is None else format(value, form)
  for found in rows:
    memory = (
      f"{number(found['hbm_gib_per_chip'], '.1f')} of "
      f"{found['hbm_limit_gib']:.1f}"
    )
    lines.append(
      f"{found['size']:6}{found['topology']:11}{memory:>15} "
      f"{number(found['step_seconds'], '7.3f'):>7} "
      f"{number(found['mfu'], '6.1%'):>6} "
      f"{number(found['paper_days'], '7.1f'):>7} "
      f"{number(found['days'], '7.2f'):>7} "
      f"{number(found['ratio'], '6.3f'):>6} "
      f"{number(found['flops_ratio'], '6.3f'):>6}"
    )
  lines += [
    "",
    f"{'size':6}{'chips':>6}{'days by plan':>14}{'range':>16}{'cost':>13}"
    f"{'range':>25}",
  ]
  for found in rows:
    span = lambda name, form, row=found: (
      "-"
      if row[f"{name}_low"] is None
      else f"{row[f'{name}_low']:{form}} to {row[f'{name}_high']:{form}}"
    )
    lines.append(
      f"{found['size']:6}{found['chips']:6}"
      f"{number(found['days'], '14.2f'):>14}{span('days', '.2f'):>16}"
      f"{number(found['cost'], '13,.0f'):>13}{span('cost', ',.0f'):>25}"
    )
  return "\n".join(lines)
