"""Estimates the time of a compiled step by simulating its schedule.

The text of a program lists instructions in the order in which a device executes
them. The simulation adds up their times in this order:

  compute      the compiler's cycle estimate of each instruction
  kernels      `kernels.cost`, as the compiler has no estimate for kernels
  collectives  `collectives.Network.seconds`. An asynchronous collective runs in
               parallel with the instructions that are scheduled between its
               start and its end; collectives that use the same links of the
               torus run one after the other. At its end the device waits until
               the collective has finished; this time is "exposed". The whole
               time of a synchronous collective is exposed.
  slices       exchange data by send and receive operations of their hosts,
               which are simulated like asynchronous collectives
  copies       between HBM and on-chip or host memory, likewise
  loops        the time of the body, times the trip count
  branches     the time of the slowest branch

An instruction without a cycle estimate that is not a kernel takes its bytes
divided by the memory's bandwidth.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from genie_jax.plan.cost import collectives as collectives_lib
from genie_jax.plan.cost import kernels
from genie_jax.plan.hlo import matmul_flops, op_names, parse

_Key = TypeVar("_Key")
_Path = str | collectives_lib.Link

# Instructions that only name existing values, or run on the scalar unit in
# parallel with everything else.
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
# Kinds of copies, and their names in a breakdown.
_COPIES = {"copy": "copies to fast memory", "host copy": "copies to the host"}
# The fixed cost of an instruction hides the time to move fewer bytes.
_NEGLIGIBLE_BYTES = 4096


@dataclasses.dataclass
class Collective:
  """Totals of one kind of collective in a step, on one device.

  Attributes:
    count: Number of executions.
    bytes: Bytes that the device receives.
    seconds: Time on the links.
    exposed: The part of this time in which the device waits.
  """

  count: float = 0
  bytes: float = 0.0
  seconds: float = 0.0
  exposed: float = 0.0


@dataclasses.dataclass
class Estimate:
  """The estimated time of one step, on one device.

  Attributes:
    compute: Seconds of instructions with the compiler's estimate, and of
      waiting for copies.
    kernels: Seconds of Pallas kernels.
    exposed: Seconds of waiting for other chips.
    collectives: Kind -> totals.
    kernel_seconds: Kernel -> seconds.
    unknown_kernels: Kernels without a cost model, bounded by their shapes.
    unestimated: Opcode -> seconds that were estimated from bytes alone.
    unknown_loops: Loops with an unknown trip count, counted as one iteration.
    host_bytes: Bytes copied to and from the host's memory.
    parts: (part, pass) of the model -> seconds of compute and kernels.
    flops: FLOPs of matrix products and kernels by pass: "forward", "backward",
      "recomputed", or "" outside the model.
  """

  compute: float = 0.0
  kernels: float = 0.0
  exposed: float = 0.0
  collectives: dict[str, Collective] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(Collective)
  )
  kernel_seconds: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  unknown_kernels: set[str] = dataclasses.field(default_factory=set)
  unestimated: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  unknown_loops: list[str] = dataclasses.field(default_factory=list)
  host_bytes: float = 0.0
  parts: dict[tuple[str, str], float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  flops: dict[str, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )

  @property
  def total(self) -> float:
    """Seconds of the step."""
    return self.compute + self.kernels + self.exposed

  def add(self, other: "Estimate", times: float) -> None:
    """Adds another estimate, multiplied by `times`."""
    self.compute += times * other.compute
    self.kernels += times * other.kernels
    self.exposed += times * other.exposed
    for kind, theirs in other.collectives.items():
      mine = self.collectives[kind]
      mine.count += times * theirs.count
      mine.bytes += times * theirs.bytes
      mine.seconds += times * theirs.seconds
      mine.exposed += times * theirs.exposed
    _add(self.kernel_seconds, other.kernel_seconds, times)
    _add(self.unestimated, other.unestimated, times)
    _add(self.parts, other.parts, times)
    _add(self.flops, other.flops, times)
    self.unknown_kernels |= other.unknown_kernels
    self.unknown_loops += other.unknown_loops
    self.host_bytes += times * other.host_bytes


def _add(
  totals: dict[_Key, float], added: Mapping[_Key, float], times: float
) -> None:
  """Adds values to totals, multiplied by `times`."""
  for key, value in added.items():
    totals[key] += times * value


@dataclasses.dataclass(frozen=True)
class _Transfer:
  """An asynchronous collective or copy that has started.

  Attributes:
    kind: Kind of the collective, or a key of _COPIES.
    finish: When it finishes, in seconds from the start of its computation.
  """

  kind: str
  finish: float


@dataclasses.dataclass
class _State:
  """The simulation of one computation.

  Attributes:
    computation: Its name.
    total: Time so far.
    idle_from: A link of the torus, "slices" or a kind of copy -> when the last
      transfer on this path finishes.
    in_flight: Name of the start, or a key that start and end have in common ->
      the transfer.
  """

  computation: str
  total: Estimate = dataclasses.field(default_factory=Estimate)
  idle_from: dict[_Path, float] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(float)
  )
  in_flight: dict[str, _Transfer] = dataclasses.field(default_factory=dict)

  def begin(
    self, paths: Iterable[_Path], kind: str, seconds: float
  ) -> _Transfer:
    """Starts a transfer as soon as all of its paths are idle."""
    paths = tuple(paths)
    start = max(self.total.total, *(self.idle_from[path] for path in paths), 0)
    for path in paths:
      self.idle_from[path] = start + seconds
    return _Transfer(kind, start + seconds)

  def wait(self, transfer: _Transfer | None) -> None:
    """Adds the time until a transfer has finished; ignores None."""
    if transfer is None:
      return
    left = max(0.0, transfer.finish - self.total.total)
    if transfer.kind in _COPIES:
      self.total.compute += left
      if left:
        self.total.parts[_COPIES[transfer.kind], ""] += left
    else:
      self.total.exposed += left
      self.total.collectives[transfer.kind].exposed += left


@dataclasses.dataclass(frozen=True)
class _FoundCollective:
  """A collective that an instruction starts, ends or runs.

  Attributes:
    role: "start", "done", or "synchronous".
    instruction: The collective itself.
    computation: The computation that has it.
  """

  role: str
  instruction: parse.Instruction
  computation: str


class _Simulation:
  """Simulates the computations of a program, each one once."""

  def __init__(self, module: parse.Module, network: collectives_lib.Network):
    self._module, self._network = module, network
    self._chip = network.chip
    self._done: dict[str, Estimate] = {}

  def run(self, computation: str) -> Estimate:
    """Returns the estimate of one execution of a computation."""
    if computation not in self._done:
      self._done[computation] = self._run(computation)
    return self._done[computation]

  def _run(self, computation: str) -> Estimate:
    state = _State(computation)
    for instruction in self._module.computations[computation]:
      self._execute(instruction, state)
    # A transfer whose end is in another computation is waited for here.
    for transfer in state.in_flight.values():
      state.wait(transfer)
    return state.total

  def _execute(self, x: parse.Instruction, state: _State) -> None:
    """Adds the time of an instruction."""
    total = state.total
    if x.opcode in _FREE:
      return
    if x.opcode == "while":
      count = self._module.trip_count(x)
      if count is None:
        total.unknown_loops.append(x.name)
      for part in ("body", "condition"):
        total.add(self.run(x.required(part)), 1 if count is None else count)
      return
    if x.opcode == "conditional":
      branches = [self.run(name) for name in x.branches()]
      total.add(max(branches, key=lambda branch: branch.total), 1)
      return
    if x.opcode == "call":
      total.add(self.run(x.required("to_apply")), 1)
      return
    for path, flops in matmul_flops.products(
      self._module, state.computation, x
    ):
      total.flops[op_names.classify(path)[1]] += flops
    if self._transfer(x, state):
      return
    if kernels.is_kernel(x):
      self._kernel(x, state)
    elif x.attribute("custom_call_target") not in _FREE_TARGETS:
      self._compute(x, state)

  def _transfer(self, x: parse.Instruction, state: _State) -> bool:
    """Starts or ends a collective or a copy; returns False for others."""
    if x.opcode in ("send", "recv", "send-done", "recv-done"):
      self._between_slices(x, state)
      return True
    if x.opcode.endswith("-done") and x.operands:
      state.wait(state.in_flight.pop(x.operands[0], None))
      return True
    collective = self._find_collective(x, state.computation)
    if collective is not None:
      self._collective(x, collective, state)
      return True
    if x.opcode.endswith("-start"):
      self._start_copy(x, state)
      return True
    return False

  def _collective(
    self, x: parse.Instruction, found: _FoundCollective, state: _State
  ) -> None:
    """Starts a collective, ends it, or runs it synchronously."""
    if found.role == "done":
      state.wait(state.in_flight.pop(_chain(found.instruction), None))
      return
    kind, seconds, links = self._collective_seconds(x, found, state.total)
    transfer = state.begin(links, kind, seconds)
    if found.role == "start":
      key = _chain(found.instruction) if x.opcode == "fusion" else x.name
      state.in_flight[key] = transfer
    else:
      state.wait(transfer)

  def _start_copy(self, x: parse.Instruction, state: _State) -> None:
    """Starts a copy to or from HBM."""
    # The results of a copy of a slice include the full array; only the slice,
    # the smaller of them, is moved.
    moved = min(
      (
        array.padded_bytes
        for array in x.results
        if array.bytes >= _NEGLIGIBLE_BYTES
      ),
      default=0.0,
    )
    kind, rate = "copy", self._chip.hbm_bandwidth
    if any(array.in_host_memory for array in x.results):
      kind, rate = "host copy", self._chip.host_bandwidth
      state.total.host_bytes += moved
    seconds = moved * self._chip.devices / rate
    state.in_flight[x.name] = state.begin([kind], kind, seconds)

  def _between_slices(self, x: parse.Instruction, state: _State) -> None:
    """Starts a transfer at its send, and ends it at the end of its receive."""
    if x.opcode == "send":
      transfer = collectives_lib.parse_slice_transfer(x.attributes)
      kind, name = transfer or ("", x.name)
      operands = self._module.operands(state.computation, x)
      sent = sum(array.bytes for array in operands)
      moved, seconds = self._network.slice_transfer(kind, sent)
      kind = f"between slices: {kind.lower().replace('_', '-')}"
      totals = state.total.collectives[kind]
      totals.count += 1
      totals.bytes += moved
      totals.seconds += seconds
      state.in_flight[f"slices {name}"] = state.begin(["slices"], kind, seconds)
    elif x.opcode == "recv-done":
      receive = self._module.by_name(state.computation).get(x.operands[0])
      if receive is None:
        return
      transfer = collectives_lib.parse_slice_transfer(receive.attributes)
      if transfer is not None:
        state.wait(state.in_flight.pop(f"slices {transfer[1]}", None))

  def _find_collective(
    self, x: parse.Instruction, computation: str
  ) -> _FoundCollective | None:
    """Returns the collective that an instruction is or contains, or None."""
    if collectives_lib.kind_of(x.opcode):
      role = "start" if x.opcode.endswith("-start") else "synchronous"
      return _FoundCollective(role, x, computation)
    called = x.attribute("calls")
    if x.opcode not in ("fusion", "async-start") or not called:
      return None
    inside = self._module.computations.get(called, ())
    inner = next((y for y in inside if collectives_lib.kind_of(y.opcode)), None)
    if inner is None:
      return None
    if x.opcode == "async-start":
      return _FoundCollective("start", inner, called)
    targets = {y.attribute("custom_call_target") for y in inside}
    if "AsyncCollectiveStart" in targets:
      return _FoundCollective("start", inner, called)
    if "AsyncCollectiveDone" in targets:
      return _FoundCollective("done", inner, called)
    if x.cycles is not None:
      # Compute that is fused with a part of a collective in flight.
      return None
    return _FoundCollective("synchronous", inner, called)

  def _collective_seconds(
    self, x: parse.Instruction, found: _FoundCollective, total: Estimate
  ) -> tuple[str, float, frozenset[collectives_lib.Link]]:
    """Counts a collective; returns its kind, its seconds and its links."""
    inner = found.instruction
    kind = collectives_lib.kind_of(inner.opcode)
    assert kind is not None  # As _find_collective has checked.
    operands = self._module.operands(found.computation, inner)
    operand_bytes = sum(array.bytes for array in operands)
    result_bytes = inner.result_bytes
    if inner.opcode.endswith("-start"):
      result_bytes -= operand_bytes  # The result tuple includes the operands.
    if kind == "all-reduce" and "all-reduce-scatter" in (
      x.attribute("calls") or ""
    ):
      # The all-reduce is fused with the slice that each device keeps.
      kind = "reduce-scatter"
    payload = collectives_lib.payload_bytes(kind, result_bytes, operand_bytes)
    groups = collectives_lib.parse_groups(
      inner.attributes, self._network.num_devices
    )
    seconds = self._network.seconds(kind, payload, groups)
    totals = total.collectives[kind]
    totals.count += 1
    totals.bytes += collectives_lib.received_bytes(
      kind, payload, len(groups[0])
    )
    totals.seconds += seconds
    return kind, seconds, self._network.links(kind, groups)

  def _kernel(self, x: parse.Instruction, state: _State) -> None:
    """Adds the time of a Pallas kernel."""
    operands = self._module.operands(state.computation, x)
    cost = kernels.cost(x, operands, self._chip)
    seconds, name = cost.seconds(self._chip), kernels.kernel_name(x)
    total = state.total
    total.kernels += seconds
    total.kernel_seconds[name] += seconds
    if not cost.known:
      total.unknown_kernels.add(name)
    part = op_names.classify(x.op_name)
    total.parts[part] += seconds
    total.flops[part[1]] += cost.flops

  def _compute(self, x: parse.Instruction, state: _State) -> None:
    """Adds the time of any other instruction."""
    total = state.total
    if x.cycles is not None:
      seconds = x.cycles / self._chip.clock
    else:
      operands = self._module.operands(state.computation, x)
      moved = sum(
        array.padded_bytes for array in (*x.results, *operands) if array.in_hbm
      )
      if moved < _NEGLIGIBLE_BYTES:
        return
      seconds = moved * self._chip.devices / self._chip.hbm_bandwidth
      total.unestimated[x.opcode] += seconds
    total.compute += seconds
    total.parts[op_names.classify(x.op_name)] += seconds


def _chain(collective: parse.Instruction) -> str:
  """Returns a key that start and end of a fused collective have in common."""
  found = re.search(r'chain_id="(\d+)"', collective.attributes)
  if found:
    return f"chain {found[1]}"
  return f"channel {collective.attribute('channel_id')}"


def estimate(
  program: str | parse.Module, network: collectives_lib.Network
) -> Estimate:
  """Estimates the time of a compiled step.

  Args:
    program: The scheduled program, or its text from `compiled.as_text()`.
    network: The devices that it runs on.
  """
  module = parse.parse(program) if isinstance(program, str) else program
  return _Simulation(module, network).run(module.entry)


def step_seconds(found: Estimate, kernel_factor: float = 1.0) -> float:
  """Returns the seconds of a step if kernels were slower by a factor."""
  return found.compute + kernel_factor * found.kernels + found.exposed


def summary(found: Estimate) -> Mapping[str, dict[str, float]]:
  """Returns the totals of each kind of collective as JSON values."""
  return {
    kind: dataclasses.asdict(value)
    for kind, value in sorted(found.collectives.items())
  }
