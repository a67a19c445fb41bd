"""Seconds of a compiled step, from its own schedule.

The program's text lists instructions in the order in which a chip runs them.
A clock walks through it:

  compute      the compiler's estimated cycles of each instruction
  kernels      `kernels.cost`, as the compiler estimates none for them
  collectives  `collectives.Network.seconds`. One that starts and ends at
               different places overlaps with the instructions scheduled
               between them, one after the other on the links; the clock
               waits at its end for what remains ("exposed"). One without
               separate start and end instructions is exposed as a whole.
  slices       talk by sends and receives of their hosts, likewise
  copies       between HBM and the chip's fast memory or the host's, likewise
  loops        the body's time, times its trip count
  branches     the longest

An instruction that has no estimate and is no kernel takes its bytes over the
memory's bandwidth.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

from genie_jax.core import chips
from genie_jax.plan.cost import collectives as collectives_lib
from genie_jax.plan.cost import kernels
from genie_jax.plan.hlo import matmul_flops, op_names, parse

# Instructions that are names for what exists, or are done by the scalar unit
# beside everything else.
_FREE = frozenset(
  {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "async-update",
    "get-dimension-size",
    "domain",
  }
)
_FREE_TARGETS = frozenset(
  {
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollectiveStart",
    "AsyncCollectiveDone",
    "GatherScatterIndicesBitpacked",
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "SliceId",
  }
)
# Kinds of copies, and what a breakdown calls them.
_COPIES = {"copy": "copies to fast memory", "host copy": "copies to the host"}
# Bytes that the fixed cost of an instruction hides.
_SMALL = 4096


@dataclasses.dataclass
class Collective:
  """Sums over one kind of collective in a step, for one device.

  Attributes:
    count: How many run.
    bytes: Received by a device.
    seconds: On the links, hidden or not.
    exposed: Seconds of these that the device waits.
  """

  count: float = 0
  bytes: float = 0.0
  seconds: float = 0.0
  exposed: float = 0.0


@dataclasses.dataclass
class Estimate:
  """One step of one device.

  Attributes:
    compute: Seconds of what the compiler estimates, and of waiting for copies.
    kernels: Seconds of hand-written kernels.
    exposed: Seconds of waiting for other chips.
    collectives: By kind.
    kernel_seconds: By kernel.
    unknown_kernels: Kernels that are bounded from their shapes alone.
    unestimated: Opcode to seconds that were added from bytes alone.
    unknown_loops: Loops whose trip count could not be read; counted once.
    host_bytes: Copied to and from the host's memory.
    parts: (part, pass) of the model to seconds of compute and kernels.
    flops: Of matrix products and kernels, by pass: "forward", "backward",
      "recomputed", or "" outside of the model.
  """

  compute: float = 0.0
  kernels: float = 0.0
  exposed: float = 0.0
  collectives: dict[str, Collective] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Collective)
  )
  kernel_seconds: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  unknown_kernels: set[str] = dataclasses.field(default_factory=set)
  unestimated: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  unknown_loops: list[str] = dataclasses.field(default_factory=list)
  host_bytes: float = 0.0
  parts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  flops: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )

  @property
  def total(self) -> float:
    """Seconds of the step."""
    return self.compute + self.kernels + self.exposed

  def add(self, other: "Estimate", times: float) -> None:
    """Adds another estimate, `times` times."""
    self.compute += times * other.compute
    self.kernels += times * other.kernels
    self.exposed += times * other.exposed
    for kind, found in other.collectives.items():
      mine = self.collectives[kind]
      mine.count += times * found.count
      mine.bytes += times * found.bytes
      mine.seconds += times * found.seconds
      mine.exposed += times * found.exposed
    for mine, found in (
      (self.kernel_seconds, other.kernel_seconds),
      (self.unestimated, other.unestimated),
      (self.parts, other.parts),
      (self.flops, other.flops),
    ):
      for key, value in found.items():
        mine[key] += times * value
    self.unknown_kernels |= other.unknown_kernels
    self.unknown_loops += other.unknown_loops
    self.host_bytes += times * other.host_bytes


@dataclasses.dataclass(frozen=True)
class _Transfer:
  """A collective or a copy under way: when it ends by the clock."""

  kind: str
  finish: float


class _Walk:
  """Walks computations; remembers those that it has walked."""

  def __init__(self, module: parse.Module, network: collectives_lib.Network):
    self._module, self._network = module, network
    self._chip = network.chip
    self._done: dict[str, Estimate] = {}

  def run(self, name: str) -> Estimate:
    """Returns the estimate of one pass through a computation."""
    if name not in self._done:
      self._done[name] = self._schedule(name)
    return self._done[name]

  def _schedule(self, name: str) -> Estimate:
    total = Estimate()
    free = collections.Counter()  # When the links and the copier are idle.
    under_way: dict[str, _Transfer] = {}
    for instruction in self._module.computations[name]:
      self._step(name, instruction, total, free, under_way)
    # What ends in another computation must still end.
    for transfer in under_way.values():
      self._wait(transfer, total)
    return total

  def _step(self, where, x: parse.Instruction, total, free, under_way) -> None:
    if x.opcode in _FREE:
      return
    if x.opcode == "while":
      count = self._module.trip_count(x)
      if count is None:
        total.unknown_loops.append(x.name)
      for part in ("body", "condition"):
        total.add(self.run(x.attribute(part)), 1 if count is None else count)
      return
    if x.opcode == "conditional":
      branches = [self.run(name) for name in _branches(x)]
      total.add(max(branches, key=lambda branch: branch.total), 1)
      return
    if x.opcode == "call":
      total.add(self.run(x.attribute("to_apply")), 1)
      return
    for path, flops in matmul_flops.of(self._module, where, x):
      total.flops[op_names.of(path)[1]] += flops
    if self._transfer(where, x, total, free, under_way):
      return
    if kernels.is_kernel(x):
      self._kernel(where, x, total)
    elif x.attribute("custom_call_target") not in _FREE_TARGETS:
      self._compute(where, x, total)

  def _transfer(self, where, x, total, free, under_way) -> bool:
    """Deals with collectives and copies; False if `x` is neither."""
    if x.opcode in ("send", "recv", "send-done", "recv-done"):
      self._between_slices(where, x, total, free, under_way)
      return True
    if x.opcode.endswith("-done") and x.operands:
      transfer = under_way.pop(x.operands[0], None)
      if transfer:
        self._wait(transfer, total)
      return True
    role, inner, place = self._collective(where, x)
    if role == "done":
      transfer = under_way.pop(_chain(inner), None)
      if transfer:
        self._wait(transfer, total)
      return True
    if role is not None:
      kind, seconds = self._links(place, inner, x, total)
      start = max(total.total, free["links"])
      free["links"] = start + seconds
      transfer = _Transfer(kind, start + seconds)
      if role == "start":
        under_way[_chain(inner) if x.opcode == "fusion" else x.name] = transfer
      else:
        self._wait(transfer, total)
      return True
    if x.opcode.endswith("-start"):
      # Of a whole and a slice of it that goes in or out, the slice moves.
      moved = min(
        (array.padded_bytes for array in x.results if array.bytes >= _SMALL),
        default=0.0,
      )
      kind, rate = "copy", self._chip.hbm_bandwidth
      if any(array.in_host_memory for array in x.results):
        kind, rate = "host copy", chips.HOST_BANDWIDTH
      seconds = moved * self._chip.devices / rate
      start = max(total.total, free[kind])
      free[kind] = start + seconds
      under_way[x.name] = _Transfer(kind, start + seconds)
      total.host_bytes += moved if kind == "host copy" else 0.0
      return True
    return False

  def _between_slices(self, where, x, total, free, under_way) -> None:
    """Runs a transfer from its send to the end of its receive."""
    if x.opcode == "send":
      kind, name = collectives_lib.between_slices(x.attributes) or ("", x.name)
      sent = sum(array.bytes for array in self._module.operands(where, x))
      moved, seconds = self._network.between_slices(kind, sent)
      start = max(total.total, free["slices"])
      free["slices"] = start + seconds
      kind = f"between slices: {kind.lower().replace('_', '-')}"
      found = total.collectives[kind]
      found.count += 1
      found.bytes += moved
      found.seconds += seconds
      under_way[f"slices {name}"] = _Transfer(kind, start + seconds)
    elif x.opcode == "recv-done":
      receive = self._module.table(where).get(x.operands[0])
      found = receive and collectives_lib.between_slices(receive.attributes)
      transfer = found and under_way.pop(f"slices {found[1]}", None)
      if transfer:
        self._wait(transfer, total)

  def _collective(self, where, x):
    """Returns a collective's role (start, done, whole), itself, its place."""
    if collectives_lib.kind_of(x.opcode):
      return ("start" if x.opcode.endswith("-start") else "whole"), x, where
    called = x.attribute("calls")
    if x.opcode not in ("fusion", "async-start") or not called:
      return None, None, None
    inside = self._module.computations.get(called, ())
    inner = next((y for y in inside if collectives_lib.kind_of(y.opcode)), None)
    if inner is None:
      return None, None, None
    if x.opcode == "async-start":
      return "start", inner, called
    targets = {y.attribute("custom_call_target") for y in inside}
    if "AsyncCollectiveStart" in targets:
      return "start", inner, called
    if "AsyncCollectiveDone" in targets:
      return "done", inner, called
    if x.cycles is not None:
      # Work with a piece of a collective in it that another one started.
      return None, None, None
    return "whole", inner, called

  def _links(self, place, inner, outer, total) -> tuple[str, float]:
    kind = collectives_lib.kind_of(inner.opcode)
    operand = sum(a.bytes for a in self._module.operands(place, inner))
    result = inner.result_bytes
    if inner.opcode.endswith("-start"):
      result -= operand  # Its tuple repeats what it takes.
    if kind == "all-reduce" and "all-reduce-scatter" in (
      outer.attribute("calls") or ""
    ):
      kind = "reduce-scatter"  # Fused with the slice that each device keeps.
    whole = collectives_lib.whole_bytes(kind, result, operand)
    groups = collectives_lib.groups(inner.attributes, len(self._network.places))
    seconds = self._network.seconds(kind, whole, groups)
    found = total.collectives[kind]
    found.count += 1
    found.bytes += collectives_lib.moved_bytes(kind, whole, len(groups[0]))
    found.seconds += seconds
    return kind, seconds

  def _wait(self, transfer: _Transfer, total: Estimate) -> None:
    left = max(0.0, transfer.finish - total.total)
    if transfer.kind in _COPIES:
      total.compute += left
      if left:
        total.parts[_COPIES[transfer.kind], ""] += left
    else:
      total.exposed += left
      total.collectives[transfer.kind].exposed += left

  def _kernel(self, where, x, total) -> None:
    cost = kernels.cost(x, self._module.operands(where, x), self._chip)
    seconds, name = cost.seconds(self._chip), kernels.name(x)
    total.kernels += seconds
    total.kernel_seconds[name] += seconds
    if not cost.known:
      total.unknown_kernels.add(name)
    part = op_names.of(x.op_name)
    total.parts[part] += seconds
    total.flops[part[1]] += cost.flops

  def _compute(self, where, x, total) -> None:
    if x.cycles is not None:
      seconds = x.cycles / self._chip.clock
    else:
      moved = sum(
        array.padded_bytes
        for array in (*x.results, *self._module.operands(where, x))
        if array.in_main_memory
      )
      if moved < _SMALL:
        return
      seconds = moved * self._chip.devices / self._chip.hbm_bandwidth
      total.unestimated[x.opcode] += seconds
    total.compute += seconds
    total.parts[op_names.of(x.op_name)] += seconds


def _chain(collective: parse.Instruction) -> str:
  """Returns what joins the start of a fused collective to its end."""
  found = re.search(r'chain_id="(\d+)"', collective.attributes)
  if found:
    return f"chain {found[1]}"
  return f"channel {collective.attribute('channel_id')}"


def _branches(x: parse.Instruction) -> list[str]:
  found = re.search(r"branch_computations=\{([^}]*)\}", x.attributes)
  if found:
    return re.findall(r"%?([\w.\-]+)", found[1])
  return [x.attribute("true_computation"), x.attribute("false_computation")]


def of(
  program: str | parse.Module, network: collectives_lib.Network
) -> Estimate:
  """Estimates a compiled step.

  Args:
    program: The scheduled program, or its text, from `compiled.as_text()`.
    network: The devices that it runs on.
  """
  module = parse.parse(program) if isinstance(program, str) else program
  return _Walk(module, network).run(module.entry)


def step_seconds(found: Estimate, kernel_factor: float = 1.0) -> float:
  """Returns the seconds of a step with every kernel so many times slower."""
  return found.compute + kernel_factor * found.kernels + found.exposed


def summary(found: Estimate) -> Mapping[str, dict[str, float]]:
  """Returns the collectives as plain numbers, for JSON."""
  return {
    kind: dataclasses.asdict(value)
    for kind, value in sorted(found.collectives.items())
  }
