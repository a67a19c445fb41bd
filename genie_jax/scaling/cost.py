"""What the cells of a study cost, before they run."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from genie_jax.core import files, provenance, schema
from genie_jax.plan import aot_compile, child_process, topology
from genie_jax.plan import step_flops as step_flops_lib
from genie_jax.scaling import ladder as ladder_lib
from genie_jax.scaling import workspace as workspace_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import dynamics, registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib

FILE = "cost.json"
FLOPS_FILE = "compiled_flops.json"
_STEPS = 3
Configs = Mapping[str, ml_collections.ConfigDict]


def key(cell: ladder_lib.Cell) -> str:
  """Returns what determines the cost of a cell's step: size and batch."""
  return f"{cell.size}-b{cell.batch_size}"


def own_steps(cell: ladder_lib.Cell) -> int:
  """Returns the steps that a cell itself computes: a fork shares the others."""
  return cell.steps - cell.fork_step


def step_flops(config: ml_collections.ConfigDict) -> float:
  """Returns the model FLOPs of one training step."""
  return dynamics.training_flops(config) * config.data.batch_size


def measure_step(config: ml_collections.ConfigDict) -> float:
  """Returns the seconds of one training step on the devices of this process.

  The step is the one of `genie train`, on tokens that are all zero and without
  reading data, after one step that compiles.
  """
  config = aot_compile.with_random_start(config)
  stage = registry.make(config)
  mesh = mesh_lib.make(config.mesh)
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  size = config.data.batch_size
  step = step_lib.make_train_step(stage, optimizer, mesh, like, size)
  layout = step_lib.batch_shardings(stage, mesh, size, optimizer.accumulate)
  batch = {
    name: jax.device_put(
      jnp.zeros((size, *feature.shape), feature.dtype), layout[name]
    )
    for name, feature in stage.features.items()
  }
  state = state_lib.create(stage, optimizer, like, config.seed)
  state, metrics = step(state, batch)
  jax.block_until_ready(metrics)
  began = time.perf_counter()
  for _ in range(_STEPS):
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
  return (time.perf_counter() - began) / _STEPS


def measured(
  workspace: workspace_lib.Workspace,
  cells: Sequence[ladder_lib.Cell],
  configs: Configs,
  log: Callable[[str], None],
) -> dict[str, float]:
  """Returns seconds per step by size and batch, measured on this machine.

  Measurements are stored in OUT/cost.json and used again on the same hardware.

  Args:
    workspace: The folder of the study.
    cells: The cells.
    configs: Name of a cell -> its config.
    log: Is told what is measured.
  """
  path = workspace.out / FILE
  hardware = f"{provenance.cpu()}; {jax.devices()[0].device_kind}"
  found = known(workspace)
  if found.get("hardware") != hardware:
    found = {"hardware": hardware, "step_seconds": {}}
  seconds = found["step_seconds"]
  for cell in cells:
    if key(cell) in seconds:
      continue
    log(f"measuring a step of {key(cell)}")
    seconds[key(cell)] = measure_step(configs[cell.name])
    files.write_json(path, found)
  return seconds


def known(workspace: workspace_lib.Workspace) -> dict[str, Any]:
  """Returns the content of OUT/cost.json; empty if there is none."""
  path = workspace.out / FILE
  form = {
    "hardware": schema.Maybe(str),
    "step_seconds": {...: schema.NOT_NEGATIVE},
  }
  return files.read_json(path, form) if path.exists() else {}


def count_flops(
  workspace: workspace_lib.Workspace,
  cells: Sequence[ladder_lib.Cell],
  configs: Configs,
  log: Callable[[str], None],
) -> None:
  """Counts the FLOPs of compiled steps, and stores them in the study's folder.

  Each takes some seconds: a step is compiled for one device here, and not run.

  Args:
    workspace: The folder of the study.
    cells: The cells.
    configs: Name of a cell -> its config.
    log: Is told what is counted.
  """
  found = dict(known_flops(workspace))
  for cell in cells:
    if flops_key(cell) in found:
      continue
    log(f"counting the FLOPs of {key(cell)}")
    found[flops_key(cell)] = step_flops_lib.count(configs[cell.name]).compiled
    files.write_json(workspace.out / FLOPS_FILE, found)


def flops_key(cell: ladder_lib.Cell) -> str:
  """Returns what determines the program of a cell's step."""
  return " ".join([key(cell), *cell.overrides])


def known_flops(workspace: workspace_lib.Workspace) -> Mapping[str, float]:
  """Returns the counted FLOPs of a step by `flops_key`."""
  path = workspace.out / FLOPS_FILE
  form = {...: schema.NOT_NEGATIVE}
  return files.read_json(path, form) if path.exists() else {}


def planned(
  cells: Sequence[ladder_lib.Cell],
  configs: Configs,
  name: str,
  log: Callable[[str], None],
) -> tuple[dict[str, float | None], int]:
  """Returns seconds per step by `genie plan`, and the number of chips.

  Args:
    cells: The cells.
    configs: Name of a cell -> its config.
    name: A topology, see `topology.parse`.
    log: Is told what is planned.

  Returns:
    Size and batch -> seconds of a step, None if it does not fit.

  Raises:
    UserError: The topology is unknown, or a config does not split over it.
  """
  chips = topology.parse(name)
  seconds: dict[str, float | None] = {}
  for cell in cells:
    if key(cell) in seconds:
      continue
    log(f"planning {key(cell)} on {name}")
    report, _ = child_process.plan_training(configs[cell.name], chips)
    seconds[key(cell)] = report["step_seconds"]
  return seconds, chips.num_chips


def render(
  cells: Sequence[ladder_lib.Cell],
  configs: Configs,
  seconds: Mapping[str, float | None],
  done: Mapping[str, int],
  chips: int | None = None,
  price: float | None = None,
) -> str:
  """Formats the cost of the steps that are left, as a table.

  Args:
    cells: The cells.
    configs: Name of a cell -> its config.
    seconds: Size and batch -> seconds of a step.
    done: Name of a cell -> number of steps that it has made itself.
    chips: Number of chips that run one cell; None for this machine.
    price: Price of a chip for an hour.
  """
  lines = [
    f"{'size and batch':20}{'cells':>6}{'steps':>9}{'FLOPs a step':>14}"
    f"{'s a step':>10}{'time left':>11}"
  ]
  total, flops, unknown = 0.0, 0.0, []
  for name in dict.fromkeys(key(cell) for cell in cells):
    mine = [cell for cell in cells if key(cell) == name]
    left = sum(max(own_steps(c) - done.get(c.name, 0), 0) for c in mine)
    each = step_flops(configs[mine[0].name])
    flops += left * each
    one = seconds.get(name)
    if one is None:
      unknown.append(name)
    else:
      total += left * one
    lines.append(
      f"{name:20}{len(mine):>6}{left:>9}{each:>14.3g}"
      f"{'-' if one is None else f'{one:.3g}':>10}"
      f"{'-' if one is None else duration(left * one):>11}"
    )
  lines.append(
    f"{len(cells)} cells, {flops:.3g} training FLOPs left, "
    f"{duration(total)} one after the other"
  )
  if chips:
    hours = total / 3600 * chips
    cost = "" if price is None else f", cost {hours * price:,.2f}"
    lines.append(f"on {chips} chips: {hours:,.2f} chip-hours{cost}")
  if unknown:
    lines.append(f"without a time: {', '.join(unknown)}")
  lines.append(
    "not included: compiling, evaluation, checkpoints and reading data"
  )
  return "\n".join(lines)


def duration(seconds: float) -> str:
  """Formats a duration, for example "1:02:03"."""
  whole = round(seconds)
  return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
