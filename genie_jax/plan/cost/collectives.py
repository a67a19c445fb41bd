"""Seconds of a collective from its bytes and the links between its chips.

The model (after the scaling book, chapters TPUs and Sharding): a group that
spans d dimensions of the torus uses the links of all d at once; a dimension
that closes to a ring carries data both ways round, an open one only one way
to its end. Each hop adds a microsecond. Groups that cross slices send what a
chip owns over the data-centre network.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from genie_jax.core import chips

HOP_SECONDS = 1e-6

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a device is.

  Attributes:
    coords: Its chip's position in the slice.
    slice_index: Its slice.
  """

  coords: tuple[int, ...]
  slice_index: int


@dataclasses.dataclass(frozen=True)
class Network:
  """The devices in the program's order, and the links between them.

  Attributes:
    places: Where each device is.
    dims: Chips along each dimension of a slice.
    wrap: Whether each dimension closes to a ring.
    chip: Speed of the links.
  """

  places: tuple[Place, ...]
  dims: tuple[int, ...]
  wrap: tuple[bool, ...]
  chip: chips.Chip

  def seconds(
    self, kind: str, num_bytes: float, groups: Sequence[Sequence[int]]
  ) -> float:
    """Returns how long a collective takes, its slowest group counting.

    Args:
      kind: One of KINDS.
      num_bytes: What `whole_bytes` gives.
      groups: Devices of each group; source and target for a permutation.
    """
    if kind == "collective-permute":
      return max((self._hop(num_bytes, *pair) for pair in groups), default=0.0)
    shapes = {self._shape(group) for group in groups}
    return max(
      (self._group(kind, num_bytes, *shape) for shape in shapes), default=0.0
    )

  @property
  def num_slices(self) -> int:
    return len({place.slice_index for place in self.places})

  def between_slices(
    self, transfer: str, num_bytes: float
  ) -> tuple[float, float]:
    """Returns what one device sends to other slices, and in how long.

    Between slices a program has no collectives but transfers by the hosts.

    Args:
      transfer: As the program calls it, for example "ALL_REDUCE".
      num_bytes: What each device gives.

    Returns:
      Bytes and seconds.
    """
    others = self.num_slices - 1
    factor = {
      "ALL_REDUCE": 2 * others / self.num_slices,
      "ALL_GATHER": others,
      "REDUCE_SCATTER": others / self.num_slices,
      "ALL_TO_ALL": others / self.num_slices,
    }.get(transfer, 1.0)
    moved = num_bytes * factor
    return moved, moved * self.chip.devices / self.chip.dcn_bandwidth

  def _shape(self, group: Sequence[int]):
    """Returns ((length, stride, ring) a dimension), slices, chips a slice."""
    places = [self.places[i] for i in group]
    slices = len({place.slice_index for place in places})
    inside = {
      place.coords
      for place in places
      if place.slice_index == places[0].slice_index
    }
    axes = []
    for axis, length in enumerate(self.dims):
      at = sorted({coords[axis] for coords in inside})
      if len(at) > 1:
        stride = math.gcd(*(b - a for a, b in itertools.pairwise(at)))
        ring = self.wrap[axis] and len(at) * stride == length
        axes.append((len(at), stride, ring))
    if math.prod(count for count, *_ in axes) != len(inside):
      # No box: one line through all its chips.
      axes = [(len(inside), 1, False)]
    # Devices of one chip in other groups use the same links at the same time.
    rivals = self.chip.devices * len(inside) * slices / len(group)
    return tuple(axes), slices, len(inside), rivals

  def _group(self, kind, num_bytes, axes, slices, inside, rivals) -> float:
    seconds = 0.0
    passes = 2 if kind == "all-reduce" else 1
    link = self.chip.link_bandwidth / max(rivals, 1)
    if axes and kind == "all-to-all":
      # Half of what a device holds crosses the middle of each dimension.
      seconds += max(
        num_bytes
        * self.chip.devices
        / max(rivals, 1)
        * count
        * stride
        / ((8 if ring else 4) * link)
        for count, stride, ring in axes
      )
    elif axes:
      rate = sum((2 if ring else 1) * link / stride for _, stride, ring in axes)
      seconds += passes * num_bytes * (inside - 1) / inside / rate
    seconds += (
      passes
      * HOP_SECONDS
      * sum(
        (count / 2 if ring else count - 1) * stride
        for count, stride, ring in axes
      )
    )
    if slices > 1:
      # A chip sends the part that it owns to each other slice's owner.
      own = num_bytes if kind == "all-to-all" else num_bytes / inside
      seconds += (
        passes
        * own
        * (slices - 1)
        / slices
        * self.chip.devices
        / self.chip.dcn_bandwidth
      )
    return seconds

  def _hop(self, num_bytes: float, source: int, target: int) -> float:
    a, b = self.places[source], self.places[target]
    if a.slice_index != b.slice_index:
      return num_bytes * self.chip.devices / self.chip.dcn_bandwidth
    hops = 0
    for axis, length in enumerate(self.dims):
      distance = abs(a.coords[axis] - b.coords[axis])
      hops += min(distance, length - distance) if self.wrap[axis] else distance
    return hops * (num_bytes / self.chip.link_bandwidth + HOP_SECONDS)


def kind_of(opcode: str) -> str | None:
  """Returns a collective's kind from its opcode, None for others."""
  kind = opcode.removesuffix("-start")
  return kind if kind in KINDS else None


def whole_bytes(kind: str, result: float, operand: float) -> float:
  """Returns the bytes that a collective's time is computed from.

  The whole array of a group for gather, scatter and reduce; what one device
  holds for an all-to-all and a permutation.
  """
  return max(result, operand) if kind != "all-to-all" else operand


def moved_bytes(kind: str, whole: float, size: int) -> float:
  """Returns the bytes that one device receives.

  Args:
    kind: One of KINDS.
    whole: From `whole_bytes`.
    size: Devices of a group.
  """
  share = (size - 1) / size if size else 0.0
  return {"collective-permute": 1.0, "all-reduce": 2 * share}.get(
    kind, share
  ) * whole


def between_slices(attributes: str) -> tuple[str, str] | None:
  """Returns the kind and the name of a transfer between slices.

  Args:
    attributes: Of a send or a receive; None for one that stays here.
  """
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
  name = re.search(r'_xla_host_transfer_rendezvous="([^"]+)"', attributes)
  return (kind[1], name[1]) if kind and name else None


def groups(attributes: str, num_devices: int) -> list[list[int]]:
  """Reads which devices take part together.

  Args:
    attributes: Of the instruction; `replica_groups` in any of XLA's three
      notations, or `source_target_pairs`.
    num_devices: Of the program.

  Raises:
    ValueError: The notation is unknown.
  """
  pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
  if pairs:
    return _lists(pairs[1])
  found = re.search(r"replica_groups=", attributes)
  if not found:
    return [list(range(num_devices))]
  text = attributes[found.end() :]
  listed = re.match(r"\{((?:\{[\d,]*\},?)*)\}", text)
  if listed:
    return _lists(listed[1]) or [list(range(num_devices))]
  tiled = re.match(r"\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if tiled:
    flat = _iota(tiled[3], tiled[4])
    size = int(tiled[2])
    return [flat[i : i + size] for i in range(0, len(flat), size)]
  meshed = re.match(
    r"@?mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"?\{([^}]*)\}",
    text,
  )
  if meshed:
    return _mesh_groups(*meshed.groups())
  raise ValueError(f"Unknown notation of replica groups: {text[:120]!r}.")


def _lists(text: str) -> list[list[int]]:
  return [
    [int(i) for i in part.split(",") if i]
    for part in re.findall(r"\{([\d,]*)\}", text)
  ]


def _iota(dims: str, order: str | None) -> list[int]:
  """Returns 0, 1, ... as an array of `dims`, transposed, and made flat."""
  sizes = [int(d) for d in dims.split(",")]
  axes = [int(a) for a in order.split(",")] if order else range(len(sizes))
  strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
  flat = [0]
  for axis in axes:
    flat = [x + i * strides[axis] for x in flat for i in range(sizes[axis])]
  return flat


def _mesh_groups(axes, ids_dims, ids_order, members) -> list[list[int]]:
  """Reads mesh['a'=4,'b'=2] {'a'} or {'a':(1)2}: groups along some axes."""
  sizes = {
    name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)
  }
  flat = (
    _iota(ids_dims, ids_order)
    if ids_dims
    else list(range(math.prod(sizes.values())))
  )
  # Split an axis of which only a part takes part: (before)size after.
  parts: list[tuple[int, int | None]] = []  # Size, rank in the group.
  wanted = re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?(?:,|$)", members)
  for name, size in sizes.items():
    found = [
      (int(before or 1), int(part or size), rank)
      for rank, (axis, before, part) in enumerate(wanted)
      if axis == name
    ]
    done = 1
    for before, part, rank in sorted(found):
      parts += [(before // done, None), (part, rank)]
      done = before * part
    parts.append((size // done, None))
  strides = [math.prod(s for s, _ in parts[i + 1 :]) for i in range(len(parts))]
  outer, inner = [0], [0]
  for (size, rank), stride in zip(parts, strides, strict=True):
    if rank is None:
      outer = [x + i * stride for x in outer for i in range(size)]
  ranked = sorted(
    (rank, size, stride)
    for (size, rank), stride in zip(parts, strides, strict=True)
    if rank is not None
  )
  for _, size, stride in ranked:
    inner = [x + i * stride for x in inner for i in range(size)]
  return [[flat[x + y] for y in inner] for x in outer]


def network(devices: Sequence, dims, wrap, chip: chips.Chip) -> Network:
  """Returns the links between the devices of a mesh.

  Args:
    devices: In the order of the mesh, which is the program's.
    dims: Chips along each dimension of a slice.
    wrap: Whether each dimension closes to a ring.
    chip: What they are.
  """
  padded = (*dims, 1, 1, 1)[:3]
  places = tuple(
    # One slice's devices carry no slice index.
    Place(tuple(d.coords), getattr(d, "slice_index", 0))
    for d in devices
  )
  return Network(places, padded, tuple(wrap), chip)
