"""Specifications of accelerators: memory, peak rates and interconnect.

The letter in the comment after a number gives its source:
  [a] the vendor's page on the chip, cloud.google.com/tpu/docs/<chip>, and
      the vendor's comparison table at .../tpu7x (read in 2026)
  [b] Jouppi et al., A domain-specific supercomputer for training deep neural
      networks, CACM 63(7), 2020 (v2 and v3)
  [c] Jouppi et al., TPU v4 (arXiv:2304.01433)
  [d] Austin et al., How to scale your model (the scaling book), chapter TPUs,
      jax-ml.github.io/scaling-book/tpus (read in 2026)
  [e] libtpu 0.0.42.1: the available memory in its error message for a program
      that is too large, and whether it compiles Pallas kernels
  [f] MaxText's table of slices, github.com/AI-Hypercomputer/maxtext, file
      src/maxtext/utils/accelerator_to_spec_map.py
  [?] an assumption, which the output of a plan lists
"""

import dataclasses

from genie_jax.core import errors, gpus


@dataclasses.dataclass(frozen=True)
class Chip:
  """The specification of a TPU chip, as far as a plan needs it.

  Attributes:
    name: Name in the vendor's documentation and on the command line.
    library_name: Name in libtpu's topologies.
    hbm_gib: Memory available to a program, in GiB.
    hbm_bandwidth: Bytes per second.
    peak_flops: bfloat16 FLOPs per second.
    clock: Cycles per second, to convert the compiler's cycle estimates.
    vector_rate: Elementwise float32 operations per second.
    link_bandwidth: Bytes per second over one link in one direction. The
      vendor's pages give a nominal rate for all links of a chip together; of
      [d]'s two editions, the first had this rate (100 GB/s for v5p) and the
      second a tenth less (90 GB/s). Plans use the nominal rate.
    torus_dims: Dimensions of the interconnect; each has two links.
    wraps_from: Minimum length of a dimension that has wrap-around links.
    dcn_bandwidth: Bytes per second to other slices.
    devices: Number of JAX devices per chip.
    matrix_tile: Rows and columns of the matrix unit.
    max_chips: Number of chips in the largest available slice.
    host_bandwidth: Bytes per second between a chip and its host's memory, in
      one direction.
    name_units: What the number in the cloud's name of a slice counts for each
      chip: 2 where it counts TensorCores (v5p-512 has 256 chips), 1 where it
      counts chips (v5e-256).
    assumptions: The values above that the vendor's pages do not state.
    kernels: Whether Pallas kernels with bfloat16 products compile for it.
  """

  name: str
  library_name: str
  hbm_gib: float
  hbm_bandwidth: float
  peak_flops: float
  clock: float
  vector_rate: float
  link_bandwidth: float
  torus_dims: int
  wraps_from: int
  dcn_bandwidth: float
  devices: int
  matrix_tile: int
  max_chips: int
  host_bandwidth: float
  name_units: int
  shapes: tuple[tuple[int, ...], ...]
  assumptions: tuple[str, ...] = ()
  kernels: bool = True

  @property
  def link_count(self) -> int:
    """Number of links of one chip to its neighbours."""
    return 2 * self.torus_dims


def _vector_rate(cores: int, clock: float, units: int) -> float:
  """Returns operations per second of 8 x 128 lanes with `units` ALUs each."""
  return cores * clock * 8 * 128 * units


_DCN = "DCN bandwidth: the bandwidth of a pod, divided by its chips"
_OLD_DCN = "DCN bandwidth: one 25 Gb/s network card per host of four chips"
_TWO_UNITS = "vector rate: two operations per lane and cycle"
_FOUR_UNITS = "vector rate: four operations per lane and cycle"

_SHAPES_2D = (
  (1, 1),
  (2, 2),
  (2, 4),
  (4, 4),
  (4, 8),
  (8, 8),
  (8, 16),
  (16, 16),
)
_SHAPES_V2 = ((2, 2), (4, 4), (8, 8), (8, 16), (16, 16))
_SHAPES_V3 = (*_SHAPES_2D[1:2], *_SHAPES_2D[3:], (16, 32), (32, 32))
_BELOW_A_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v2",
      "v2",
      hbm_gib=14.96,  # [e]; [a] says 16 GiB
      hbm_bandwidth=700e9,  # [b]
      peak_flops=46e12,  # [b]
      clock=0.70e9,  # [b]
      vector_rate=_vector_rate(2, 0.70e9, 2),  # [?]
      link_bandwidth=496e9 / 8,  # [b]
      torus_dims=2,  # [b]
      wraps_from=16,  # [b]: only the full pod of 16 x 16 is a torus
      dcn_bandwidth=25e9 / 8 / 4,  # [?]
      devices=2,
      matrix_tile=128,
      max_chips=256,  # [a]
      host_bandwidth=8e9,  # [?]: half of PCIe 3.0 x16
      name_units=2,  # [a]
      shapes=_SHAPES_V2,  # [a]
      assumptions=(_OLD_DCN, _TWO_UNITS),
      kernels=False,  # [e]
    ),
    Chip(
      "v3",
      "v3",
      hbm_gib=30.96,  # [e]; [a] says 32 GiB
      hbm_bandwidth=900e9,  # [a]
      peak_flops=123e12,  # [a]
      clock=0.94e9,  # [b]
      vector_rate=_vector_rate(2, 0.94e9, 2),  # [?]
      link_bandwidth=656e9 / 8,  # [b]
      torus_dims=2,  # [b]
      wraps_from=32,  # [b]: only the full pod of 32 x 32 is a torus
      dcn_bandwidth=25e9 / 8 / 4,  # [?]
      devices=2,
      matrix_tile=128,
      max_chips=1024,  # [a]
      host_bandwidth=8e9,  # [?]: half of PCIe 3.0 x16
      name_units=2,  # [a]
      shapes=_SHAPES_V3,  # [a]
      assumptions=(_OLD_DCN, _TWO_UNITS),
      kernels=False,  # [e]
    ),
    Chip(
      "v4",
      "v4",
      hbm_gib=30.75,  # [e]; [a] says 32 GiB
      hbm_bandwidth=1228e9,  # [a]
      peak_flops=275e12,  # [a]
      clock=1.05e9,  # [c]
      vector_rate=_vector_rate(2, 1.05e9, 2),  # [?]
      link_bandwidth=50e9,  # [c]
      torus_dims=3,  # [c]
      wraps_from=4,  # [c]: cubes of 4 x 4 x 4, connected by optical switches
      dcn_bandwidth=6.25e9,  # [?] as v5p
      devices=1,  # both cores form one device ("megacore")
      matrix_tile=128,
      max_chips=4096,  # [a]
      host_bandwidth=16e9,  # [d]
      name_units=2,  # [a]
      shapes=_BELOW_A_CUBE,  # [a]
      assumptions=("DCN bandwidth: the same as v5p", _TWO_UNITS),
    ),
    Chip(
      "v5e",
      "v5e",
      hbm_gib=15.75,  # [e]; [a] says 16 GB
      hbm_bandwidth=819e9,  # [a]
      peak_flops=197e12,  # [a]
      clock=1.5e9,  # [d]
      vector_rate=_vector_rate(1, 1.5e9, 4),  # [d]
      link_bandwidth=50e9,  # [a]: 400 GB/s on 4 links in 2 directions
      torus_dims=2,  # [a]
      wraps_from=16,  # [a]: only dimensions of 16 chips form a ring
      dcn_bandwidth=6.4e12 / 8 / 256,  # [a] for a pod of 256
      devices=1,
      matrix_tile=128,
      max_chips=256,  # [a]
      host_bandwidth=16e9,  # [d]
      name_units=1,  # [a]
      shapes=_SHAPES_2D,  # [a]
      assumptions=(_DCN,),
    ),
    Chip(
      "v5p",
      "v5p",
      hbm_gib=95.74,  # [e]; [a] says 95 GiB
      hbm_bandwidth=2765e9,  # [a]
      peak_flops=459e12,  # [a]
      clock=1.75e9,  # [d]
      vector_rate=_vector_rate(2, 1.75e9, 4),  # [d]
      link_bandwidth=100e9,  # [a]: 1200 GB/s on 6 links in 2 directions
      torus_dims=3,  # [a]
      wraps_from=4,  # [a]: cubes of 4 x 4 x 4
      dcn_bandwidth=50e9 / 8,  # [a]
      devices=1,
      matrix_tile=128,
      max_chips=6144,  # [a]
      host_bandwidth=16e9,  # [d]
      name_units=2,  # [a]
      shapes=((1, 1, 1), *_BELOW_A_CUBE),  # [a]
    ),
    Chip(
      "v6e",
      "v6e",
      hbm_gib=31.25,  # [e]; [a] says 32 GB
      hbm_bandwidth=1638e9,  # [a]
      peak_flops=918e12,  # [a]
      clock=1.75e9,  # [?]
      vector_rate=_vector_rate(1, 1.75e9, 4),  # [?]
      link_bandwidth=100e9,  # [a]: 800 GB/s on 4 links in 2 directions
      torus_dims=2,  # [a]
      wraps_from=16,  # [a]: as v5e
      dcn_bandwidth=100e9 / 8,  # [a]
      devices=1,
      matrix_tile=256,
      max_chips=256,  # [a]
      host_bandwidth=32e9,  # [d]
      name_units=1,  # [a]
      shapes=_SHAPES_2D,  # [a]
      assumptions=("clock: 1.75 GHz", _FOUR_UNITS),
    ),
    Chip(
      "v7x",
      "tpu7x",
      hbm_gib=189.5,  # [e]; [a] says 192 GiB
      hbm_bandwidth=7380e9,  # [a]
      peak_flops=2307e12,  # [a]
      clock=2.2e9,  # [?]: four 256 x 256 units, two products per cycle
      vector_rate=_vector_rate(2, 2.2e9, 4),  # [?]
      link_bandwidth=100e9,  # [a]: 1200 GB/s on 6 links in 2 directions
      torus_dims=3,  # [a]
      wraps_from=4,  # [a]
      dcn_bandwidth=100e9 / 8,  # [a]
      devices=2,
      matrix_tile=256,
      max_chips=9216,  # [a]
      host_bandwidth=16e9,  # [d]: typical of all but v6e
      name_units=2,  # [f]
      shapes=((1, 1, 1), *_BELOW_A_CUBE),  # [f]
      assumptions=("clock: 2.2 GHz", _FOUR_UNITS),
    ),
  )
}

# Other names for the same chips.
ALIASES = {
  "tpu7x": "v7x",
  "v7": "v7x",
  "v5": "v5p",
  "v5litepod": "v5e",
  "v5lite": "v5e",
  "trillium": "v6e",
  "ironwood": "v7x",
}

# JAX's `device_kind` -> chip.
_DEVICE_KINDS = {
  "TPU v2": "v2",
  "TPU v3": "v3",
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
  "TPU7x": "v7x",
}


def find(name: str) -> Chip:
  """Returns the chip of a name or alias, in lower or upper case.

  Raises:
    UserError: The name is unknown.
  """
  key = name.lower()
  key = ALIASES.get(key, key)
  if key not in CHIPS:
    known = [*CHIPS, *gpus.GPUS]
    raise errors.UserError(
      f"Unknown chip {name!r}{errors.closest(key, known)}; the known chips are "
      f"{', '.join(CHIPS)}, and the GPUs {', '.join(gpus.GPUS)}."
    )
  return CHIPS[key]


def of_device(kind: str) -> Chip | None:
  """Returns the TPU chip of a JAX `device_kind`, None if it is not a TPU's."""
  return CHIPS[_DEVICE_KINDS[kind]] if kind in _DEVICE_KINDS else None


def device_peak_flops(kind: str) -> float | None:
  """Returns the peak bfloat16 FLOPs per second of a device, None if unknown.

  Args:
    kind: A JAX `device_kind` of a TPU or a GPU.
  """
  chip = of_device(kind)
  return (
    chip.peak_flops / chip.devices if chip else gpus.device_peak_flops(kind)
  )
