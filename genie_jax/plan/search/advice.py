"""Changes that may make a run fit its chips, tried one after the other."""

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
  """One way to need less memory.

  Attributes:
    flags: What the user adds to the command line.
    config: The changed config.
    topology: The changed topology.
  """

  flags: str
  config: ml_collections.ConfigDict
  topology: topology_lib.Topology


Make = Callable[..., tuple[dict[str, Any], str]]


def changes(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Iterator[Change]:
  """Yields changes that can work, those that cost least first.

  Full recomputation costs a third of the compute at most; smaller
  microbatches cost another gather of the parameters; more chips cost money.

  Args:
    config: The config that does not fit.
    topology: Its chips.
  """
  for change in _changes(config, topology):
    if analytic.fault_of(change.config, change.topology) is None:
      yield change


def _changes(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> Iterator[Change]:
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
  rows = config.data.batch_size // _ways(config, topology)
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
  larger = _twice(topology)
  if larger is not None:
    yield Change(" ".join([*flags, f"--topology {larger.name}"]), start, larger)


def try_changes(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  limit: int,
  make: Make = training.make,
  say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
  """Compiles changes until one fits.

  Args:
    config: The config that does not fit.
    topology: Its chips.
    limit: How many changes to compile at most.
    make: Plans one run; see `stage_training.make`.
    say: Called with a line before each compile, which takes minutes.

  Returns:
    A dict {"change", "fits", "hbm_gib_per_chip", "step_seconds"} for each
    change that was compiled; only the last can fit.
  """
  tried: list[dict[str, Any]] = []
  for change in changes(config, topology):
    if len(tried) == limit:
      break
    say(f"does not fit; compiling with {change.flags}")
    try:
      report, _ = make(change.config, change.topology)
    except errors.UserError:
      continue  # It does not split over the devices.
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
  """Returns one line: by how much a plan is too large, and what would fit."""
  used, limit = report["hbm_gib_per_chip"], report["hbm_limit_gib"]
  over = (
    "it needs more than"
    if used is None
    else f"it needs {used:.2f} GiB a chip, {used - limit:.2f} GiB more than"
  )
  text = f"does not fit {report['topology']}: {over} its {limit:g} GiB; "
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
      + "none of what was compiled would fit: "
      + "; ".join(row["change"] for row in tried)
      + ". Use more chips."
    )
  return text + (
    "try --config.optimizer.accumulate, a remat policy or more "
    "chips (--fixes=N compiles them)."
  )


def _ways(config, topology) -> int:
  """Returns over how many devices the clips of a batch split."""
  mesh = dict(config.mesh)
  fixed = math.prod(size for size in mesh.values() if size != -1)
  free = topology.num_devices // fixed if fixed else 1
  size = lambda name: free if mesh[name] == -1 else mesh[name]
  return max(1, size("data") * size("fsdp"))


def _twice(topology) -> topology_lib.Topology | None:
  """Returns a slice with twice the chips, None where there is none."""
  dims = sorted(topology.dims)
  dims[0] *= 2
  shape = "x".join(map(str, dims))
  try:
    return topology_lib.parse(f"{topology.chip.name}:{shape}", topology.slices)
  except errors.UserError:
    return None
