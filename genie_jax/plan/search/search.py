"""Plans candidate meshes, remat policies and batch splits, and ranks them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import aot_compile, training
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.search import analytic

_ACCUMULATE = (1, 2, 4, 8)
# Number of meshes that are tried with every remat policy before other meshes.
_FIRST_MESHES = 4


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A layout of a run.

  Attributes:
    mesh: Size of each mesh axis.
    remat: One of `analytic.REMAT_POLICIES`.
    accumulate: Microbatches per step.
  """

  mesh: dict[str, int]
  remat: str
  accumulate: int

  def apply(
    self, config: ml_collections.ConfigDict
  ) -> ml_collections.ConfigDict:
    """Returns a copy of a config with this layout."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.mesh.update(self.mesh)
    config.optimizer.accumulate = self.accumulate
    training.set_remat(config, self.remat)
    return config

  @property
  def flags(self) -> str:
    """Flags that set this layout, except for the remat policy."""
    sizes = [f"--config.mesh.{name}={size}" for name, size in self.mesh.items()]
    return " ".join(
      [*sizes, f"--config.optimizer.accumulate={self.accumulate}"]
    )


def candidates(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> list[Candidate]:
  """Returns all valid candidates, the most promising first.

  Memory and time of each candidate are estimated by `analytic.estimate`. First
  come the four meshes with the fastest candidates, each with the best batch
  split for every remat policy that may fit, in the order of time. Then come
  other candidates that may fit, in the order of time. Last come those that
  likely do not fit, in the order of memory. Layouts that do not split evenly
  are omitted.

  Args:
    config: A training config.
    topology: The chips.
  """
  found = analytic.facts(config)
  available = topology.chip.hbm_gib * aot_compile.GIB / topology.chip.devices
  fitting, large = [], []
  for mesh in _meshes(topology.num_devices):
    for accumulate in _ACCUMULATE:
      if analytic.layout_error(found, mesh, accumulate, topology.slices):
        continue
      for remat in analytic.REMAT_POLICIES:
        rough = analytic.estimate(found, mesh, remat, accumulate, topology)
        candidate = Candidate(mesh, remat, accumulate)
        if rough.bytes <= available:
          fitting.append((_sort_key(rough.seconds, candidate), candidate))
        else:
          large.append((_sort_key(rough.bytes, candidate), candidate))
  fitting.sort(key=lambda pair: pair[0])
  large.sort(key=lambda pair: pair[0])
  first, rest, kinds = [], [], set()
  meshes: list[dict[str, int]] = []
  for _, candidate in fitting:
    mesh = candidate.mesh
    if mesh not in meshes and len(meshes) < _FIRST_MESHES:
      meshes.append(mesh)
    kind = (*mesh.values(), candidate.remat)
    comes_first = mesh in meshes and kind not in kinds
    (first if comes_first else rest).append(candidate)
    kinds.add(kind)
  return [*first, *rest, *(candidate for _, candidate in large)]


def _sort_key(amount: float, candidate: Candidate) -> tuple[float, ...]:
  """Returns a key that sorts by an amount, then by simplicity."""
  mesh = candidate.mesh
  return (
    float(f"{amount:.4g}"),
    sum(size > 1 for size in mesh.values()),
    analytic.REMAT_POLICIES.index(candidate.remat),
    candidate.accumulate,
    mesh["tensor"],
    mesh["frame"],
    mesh["data"],
  )


def _meshes(devices: int) -> Iterator[dict[str, int]]:
  """Yields the meshes of a number of devices, with limits for two axes."""
  divisors = [d for d in range(1, devices + 1) if devices % d == 0]
  for tensor, frame in itertools.product(divisors, divisors):
    if tensor <= 8 and frame <= 16 and devices % (tensor * frame) == 0:
      rest = devices // (tensor * frame)
      for fsdp in divisors:
        if rest % fsdp == 0:
          yield {
            "data": rest // fsdp,
            "fsdp": fsdp,
            "tensor": tensor,
            "frame": frame,
          }


def run(
  config: ml_collections.ConfigDict,
  topology: topology_lib.Topology,
  limit: int,
  planner: Callable[..., tuple[dict[str, Any], str]] = training.plan,
  track: Callable[[Sequence[Candidate]], Iterable[Candidate]] = iter,
) -> list[dict[str, Any]]:
  """Plans candidates and ranks them.

  Args:
    config: A training config.
    topology: The chips.
    limit: Maximum number of candidates to compile.
    planner: Plans one run, see `training.plan`.
    track: Wraps the candidates in a progress bar.

  Returns:
    Plans, those that fit before those that do not, and the fastest first. Each
    also has "flags". A plan has "refused", with the reason, if its candidate
    does not split over the devices.
  """
  rows = []
  for candidate in track(candidates(config, topology)[:limit]):
    row = {
      "flags": candidate.flags,
      "mesh": candidate.mesh,
      "remat": candidate.remat,
      "accumulate": candidate.accumulate,
    }
    try:
      report, _ = planner(candidate.apply(config), topology)
      row |= report
    except errors.UserError as error:
      row |= {
        "fits": False,
        "refused": str(error),
        "step_seconds": None,
        "hbm_gib_per_chip": None,
        "mfu": None,
      }
    rows.append(row)
  return sorted(
    rows, key=lambda row: (not row["fits"], row["step_seconds"] or math.inf)
  )


def render(rows: Sequence[dict[str, Any]]) -> str:
  """Formats the ranked plans as a table."""
  lines = [
    f"{'data':>4} {'fsdp':>5} {'tensor':>6} {'frame':>5} "
    f"{'remat':14} {'split':>5} {'GiB':>7} {'step s':>8} {'MFU':>6}"
  ]
  number = lambda value, form: "-" if value is None else format(value, form)
  for row in rows:
    mesh = row["mesh"]
    note = (
      ""
      if row["fits"]
      else ("  does not split" if "refused" in row else "  too large")
    )
    lines.append(
      f"{mesh['data']:>4} {mesh['fsdp']:>5} {mesh['tensor']:>6} "
      f"{mesh['frame']:>5} {row['remat']!s:14.14} {row['accumulate']:>5} "
      f"{number(row['hbm_gib_per_chip'], '7.2f'):>7} "
      f"{number(row['step_seconds'], '8.4g'):>8} "
      f"{number(row['mfu'], '6.1%'):>6}{note}"
    )
  return "\n".join(lines)
