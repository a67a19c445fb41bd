"""Tries meshes, remat policies and batch splits, and ranks them."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections

from genie_jax.core import errors
from genie_jax.nn import st_transformer
from genie_jax.scaling import plan
from genie_jax.scaling import topology as topology_lib

_ACCUMULATE = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to lay a run out.

  Attributes:
    mesh: Size of each mesh axis.
    remat: A name in `st_transformer.REMAT_POLICIES`.
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
    plan.set_remat(config, self.remat)
    return config

  @property
  def flags(self) -> str:
    """What a user adds to the command line, without the remat policy."""
    sizes = [f"--config.mesh.{name}={size}" for name, size in self.mesh.items()]
    return " ".join([*sizes,
                     f"--config.optimizer.accumulate={self.accumulate}"])


def candidates(
    config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> list[Candidate]:
  """Returns what can be tried, the likeliest first.

  A mesh is likely good when it splits inside a layer as little as it can
  (tensor, then frame) and gives each chip whole clips; where all
  fit, a policy that recomputes less is faster. Whatever does not divide the
  clips or the frames is left out; other sizes are checked when it is built.

  Args:
    config: A training config.
    topology: The chips.
  """
  batch, frames = config.data.batch_size, config.data.num_frames
  found = []
  for mesh in _meshes(topology.num_devices):
    ways = mesh["data"] * mesh["fsdp"]
    if mesh["data"] % topology.slices or frames % mesh["frame"]:
      continue
    for accumulate, remat in itertools.product(
        _ACCUMULATE, st_transformer.REMAT_POLICIES):
      if batch % (ways * accumulate) == 0:
        found.append(Candidate(mesh, remat, accumulate))
  order = list(st_transformer.REMAT_POLICIES)

  def cost(candidate: Candidate):
    mesh = candidate.mesh
    copies = mesh["data"] // topology.slices
    return (3 * math.log2(mesh["tensor"]) + 2 * math.log2(mesh["frame"])
            + math.log2(candidate.accumulate) + abs(math.log2(copies) - 1)
            + 0.5 * order.index(candidate.remat))

  return sorted(found, key=cost)


def _meshes(devices: int) -> Iterator[dict[str, int]]:
  divisors = [d for d in range(1, devices + 1) if devices % d == 0]
  for tensor, frame in itertools.product(divisors, divisors):
    if tensor <= 8 and frame <= 16 and devices % (tensor * frame) == 0:
      rest = devices // (tensor * frame)
      for fsdp in divisors:
        if rest % fsdp == 0:
          yield {"data": rest // fsdp, "fsdp": fsdp, "tensor": tensor,
                 "frame": frame}


def run(
    config: ml_collections.ConfigDict,
    topology: topology_lib.Topology,
    limit: int,
    make: Callable[..., tuple[dict[str, Any], str]] = plan.make,
    track: Callable[[Sequence[Any]], Any] = iter,
) -> list[dict[str, Any]]:
  """Plans candidates and ranks them.

  Args:
    config: A training config.
    topology: The chips.
    limit: How many to compile at most.
    make: Plans one run; see `plan.make`.
    track: Wraps what is iterated over in a progress bar.

  Returns:
    Plans, those that fit first and the fastest of them first; each also has
    "flags", and "refused" with the reason where the candidate does not split
    over the devices.
  """
  rows = []
  for candidate in track(candidates(config, topology)[:limit]):
    row = {"flags": candidate.flags, "mesh": candidate.mesh,
           "remat": candidate.remat, "accumulate": candidate.accumulate}
    try:
      report, _ = make(candidate.apply(config), topology)
      row |= report
    except errors.UserError as error:
      row |= {"fits": False, "refused": str(error), "step_seconds": None,
              "hbm_gib_per_chip": None, "mfu": None}
    rows.append(row)
  return sorted(rows, key=lambda row: (
      not row["fits"], row["step_seconds"] or math.inf))


def render(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the ranked plans as text of at most 80 columns."""
  lines = [f"{'data':>4} {'fsdp':>5} {'tensor':>6} {'frame':>5} "
           f"{'remat':14} {'split':>5} {'GiB':>7} {'step s':>8} {'MFU':>6}"]
  number = lambda value, form: "-" if value is None else format(value, form)
  for row in rows:
    mesh = row["mesh"]
    note = "" if row["fits"] else (
        "  does not split" if "refused" in row else "  too large")
    lines.append(
        f"{mesh['data']:>4} {mesh['fsdp']:>5} {mesh['tensor']:>6} "
        f"{mesh['frame']:>5} {row['remat']!s:14.14} {row['accumulate']:>5} "
        f"{number(row['hbm_gib_per_chip'], '7.2f'):>7} "
        f"{number(row['step_seconds'], '8.4g'):>8} "
        f"{number(row['mfu'], '6.1%'):>6}{note}")
  return "\n".join(lines)
