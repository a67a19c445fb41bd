"""Named arrangements of TPU chips, such as v5p:4x8x8, without attached chips.

The cloud's own names are understood too: v5p-512 counts TensorCores and is
4 x 8 x 8 = 256 chips, v5e-256 counts chips. A slice is a box of chips on one
interconnect. Several slices communicate over the data-centre network (DCN).
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from genie_jax.core import chips, errors
from genie_jax.plan.cost import collectives

_EXAMPLES = {2: ("4x4", "8x8", "16x16"), 3: ("2x2x1", "4x4x4", "4x8x8")}

# A slice of a three-dimensional torus consists of cubes of this side, or is
# smaller than one.
_CUBE = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """One or several slices of chips.

  Attributes:
    chip: The kind of chip.
    dims: Number of chips along each dimension of a slice, in ascending order
      but with 1 last, as in the vendor's documentation.
    slices: Number of slices.
  """

  chip: chips.Chip
  dims: tuple[int, ...]
  slices: int = 1

  @property
  def name(self) -> str:
    """Name of a slice, for example "v5p:4x8x8"."""
    return f"{self.chip.name}:{'x'.join(map(str, self.dims))}"

  @property
  def num_chips(self) -> int:
    """Number of chips in all slices."""
    return math.prod(self.dims) * self.slices

  @property
  def num_devices(self) -> int:
    """Number of JAX devices in all slices; two per chip on v2, v3 and v7x."""
    return self.num_chips * self.chip.devices

  @property
  def wrap(self) -> tuple[bool, bool, bool]:
    """Whether each dimension forms a ring.

    A torus with three dimensions consists of full cubes of 4 x 4 x 4 chips, so
    no dimension forms a ring if one of them is shorter.
    """
    least = self.chip.wraps_from
    if self.chip.torus_dims == 3:
      closed = all(d >= least and d % least == 0 for d in self.dims)
      return (closed, closed, closed)
    first, second = (d >= least for d in self.dims)
    return (first, second, False)


def parse(text: str, slices: int = 1) -> Topology:
  """Parses a topology such as "v5p:8x8x4", or a cloud's name such as "v5p-512".

  Args:
    text: Chip, colon, and number of chips along each dimension in any order; or
      chip, hyphen, and the number by which the cloud names the slice, which
      then has its most compact shape.
    slices: Number of such slices.

  Raises:
    UserError: The chip is unknown, or the shape is invalid, too large, or not
      one that can be rented.
  """
  found = re.fullmatch(r"([A-Za-z0-9]+)[:-](\d+(?:x\d+)*)", text.strip())
  named = found is not None and "x" not in found[2] and ":" not in text
  if not found or (":" in text and "-" in text):
    raise errors.UserError(
      f"--topology={text!r} is not a topology; write CHIP:AxB or CHIP:AxBxC, "
      "for example v5p:4x8x8 or v5e:16x16, or the cloud's name, such as "
      f"v5p-512; the chips are {', '.join(chips.CHIPS)}."
    )
  chip = chips.find(found[1])
  if slices < 1:
    raise errors.UserError(f"--slices={slices} must be 1 or more.")
  if named:
    return Topology(chip, _named_shape(text, chip, int(found[2])), slices)
  dims = [int(part) for part in found[2].split("x")]
  if chip.torus_dims == 3 and len(dims) == 2:
    dims.append(1)
  if chip.torus_dims == 2 and len(dims) == 3 and 1 in dims:
    dims.remove(1)
  *others, last = (f"{chip.name}:{x}" for x in _EXAMPLES[chip.torus_dims])
  examples = f"{', '.join(others)} or {last}"
  if len(dims) != chip.torus_dims or min(dims) < 1:
    raise errors.UserError(
      f"--topology={text}: a {chip.name} slice has {chip.torus_dims} "
      f"dimensions; use for example {examples}."
    )
  dims.sort(key=lambda d: (d == 1, d))
  if math.prod(dims) > chip.max_chips:
    raise errors.UserError(
      f"--topology={text} has {math.prod(dims)} chips, but the largest "
      f"{chip.name} slice has {chip.max_chips}; use a smaller one, or several "
      "with --slices=N."
    )
  if math.prod(dims) > 1 and any(d % 2 for d in dims[:2]):
    raise errors.UserError(
      f"--topology={text}: a host of {chip.name} has 2 x 2 chips, and such "
      f"blocks do not tile this shape; use for example {examples}."
    )
  if not _is_rented(chip, tuple(dims)):
    raise errors.UserError(
      f"--topology={text} cannot be rented: slices of {chip.name} are "
      f"{_rented_text(chip)}; use for example {examples}."
    )
  return Topology(chip, tuple(dims), slices)


def _is_rented(chip: chips.Chip, dims: tuple[int, ...]) -> bool:
  """Returns whether a slice of this shape can be rented."""
  cubes = chip.torus_dims == 3 and all(d % _CUBE == 0 for d in dims)
  return cubes or dims in chip.shapes


def _rented_text(chip: chips.Chip) -> str:
  """Lists the shapes that can be rented."""
  shapes = ", ".join("x".join(map(str, dims)) for dims in chip.shapes)
  return shapes + (" or multiples of 4x4x4" if chip.torus_dims == 3 else "")


def _named_shape(text: str, chip: chips.Chip, number: int) -> tuple[int, ...]:
  """Returns the most compact shape of the slice that a cloud's name means."""
  count, rest = divmod(number, chip.name_units)
  cubes = count // _CUBE**3 if chip.torus_dims == 3 else 0
  shapes = [dims for dims in chip.shapes if math.prod(dims) == count]
  if cubes and count % _CUBE**3 == 0 and count <= chip.max_chips:
    shapes += [
      (_CUBE * a, _CUBE * b, _CUBE * (cubes // (a * b)))
      for a in range(1, cubes + 1)
      for b in range(a, cubes // a + 1)
      if cubes % (a * b) == 0 and cubes // (a * b) >= b
    ]
  if rest or not shapes:
    what = "TensorCores" if chip.name_units == 2 else "chips"
    raise errors.UserError(
      f"--topology={text} cannot be rented: the number counts {what}, and "
      f"slices of {chip.name} are {_rented_text(chip)}, up to "
      f"{chip.max_chips} chips."
    )
  return min(shapes, key=sum)


def devices(topology: Topology) -> Sequence[Any]:
  """Returns JAX devices of a topology, as targets for compilation.

  Raises:
    UserError: The TPU compiler does not support the shape.
  """
  import jax
  from jax.experimental import topologies

  shape = "x".join(map(str, topology.dims))
  options: dict[str, Any] = {}
  if topology.chip.name == "v4":
    # Without this option libtpu creates two devices per chip.
    options.update(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1))
  if topology.num_chips == topology.slices:
    options.update(chips_per_host_bounds=(1, 1, 1))
  if any(topology.wrap):
    options.update(wrap=topology.wrap)
  if topology.slices > 1:
    options.update(num_slices=topology.slices)
  try:
    found = topologies.get_topology_desc(
      platform="tpu",
      topology_name=f"{topology.chip.library_name}:{shape}",
      **options,
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"The TPU compiler rejects --topology={topology.name}: "
      f"{str(error).splitlines()[0]}; use another shape."
    ) from error
  if len(found) != topology.num_devices:
    raise ValueError(
      f"{topology.name} has {len(found)} devices, not {topology.num_devices}."
    )
  return found


def network(topology: Topology, mesh: Any) -> collectives.Network:
  """Returns the network of a program's devices.

  Args:
    topology: The chips.
    mesh: The program's mesh of devices from `devices`.
  """
  return collectives.network(
    mesh.devices.flat, topology.dims, topology.wrap, topology.chip
  )
