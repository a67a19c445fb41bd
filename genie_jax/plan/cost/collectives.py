"""Estimates the time of collectives from their bytes and the chips' links.

The model follows the scaling book, chapters TPUs and Sharding. A group of
devices that spans d dimensions of the torus uses the links of all d dimensions
at the same time. A dimension that forms a ring carries data in both directions,
an open one in one direction only. Each hop adds a microsecond. In a group that
spans several slices, each chip sends its own part over the data-centre network.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from genie_jax.core import chips

HOP_SECONDS = 1e-6

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)


# A dimension of the torus, and a direction: -1 or 1.
Link = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Position:
  """The position of a device.

  Attributes:
    coords: Coordinates of its chip in the slice.
    slice_index: Index of its slice.
  """

  coords: tuple[int, ...]
  slice_index: int


@dataclasses.dataclass(frozen=True)
class _GroupShape:
  """The shape of a group of devices in the torus.

  Attributes:
    axes: (number of chips, their distance, whether they form a ring) for each
      dimension of the torus that the group spans.
    slices: Number of slices.
    chips: Number of chips in a slice.
    sharing: Number of groups that use the same links at the same time, since
      they have other devices of the same chips.
  """

  axes: tuple[tuple[int, int, bool], ...]
  slices: int
  chips: int
  sharing: float


@dataclasses.dataclass(frozen=True)
class Network:
  """The devices of a program, in its order, and the links between them.

  Attributes:
    positions: Position of each device.
    dims: Number of chips along each dimension of a slice.
    wrap: Whether each dimension forms a ring.
    chip: The chip, which determines the bandwidth of the links.
  """

  positions: tuple[Position, ...]
  dims: tuple[int, ...]
  wrap: tuple[bool, ...]
  chip: chips.Chip

  @property
  def num_devices(self) -> int:
    """Number of devices."""
    return len(self.positions)

  @property
  def num_slices(self) -> int:
    """Number of slices."""
    return len({position.slice_index for position in self.positions})

  def seconds(
    self, kind: str, num_bytes: float, groups: Sequence[Sequence[int]]
  ) -> float:
    """Returns the time of a collective, which is that of its slowest group.

    Args:
      kind: One of KINDS.
      num_bytes: From `payload_bytes`.
      groups: Devices of each group; for a permutation, source and target.
    """
    if kind == "collective-permute":
      return max(
        (
          self._permutation_seconds(num_bytes, source, target)
          for source, target in groups
        ),
        default=0.0,
      )
    shapes = {self._group_shape(group) for group in groups}
    return max(
      (self._group_seconds(kind, num_bytes, shape) for shape in shapes),
      default=0.0,
    )

  def links(
    self, kind: str, groups: Sequence[Sequence[int]]
  ) -> frozenset[Link]:
    """Returns the links of the torus that a collective uses.

    Collectives that use different links run at the same time: those of groups
    along different dimensions, and permutations in opposite directions, as both
    directions of a link are independent.

    Args:
      kind: One of KINDS.
      groups: Devices of each group; for a permutation, source and target.
    """
    found: set[Link] = set()
    for group in groups:
      if kind == "collective-permute":
        found |= self._way(*group)
        continue
      for axis in self._spanned(group):
        found |= {(axis, -1), (axis, 1)}
    return frozenset(found)

  def _spanned(self, group: Sequence[int]) -> Iterable[int]:
    """Returns the dimensions along which the chips of a group differ."""
    coordinates = [self.positions[i].coords for i in group]
    return [
      axis
      for axis in range(len(self.dims))
      if len({coords[axis] for coords in coordinates}) > 1
    ]

  def _way(self, source: int, target: int) -> set[Link]:
    """Returns the links from one device to another, on the shortest way."""
    found: set[Link] = set()
    a, b = self.positions[source].coords, self.positions[target].coords
    for axis, length in enumerate(self.dims):
      distance = b[axis] - a[axis]
      if self.wrap[axis]:
        distance = (distance + length // 2) % length - length // 2
        if distance and 2 * abs(distance) == length:
          found |= {(axis, -1), (axis, 1)}  # Both ways are as long.
      if distance:
        found.add((axis, 1 if distance > 0 else -1))
    return found

  def slice_transfer(
    self, transfer: str, num_bytes: float
  ) -> tuple[float, float]:
    """Returns the bytes that one device sends to other slices, and the time.

    Between slices a program has transfers by the hosts instead of collectives.

    Args:
      transfer: The program's name of the operation, for example "ALL_REDUCE".
      num_bytes: Bytes of the operand on each device.

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

  def _group_shape(self, group: Sequence[int]) -> _GroupShape:
    """Returns the shape of a group of devices."""
    positions = [self.positions[i] for i in group]
    slices = len({position.slice_index for position in positions})
    # Chips in the first slice; the other slices have the same ones.
    coordinates = {
      position.coords
      for position in positions
      if position.slice_index == positions[0].slice_index
    }
    axes = []
    for axis, length in enumerate(self.dims):
      at = sorted({coords[axis] for coords in coordinates})
      if len(at) > 1:
        stride = math.gcd(*(b - a for a, b in itertools.pairwise(at)))
        ring = self.wrap[axis] and len(at) * stride == length
        axes.append((len(at), stride, ring))
    if math.prod(count for count, *_ in axes) != len(coordinates):
      # The chips do not form a box, so assume one line through all of them.
      axes = [(len(coordinates), 1, False)]
    sharing = self.chip.devices * len(coordinates) * slices / len(group)
    return _GroupShape(tuple(axes), slices, len(coordinates), sharing)

  def _group_seconds(
    self, kind: str, num_bytes: float, shape: _GroupShape
  ) -> float:
    """Returns the time of a collective in one group."""
    seconds = 0.0
    passes = 2 if kind == "all-reduce" else 1
    link = self.chip.link_bandwidth / max(shape.sharing, 1)
    if shape.axes and kind == "all-to-all":
      # Half of the bytes of a device cross the middle of each dimension.
      seconds += max(
        num_bytes
        * self.chip.devices
        / max(shape.sharing, 1)
        * count
        * stride
        / ((8 if ring else 4) * link)
        for count, stride, ring in shape.axes
      )
    elif shape.axes:
      rate = sum(
        (2 if ring else 1) * link / stride for _, stride, ring in shape.axes
      )
      seconds += passes * num_bytes * (shape.chips - 1) / shape.chips / rate
    seconds += (
      passes
      * HOP_SECONDS
      * sum(
        (count / 2 if ring else count - 1) * stride
        for count, stride, ring in shape.axes
      )
    )
    if shape.slices > 1:
      # Each chip exchanges the part that it owns with the owners of the same
      # part in the other slices.
      own = num_bytes if kind == "all-to-all" else num_bytes / shape.chips
      seconds += (
        passes
        * own
        * (shape.slices - 1)
        / shape.slices
        * self.chip.devices
        / self.chip.dcn_bandwidth
      )
    return seconds

  def _permutation_seconds(
    self, num_bytes: float, source: int, target: int
  ) -> float:
    """Returns the time to send bytes from one device to another."""
    a, b = self.positions[source], self.positions[target]
    if a.slice_index != b.slice_index:
      return num_bytes * self.chip.devices / self.chip.dcn_bandwidth
    hops = 0
    for axis, length in enumerate(self.dims):
      distance = abs(a.coords[axis] - b.coords[axis])
      hops += min(distance, length - distance) if self.wrap[axis] else distance
    return hops * (num_bytes / self.chip.link_bandwidth + HOP_SECONDS)


def kind_of(opcode: str) -> str | None:
  """Returns the kind of collective of an opcode, None if it is another one."""
  kind = opcode.removesuffix("-start")
  return kind if kind in KINDS else None


def payload_bytes(kind: str, result: float, operand: float) -> float:
  """Returns the bytes that determine the time of a collective.

  For gather, scatter and reduce these are the bytes of the group's full array;
  for an all-to-all and a permutation, the bytes of one device.

  Args:
    kind: One of KINDS.
    result: Bytes of the result on one device.
    operand: Bytes of the operand on one device.
  """
  return max(result, operand) if kind != "all-to-all" else operand


def received_bytes(kind: str, payload: float, size: int) -> float:
  """Returns the bytes that one device receives.

  Args:
    kind: One of KINDS.
    payload: From `payload_bytes`.
    size: Number of devices of a group.
  """
  share = (size - 1) / size if size else 0.0
  return {"collective-permute": 1.0, "all-reduce": 2 * share}.get(
    kind, share
  ) * payload


def parse_slice_transfer(attributes: str) -> tuple[str, str] | None:
  """Returns the kind and the name of a transfer between slices.

  Args:
    attributes: Attributes of a send or a receive.

  Returns:
    For example ("ALL_REDUCE", "all-reduce.2_0"), or None if the transfer is not
    between slices.
  """
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', attributes)
  name = re.search(r'_xla_host_transfer_rendezvous="([^"]+)"', attributes)
  return (kind[1], name[1]) if kind and name else None


def parse_groups(attributes: str, num_devices: int) -> list[list[int]]:
  """Returns the groups of devices of a collective.

  Args:
    attributes: Attributes of the instruction, with `replica_groups` in any of
      XLA's three notations, or `source_target_pairs`.
    num_devices: Number of devices of the program.

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
  """Parses lists such as {0,1},{2,3}."""
  return [
    [int(i) for i in part.split(",") if i]
    for part in re.findall(r"\{([\d,]*)\}", text)
  ]


def _iota(dims: str, order: str | None) -> list[int]:
  """Parses XLA's iota notation of a list of devices.

  Args:
    dims: For example "2,4": the numbers 0, 1, ... in an array of this shape.
    order: For example "1,0": axes to which the array is then transposed.

  Returns:
    The flattened array.
  """
  sizes = [int(d) for d in dims.split(",")]
  axes = [int(a) for a in order.split(",")] if order else range(len(sizes))
  strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
  flat = [0]
  for axis in axes:
    flat = [x + i * strides[axis] for x in flat for i in range(sizes[axis])]
  return flat


def _mesh_groups(
  axes: str, ids_dims: str | None, ids_order: str | None, members: str
) -> list[list[int]]:
  """Parses XLA's mesh notation: groups along some axes of a mesh.

  Examples are mesh['a'=4,'b'=2] {'a'}, and {'a':(1)2} for a part of an axis.

  Args:
    axes: Names and sizes of the mesh axes.
    ids_dims: Shape of the iota notation of the devices, if they are given.
    ids_order: Transposition of the iota notation.
    members: The axes of a group.
  """
  sizes = {
    name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)
  }
  flat = (
    _iota(ids_dims, ids_order)
    if ids_dims
    else list(range(math.prod(sizes.values())))
  )
  # Split each axis of which a group has only a part. ('a':(2)4 means: divide
  # the axis into 2, 4, and the rest; the group has the part of size 4.)
  parts: list[tuple[int, int | None]] = []  # Size, and order in the group.
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


def network(
  devices: Iterable[Any],
  dims: Sequence[int],
  wrap: Sequence[bool],
  chip: chips.Chip,
) -> Network:
  """Returns the network of the devices of a mesh.

  Args:
    devices: Devices in the order of the mesh, which is that of the program.
    dims: Number of chips along each dimension of a slice.
    wrap: Whether each dimension forms a ring.
    chip: The chip of the devices.
  """
  padded = (*dims, 1, 1, 1)[:3]
  positions = tuple(
    # Devices have no slice index if there is only one slice.
    Position(tuple(d.coords), getattr(d, "slice_index", 0))
    for d in devices
  )
  return Network(positions, padded, tuple(wrap), chip)
