"""Finds changes that let a run fit into the memory of its chips."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import aot_compile, training
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.search import analytic


@dataclasses.dataclass(frozen=True)
class Change:
  """A change that reduces the memory of a run.

  Attributes:
    flags: Flags that make the change on the command line.
    config: The changed config.
    topology: The changed topology.
  """

  flags: str
  config: ml_collections.ConfigDict
  topology: topology_lib.Topology


# `training.plan` or a function with the same first two arguments.
Planner = Callable[..., tuple[dict[str, Any], str]]


def changes(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Iterator[Change]:
  """Yields valid changes, in the order of their cost.

  Full recomputation costs at most a third of the compute, a smaller microbatch
  costs another gather of the parameters, and more chips cost money.

  Args:
    config: The config that does not fit.
    topology: Its chips.
  """
  for change in _all_changes(config, topology):
    if analytic.config_error(change.config, change.topology) is None:
      yield change


def _all_changes(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Iterator[Change]:
  """Yields changes that may not split over the devices."""
  copy = lambda: ml_collections.ConfigDict(config.to_dict())
  flags = []
  start = copy()
  if training.remat_of(config) != "full":
    training.set_remat(start, "full")
    flags = [
      f"--config.{path}.remat=full"
      for path, _ in aot_compile.transformers(config.model)
    ]
    yield Change(" ".join(flags), start, topology)
  rows = config.data.batch_size // _batch_ways(config, topology)
  for factor in (2, 4, 8):
    accumulate = config.optimizer.get("accumulate", 1) * factor
    if rows and rows % accumulate == 0:
      changed = ml_collections.ConfigDict(start.to_dict())
      changed.optimizer.accumulate = accumulate
      yield Change(
        " ".join([*flags, f"--config.optimizer.accumulate={accumulate}"]),
        changed,
        topology,
      )
  larger = _doubled(topology)
  if larger is not None:
    yield Change(" ".join([*flags, f"--topology {larger.name}"]), start, larger)


def try_changes(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  limit: int,
  planner: Planner = training.plan,
  log: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
  """Compiles changed runs until one fits.

  Args:
    config: The config that does not fit.
    topology: Its chips.
    limit: Maximum number of changes to compile.
    planner: Plans one run, see `training.plan`.
    log: Called with a line of text before each compilation, which takes
      minutes.

  Returns:
    A dict {"change", "fits", "hbm_gib_per_chip", "step_seconds"} for each
    change that was compiled; only the last one can fit.
  """
  tried: list[dict[str, Any]] = []
  for change in changes(config, topology):
    if len(tried) == limit:
      break
    log(f"does not fit; compiling with {change.flags}")
    try:
      report, _ = planner(change.config, change.topology)
    except errors.UserError:
      continue  # The change does not split over the devices.
    tried.append(
      {
        "change": change.flags,
        "fits": report["fits"],
        "hbm_gib_per_chip": report["hbm_gib_per_chip"],
        "step_seconds": report["step_seconds"],
      }
    )
    if report["fits"]:
      break
  return tried


def verdict(report: dict[str, Any]) -> str:
  """Returns a line that says by how much a run is too large, and what fits.

  Args:
    report: A plan that does not fit, with "changes_tried".
  """
  used, limit = report["hbm_gib_per_chip"], report["hbm_limit_gib"]
  over = (
    "it needs more than"
    if used is None
    else f"it needs {used:.2f} GiB per chip, {used - limit:.2f} GiB more than"
  )
  text = (
    f"does not fit {report['topology']}: {over} the available {limit:g} GiB; "
  )
  tried = report["changes_tried"]
  fitting = [row for row in tried if row["fits"]]
  if fitting:
    return text + (
      f"{fitting[0]['change']} would fit "
      f"({fitting[0]['hbm_gib_per_chip']:.2f} GiB, compiled)."
    )
  if tried:
    return (
      text
      + "none of the compiled changes would fit: "
      + "; ".join(row["change"] for row in tried)
      + ". Use more chips."
    )
  return text + (
    "try --config.optimizer.accumulate, another remat policy or more "
    "chips (--fixes=N compiles N such changes)."
  )


def _batch_ways(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> int:
  """Returns the number of groups of devices that a batch is split over."""
  mesh = dict(config.mesh)
  fixed = math.prod(size for size in mesh.values() if size != -1)
  free = topology.num_devices // fixed if fixed else 1
  size = lambda name: free if mesh[name] == -1 else mesh[name]
  return max(1, size("data") * size("fsdp"))


def _doubled(topology: topology_lib.Topology) -> topology_lib.Topology | None:
  """Returns a topology with twice the chips, None if it does not exist."""
  dims = sorted(topology.dims)
  dims[0] *= 2
  shape = "x".join(map(str, dims))
  try:
    return topology_lib.parse(f"{topology.chip.name}:{shape}", topology.slices)
  except errors.UserError:
    return None
