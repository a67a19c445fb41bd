"""Published training runs of decoder-only language models on TPUs.

Every number of a row is published: the shape of the model, the mesh, the batch,
the remat policy, and the speed. What is not, but matters, is in `assumptions`.
No constant of the estimator is chosen by these rows.

Sources are files of two repositories:
  maxtext      github.com/AI-Hypercomputer/maxtext
  tpu-recipes  github.com/AI-Hypercomputer/tpu-recipes
"""

import dataclasses

from genie_jax.core import errors
from genie_jax.plan.calibration import decoder

_MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/blob/"
_RECIPES = "https://github.com/AI-Hypercomputer/tpu-recipes/blob/"


@dataclasses.dataclass(frozen=True)
class Run:
  """A published run.

  Attributes:
    name: Name of the row.
    source: Where the speed is published.
    setup: Where model, mesh, batch and remat policy are published.
    topology: The chips.
    shape: The sizes of the model.
    length: Tokens of a sequence.
    batch_per_device: Sequences of a batch for each JAX device.
    fitting_batch: The most sequences for each device that fit by plan, if the
      published number does not; None if it does, or is not known. The plan then
      has these, and the published seconds are in proportion.
    fsdp: Size of the mesh axis fsdp.
    tensor: Size of the mesh axis tensor.
    remat: What is saved for the backward pass.
    kernel: Settings of attention.
    mu_dtype: Dtype of Adam's first moment.
    seconds: Published seconds of a step; None if `teraflops` is published.
    teraflops: Published model TFLOP/s of a chip. The seconds follow from it by
      MaxText's convention, `Shape.flops_per_sequence`.
    assumptions: What the sources do not state.
  """

  name: str
  source: str
  setup: str
  topology: str
  shape: decoder.Shape
  length: int
  batch_per_device: int
  fsdp: int
  tensor: int
  remat: decoder.Remat
  kernel: decoder.Kernel
  fitting_batch: int | None = None
  mu_dtype: str = "float32"
  seconds: float | None = None
  teraflops: float | None = None
  assumptions: tuple[str, ...] = ()

  @property
  def planned_batch(self) -> int:
    """Sequences of the planned batch for each JAX device."""
    return self.fitting_batch or self.batch_per_device


def scaled(scale: int) -> decoder.Shape:
  """Returns MaxText's model of a `global_parameter_scale`, a power of two.

  Scale 1 has 16 layers of width 2048, 16 heads of 128 channels, a hidden layer
  of 7168 and 32,000 tokens. Each doubling of the scale doubles, in turn, heads
  and hidden layer, width, and layers (`get_individual_scales` in MaxText's
  pyconfig.py; the sizes are those of configs/base.yml).
  """
  rounds, rest = divmod(scale.bit_length() - 1, 3)
  heads = 16 * 2 ** (rounds + (rest > 0))
  return decoder.Shape(
    layers=16 * 2**rounds,
    width=2048 * 2 ** (rounds + (rest > 1)),
    heads=heads,
    kv_heads=heads,
    head_dim=128,
    mlp_dim=7168 * 2 ** (rounds + (rest > 0)),
    vocab=32_000,
  )


# configs/models/llama3.1-8b.yml and llama3.1-70b.yml of MaxText.
_LLAMA_8B = decoder.Shape(32, 4096, 32, 8, 128, 14_336, 128_256)
_LLAMA_70B = decoder.Shape(80, 8192, 64, 8, 128, 28_672, 128_256)

# remat_policy=minimal, full, and the recipes' custom policies.
_MINIMAL = decoder.Remat(dots=True)
_FULL = decoder.Remat()
_OFFLOAD_8B = decoder.Remat(offloaded=("input", "out", "query", "key", "value"))
_OFFLOAD_70B = decoder.Remat(offloaded=("input", "query", "key", "value"))
_SAVED_70B = decoder.Remat(saved=("input", "context", "query", "key", "value"))

_README = "0ed7bd529b9d690570473c3525d1efeda6b6c944/MaxText/configs/"
_CAUSAL = (
  "the seconds count half of attention, as MaxText did when these figures were "
  "published; with all of it they are 1 to 4 % longer"
)
_BLOCKS = (
  "attention in blocks of 512 with gradients in two kernels, the default"
)


def _maxtext(
  chip: str,
  scale: int,
  topology: str,
  commit: str,
  batch: int,
  fsdp: int,
  tensor: int,
  teraflops: float,
  *assumptions: str,
  fitting_batch: int | None = None,
) -> Run:
  """Returns a row of MaxText's tables of v5p and v5e."""
  return Run(
    name=f"MaxText {scale}B on {topology}",
    source=f"{_MAXTEXT}{_README}{chip}/README.md",
    setup=f"{_MAXTEXT}{commit}/MaxText/configs/{chip}/{scale}b.sh",
    topology=topology,
    shape=scaled(scale),
    length=2048,
    batch_per_device=batch,
    fsdp=fsdp,
    tensor=tensor,
    fitting_batch=fitting_batch,
    remat=_MINIMAL if chip == "v5p" else _FULL,
    kernel=decoder.Kernel(),
    teraflops=teraflops,
    assumptions=(_CAUSAL, _BLOCKS, *assumptions),
  )


def _recipe(commit: str, path: str) -> str:
  """Returns the address of a file of the TPU recipes."""
  return f"{_RECIPES}{commit}/training/{path}"


_V5P_32B = "8c3d2e65aa05446ce6674ea40ce7814be14a02ad"
_V5P_64B = "3d048f7b461ec9806a03e8bb89bb7129d2c1c327"
_V5P_128B = "5431d43a3bf6e9d6b649edddc896e47b7c3ee7e6"
_V5E = "07775101f8aa8329d71765c5633d980bf6b3afac"
_FUSED = decoder.Kernel(block=2048, fused=True)

RUNS = {
  run.name: run
  for run in (
    _maxtext(
      "v5p",
      32,
      "v5p-128",
      _V5P_32B,
      6,
      16,
      4,
      328,
      "6 sequences a chip, as in this version of the script; others have 7",
      fitting_batch=5,
    ),
    _maxtext("v5p", 64, "v5p-128", _V5P_64B, 3, 16, 4, 323, fitting_batch=2),
    _maxtext("v5p", 128, "v5p-256", _V5P_128B, 1, 16, 8, 315),
    _maxtext("v5p", 128, "v5p-512", _V5P_128B, 1, 32, 8, 316),
    _maxtext("v5e", 16, "v5e-256", _V5E, 6, 256, 1, 120),
    _maxtext("v5e", 32, "v5e-256", _V5E, 4, 256, 1, 132, fitting_batch=3),
    Run(
      name="Llama 3.1 8B on v6e-8",
      source=_recipe(
        "10ca5b92b479825ce36305c06e05aefdcb90541f",
        "trillium/Llama3.1-8B-MaxText/v6e-8/README.md",
      ),
      setup=_recipe(
        "10ca5b92b479825ce36305c06e05aefdcb90541f",
        "trillium/Llama3.1-8B-MaxText/v6e-8/README.md",
      ),
      length=8192,
      tensor=1,
      topology="v6e-8",
      shape=_LLAMA_8B,
      batch_per_device=3,
      fsdp=8,
      remat=_OFFLOAD_8B,
      kernel=_FUSED,
      seconds=3.443,
    ),
    Run(
      name="Llama 3.1 8B on v6e-256",
      source=_recipe(
        "a9e09290174425595a0ef6ec5f765d5f04360423",
        "trillium/Llama3.1-8B-MaxText/v6e-256/README.md",
      ),
      setup=_recipe(
        "a9e09290174425595a0ef6ec5f765d5f04360423",
        "trillium/Llama3.1-8B-MaxText/v6e-256/README.md",
      ),
      length=8192,
      tensor=1,
      topology="v6e-256",
      shape=_LLAMA_8B,
      batch_per_device=4,
      fsdp=256,
      remat=_OFFLOAD_8B,
      kernel=_FUSED,
      seconds=4.546,
    ),
    Run(
      name="Llama 3.1 70B on v6e-256",
      source=_recipe(
        "3596002ad03c04ae20d5f04c711e8a1d2557b7f8",
        "trillium/Llama3.1-70B-MaxText/v6e-256/README.md",
      ),
      setup=_recipe(
        "3596002ad03c04ae20d5f04c711e8a1d2557b7f8",
        "trillium/Llama3.1-70B-MaxText/v6e-256/README.md",
      ),
      length=8192,
      tensor=1,
      topology="v6e-256",
      shape=_LLAMA_70B,
      batch_per_device=5,
      fsdp=256,
      remat=_OFFLOAD_70B,
      kernel=_FUSED,
      seconds=42.656,
    ),
    Run(
      name="Llama 3.1 70B on Ironwood 4x4x4",
      source=_recipe(
        "0797d9cebfdde7ef9c54666369be5864ca081613", "ironwood/README.md"
      ),
      setup=_recipe(
        "bc90a99229efb4d63bf0e04a45bcb5955f68bc76",
        "ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4/run_recipe.sh",
      ),
      length=8192,
      tensor=1,
      topology="v7x:4x4x4",
      shape=_LLAMA_70B,
      batch_per_device=2,
      fsdp=128,
      remat=_SAVED_70B,
      kernel=_FUSED,
      mu_dtype="bfloat16",
      seconds=12.20,
      assumptions=(
        "JAX's splash kernel in square blocks of 2048 in place of Tokamax's in "
        "blocks of 2048 x 1024",
      ),
    ),
  )
}


def find(names: str) -> list[Run]:
  """Returns runs by name.

  Args:
    names: "all", or names separated by commas.

  Raises:
    UserError: A name is unknown.
  """
  return errors.select("--calibrate", names, RUNS, "a published run")
