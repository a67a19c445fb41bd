"""Specifications of NVIDIA GPUs: memory, peak rates and links.

Rates are those of the vendor's data sheets, without sparsity, and per
direction: a data sheet's "900 GB/s" of NVLink are 450 GB/s each way. The letter
in the comment after a number gives its source:
  [a] NVIDIA A100 data sheet (80 GB SXM) and DGX A100 data sheet
  [h] NVIDIA H100 data sheet (SXM) and DGX H100 data sheet
  [i] NVIDIA H200 data sheet (SXM) and DGX H200 data sheet
  [b] NVIDIA DGX B200 data sheet, divided by its eight GPUs
  [l] NVIDIA L40S data sheet
  [?] an assumption, which the output of a plan lists
"""

import dataclasses

from genie_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Gpu:
  """The specification of a GPU, as far as a plan needs it.

  Attributes:
    name: Name on the command line.
    memory_gb: Memory of the data sheet, in units of 1e9 bytes.
    memory_bandwidth: Bytes per second.
    peak_flops: bfloat16 FLOPs per second, without sparsity.
    link_bandwidth: Bytes per second to the other GPUs of a node, in one
      direction.
    network_bandwidth: Bytes per second of a GPU's share of its node's network
      cards, in one direction.
    host_bandwidth: Bytes per second to the host's memory, in one direction.
    per_node: GPUs of the vendor's node.
    device_kinds: JAX's names of it.
    assumptions: The values above that the data sheets do not state.
  """

  name: str
  memory_gb: float
  memory_bandwidth: float
  peak_flops: float
  link_bandwidth: float
  network_bandwidth: float
  host_bandwidth: float
  per_node: int
  device_kinds: tuple[str, ...]
  assumptions: tuple[str, ...] = ()


_PCIE_4, _PCIE_5 = 32e9, 64e9

GPUS = {
  gpu.name: gpu
  for gpu in (
    Gpu(
      "a100",
      memory_gb=80,  # [a]
      memory_bandwidth=2039e9,  # [a]
      peak_flops=312e12,  # [a]
      link_bandwidth=300e9,  # [a]
      network_bandwidth=25e9,  # [a]: eight cards of 200 Gb/s
      host_bandwidth=_PCIE_4,  # [a]
      per_node=8,
      device_kinds=("NVIDIA A100-SXM4-80GB",),
    ),
    Gpu(
      "h100",
      memory_gb=80,  # [h]
      memory_bandwidth=3350e9,  # [h]
      peak_flops=989e12,  # [h]
      link_bandwidth=450e9,  # [h]
      network_bandwidth=50e9,  # [h]: eight cards of 400 Gb/s
      host_bandwidth=_PCIE_5,  # [h]
      per_node=8,
      device_kinds=("NVIDIA H100 80GB HBM3",),
    ),
    Gpu(
      "h200",
      memory_gb=141,  # [i]
      memory_bandwidth=4800e9,  # [i]
      peak_flops=989e12,  # [i]
      link_bandwidth=450e9,  # [i]
      network_bandwidth=50e9,  # [i]: eight cards of 400 Gb/s
      host_bandwidth=_PCIE_5,  # [i]
      per_node=8,
      device_kinds=("NVIDIA H200",),
    ),
    Gpu(
      "b200",
      memory_gb=180,  # [b]: 1,440 GB
      memory_bandwidth=8000e9,  # [b]: 64 TB/s
      peak_flops=2250e12,  # [b]: 72 PFLOP/s in 8 bits
      link_bandwidth=900e9,  # [b]: 14.4 TB/s in both directions
      network_bandwidth=50e9,  # [b]: eight cards of 400 Gb/s
      host_bandwidth=_PCIE_5,  # [b]
      per_node=8,
      device_kinds=("NVIDIA B200",),
    ),
    Gpu(
      "l40s",
      memory_gb=48,  # [l]
      memory_bandwidth=864e9,  # [l]
      peak_flops=362.05e12,  # [l]
      link_bandwidth=_PCIE_4,  # [l]: it has no NVLink
      network_bandwidth=400e9 / 8 / 8,  # [?]
      host_bandwidth=_PCIE_4,  # [l]
      per_node=8,
      device_kinds=("NVIDIA L40S",),
      assumptions=("network: 400 Gb/s for a node of eight GPUs",),
    ),
  )
}

# Peak bfloat16 FLOPs per second of other GPUs, by JAX's `device_kind`, from the
# data sheets of A100, H100 and L4.
_OTHER_PEAK_FLOPS = {
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100 80GB PCIe": 312e12,
  "NVIDIA H100 PCIe": 756e12,
  "NVIDIA L4": 121e12,
}


def find(name: str) -> Gpu:
  """Returns the GPU of a name, in lower or upper case.

  Raises:
    UserError: The name is unknown.
  """
  key = name.lower()
  if key not in GPUS:
    raise errors.UserError(
      f"Unknown GPU {name!r}{errors.closest(key, GPUS)}; the known GPUs are "
      f"{', '.join(GPUS)}."
    )
  return GPUS[key]


def device_peak_flops(kind: str) -> float | None:
  """Returns the peak bfloat16 FLOPs per second of a GPU, None if unknown.

  Args:
    kind: A JAX `device_kind`.
  """
  for gpu in GPUS.values():
    if kind in gpu.device_kinds:
      return gpu.peak_flops
  return _OTHER_PEAK_FLOPS.get(kind)
