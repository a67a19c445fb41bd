"""Tries meshes, remat policies and batch splits, and ranks them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.plan import aot_compile, training
from genie_jax.plan import topology as topology_lib
from genie_jax.plan.search import analytic

_ACCUMULATE = (1, 2, 4, 8)
# So many meshes are tried with every policy before any other is.
_MESHES = 4


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to lay a run out.

  Attributes:
    mesh: Size of each mesh axis.
    remat: A name in `analytic.RECOMPUTING`.
    accumulate: Microbatches a step.
  """

  mesh: dict[str, int]
  remat: str
  accumulate: int

  def apply(
    self, config: ml_collections.ConfigDict
  ) -> ml_collections.ConfigDict:
    """Returns a copy of a config that is laid out so."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.mesh.update(self.mesh)
    config.optimizer.accumulate = self.accumulate
    training.set_remat(config, self.remat)
    return config

  @property
  def flags(self) -> str:
    """What a user adds to the command line, without the remat policy."""
    sizes = [f"--config.mesh.{name}={size}" for name, size in self.mesh.items()]
    return " ".join(
      [*sizes, f"--config.optimizer.accumulate={self.accumulate}"]
    )


def candidates(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> list[Candidate]:
  """Returns what can be tried, the likeliest first.

  What each needs and takes is guessed (`analytic.guess`). The few meshes whose
  best candidate is fastest come first, each with one candidate of every policy
  that may fit: that of the best batch split, the fastest first. Then comes
  whatever else may fit, and at the end what likely does not, the smallest
  first. What cannot work (an axis that does not divide) is left out.

  Args:
    config: A training config.
    topology: The chips.
  """
  found = analytic.facts(config)
  room = topology.chip.hbm_gib * aot_compile.GIB / topology.chip.devices
  fitting, large = [], []
  for mesh in _meshes(topology.num_devices):
    for accumulate in _ACCUMULATE:
      if analytic.fault(found, mesh, accumulate, topology.slices) is not None:
        continue
      for remat in analytic.RECOMPUTING:
        guess = analytic.guess(found, mesh, remat, accumulate, topology)
        candidate = Candidate(mesh, remat, accumulate)
        if guess.bytes <= room:
          fitting.append((_order(guess.seconds, candidate), candidate))
        else:
          large.append((_order(guess.bytes, candidate), candidate))
  fitting.sort(key=lambda pair: pair[0])
  large.sort(key=lambda pair: pair[0])
  first, rest, kinds = [], [], set()
  meshes: list[dict[str, int]] = []
  for _, candidate in fitting:
    mesh = candidate.mesh
    if mesh not in meshes and len(meshes) < _MESHES:
      meshes.append(mesh)
    kind = (*mesh.values(), candidate.remat)
    wanted = mesh in meshes and kind not in kinds
    (first if wanted else rest).append(candidate)
    kinds.add(kind)
  return [*first, *rest, *(candidate for _, candidate in large)]


def _order(amount: float, candidate: Candidate):
  """Returns what to sort by: of equals the simplest comes first."""
  mesh = candidate.mesh
  return (
    float(f"{amount:.4g}"),
    sum(size > 1 for size in mesh.values()),
    analytic.RECOMPUTING.index(candidate.remat),
    candidate.accumulate,
    mesh["tensor"],
    mesh["frame"],
    mesh["data"],
  )


def _meshes(devices: int) -> Iterator[dict[str, int]]:
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
  make: Callable[..., tuple[dict[str, Any], str]] = training.make,
  track: Callable[[Sequence[Any]], Any] = iter,
) -> list[dict[str, Any]]:
  """Plans candidates and ranks them.

  Args:
    config: A training config.
    topology: The chips.
    limit: How many to compile at most.
    make: Plans one run; see `stage_training.make`.
    track: Wraps what is iterated over in a progress bar.

  Returns:
    Plans, those that fit first and the fastest of them first; each also has
    "flags", and "refused" with the reason where the candidate does not split
    over the devices.
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
      report, _ = make(candidate.apply(config), topology)
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
  """Returns the ranked plans as text of at most 80 columns."""
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
