"""Checks whether a layout is valid, and roughly estimates its memory and time.

Nothing is compiled; the estimate only determines the order in which a search
compiles layouts. It counts parameters by their axes, saved activations by remat
policy, FLOPs including recomputation, and the bytes of collectives.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from genie_jax.core import errors
from genie_jax.models import build
from genie_jax.plan import aot_compile
from genie_jax.plan import topology as topology_lib
from genie_jax.sharding import mesh, rules
from genie_jax.stages import registry
from genie_jax.train import optimizer

# Remat policies of `nn.st_transformer`, from the least recomputation to the
# most.
REMAT_POLICIES = (
  "none",
  "products",
  "dots",
  "attention_mlp",
  "attention",
  "offload",
  "full",
)

# Share of peak that matrix products reach, in plans of the 10.1B model.
_MATMUL_EFFICIENCY = 0.7
# Exposed time of gathering weights and scattering gradients, as a factor of
# their time on the links, in the same plans. The second factor is for shards
# that do not consist of full tiles of 16 rows: these are copied and summed, and
# nothing of it overlaps with compute.
_EXPOSED, _EXPOSED_PARTIAL_TILES, _TILE = 0.4, 2.0, 16
# Bytes of HBM traffic to recompute all norms of a layer, per element of the
# residual stream: 35 ms for 48 layers in the same plans.
_NORM_BYTES = 27
# Minimum time of a collective.
_START_SECONDS = 5e-6

_ShapeAndAxes = tuple[tuple[int, ...], tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True)
class Facts:
  """The properties of a config that do not depend on its layout.

  Attributes:
    params: Shape and logical axes of each parameter.
    features: Shape and logical axes of each array of a clip.
    stacks: The fields of each transformer.
    batch_size: Clips per step.
    frames: Frames per clip.
    tokens: Tokens per frame.
    codes: Size of the vocabulary.
    flops: Model FLOPs per step.
    state_bytes: Bytes per parameter, with its optimizer state and gradient.
  """

  params: tuple[_ShapeAndAxes, ...]
  features: tuple[_ShapeAndAxes, ...]
  stacks: tuple[Mapping[str, Any], ...]
  batch_size: int
  frames: int
  tokens: int
  codes: int
  flops: float
  state_bytes: int


@dataclasses.dataclass(frozen=True)
class RoughEstimate:
  """A rough estimate of a layout.

  Attributes:
    bytes: Bytes of HBM on one device.
    seconds: Seconds per step.
  """

  bytes: float
  seconds: float


def facts(config: ml_collections.ConfigDict) -> Facts:
  """Returns the properties of a config that do not depend on its layout.

  Raises:
    UserError: The config is invalid.
  """
  config = aot_compile.with_random_start(config)
  stage = registry.make(config)
  boxed, _ = jax.eval_shape(stage.init, jax.random.key(0))
  boxes = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  settings = optimizer.settings(config.optimizer, config.steps)
  return Facts(
    params=tuple((box.value.shape, tuple(box.names)) for box in boxes),
    features=tuple((x.shape, x.axes) for x in stage.features.values()),
    stacks=tuple(
      node.to_dict() for _, node in aot_compile.transformers(config.model)
    ),
    batch_size=config.data.batch_size,
    frames=config.data.num_frames,
    tokens=math.prod(build.token_grid(config.world)),
    codes=config.world.num_codes,
    flops=stage.flops_per_clip * config.data.batch_size,
    state_bytes=12 + jnp.dtype(settings.mu_dtype).itemsize,
  )


def layout_error(
  found: Facts, sizes: Mapping[str, int], accumulate: int, slices: int
) -> str | None:
  """Returns why a layout is invalid, None if it is valid.

  Args:
    found: From `facts`.
    sizes: Size of every mesh axis.
    accumulate: Microbatches per step.
    slices: Number of slices of the topology.
  """
  ways = math.prod(sizes[name] for name in rules.BATCH_AXES)
  if sizes["data"] % slices:
    return f"data={sizes['data']} does not split over {slices} slices"
  if found.batch_size % (ways * accumulate):
    return (
      f"{found.batch_size} clips do not split into {accumulate} "
      f"microbatches over {ways} devices"
    )
  if found.frames % sizes["frame"]:
    return f"{found.frames} frames do not split over {sizes['frame']} devices"
  try:
    for shape, axes in found.params:
      rules.check_divides(shape, axes, sizes, "a parameter")
    for shape, axes in found.features:
      rules.check_divides(shape, axes, sizes, "an array of a clip")
  except errors.UserError as error:
    return str(error)
  return None


def config_error(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> str | None:
  """Returns why a config is invalid on a topology, None if it is valid."""
  try:
    sizes = mesh.sizes(config.mesh, topology.num_devices)
  except errors.UserError as error:
    return str(error)
  return layout_error(
    facts(config), sizes, config.optimizer.get("accumulate", 1), topology.slices
  )


@dataclasses.dataclass(frozen=True)
class Counts:
  """What one device holds and does in a step, for any kind of device.

  Attributes:
    owned: Parameters that it owns.
    gathered: Parameters that it uses after gathering them.
    partial_tiles: Whether the rows of any shard do not fill full tiles.
    state_bytes: Parameters, optimizer state and gradients.
    saved_bytes: What the forward pass saves for the backward pass.
    layer_bytes: Temporaries of the layer that is being computed.
    logits_bytes: Logits and their gradients.
    flops: Model FLOPs.
    recomputed_flops: FLOPs of matrix products that are recomputed.
    recomputed_norms: Numbers whose norms are recomputed.
    stream_bytes: Bytes of the residual streams of all layers.
    tokens: Tokens of a microbatch, with frames split.
    layers: Layers of all transformers.
    host_bytes: Bytes that are copied to and from the host's memory.
  """

  owned: float
  gathered: float
  partial_tiles: bool
  state_bytes: float
  saved_bytes: float
  layer_bytes: float
  logits_bytes: float
  flops: float
  recomputed_flops: float
  recomputed_norms: float
  stream_bytes: float
  tokens: float
  layers: int
  host_bytes: float

  @property
  def hbm_bytes(self) -> float:
    """Bytes of memory."""
    return (
      self.state_bytes + self.saved_bytes + self.layer_bytes + self.logits_bytes
    )


def count(
  found: Facts, sizes: Mapping[str, int], remat: str, accumulate: int
) -> Counts:
  """Counts what one device holds and does in a step.

  Args:
    found: From `facts`.
    sizes: Size of every mesh axis.
    remat: One of REMAT_POLICIES.
    accumulate: Microbatches per step.
  """
  tensor, frame = sizes["tensor"], sizes["frame"]
  clips = found.batch_size / (sizes["data"] * sizes["fsdp"] * accumulate)
  frames = -(-found.frames // frame)
  tokens = clips * frames * found.tokens  # Of a microbatch, on one device.
  saved = recomputed = norms = largest = stream = host = 0.0
  for stack in found.stacks:
    cost = _policy_cost(stack, remat, tensor, found.tokens)
    all_products = _policy_cost(stack, "products", tensor, found.tokens)
    size = jnp.dtype(stack["dtype"]).itemsize
    layers = stack["num_layers"]
    saved += layers * tokens * cost.saved * size
    recomputed += layers * tokens * cost.flops
    norms += layers * tokens * cost.norms
    host += layers * tokens * cost.offloaded * size
    # Temporaries of the layer that is being computed, in float32.
    largest = max(largest, tokens * 4 * all_products.saved)
    stream += layers * tokens * stack["width"] * size
  owned, gathered, partial_tiles = _count_weights(found, sizes)
  return Counts(
    owned=owned,
    gathered=gathered,
    partial_tiles=partial_tiles,
    state_bytes=owned * (found.state_bytes + 4 * (accumulate > 1)),
    saved_bytes=saved,
    layer_bytes=largest,
    logits_bytes=6 * tokens * found.codes / tensor,
    flops=found.flops / math.prod(sizes.values()),
    recomputed_flops=accumulate * recomputed,
    recomputed_norms=accumulate * norms,
    stream_bytes=accumulate * stream,
    tokens=tokens,
    layers=sum(stack["num_layers"] for stack in found.stacks),
    host_bytes=accumulate * 2 * host,
  )


def estimate(
  found: Facts,
  sizes: Mapping[str, int],
  remat: str,
  accumulate: int,
  topology: topology_lib.Topology,
) -> RoughEstimate:
  """Roughly estimates memory and time of a layout on TPUs.

  Args:
    found: From `facts`.
    sizes: Size of every mesh axis.
    remat: One of REMAT_POLICIES.
    accumulate: Microbatches per step.
    topology: The chips.
  """
  chip, tensor, frame = topology.chip, sizes["tensor"], sizes["frame"]
  counts = count(found, sizes, remat, accumulate)
  link = chip.link_bandwidth / chip.devices
  rate = 2 * max(1, chip.torus_dims - 1) * link
  seconds = (counts.flops + counts.recomputed_flops) / (
    _MATMUL_EFFICIENCY * chip.peak_flops / chip.devices
  )
  seconds += (
    counts.recomputed_norms * _NORM_BYTES * chip.devices / chip.hbm_bandwidth
  )
  split = sizes["fsdp"] * frame > 1
  # In every microbatch, weights are gathered twice and gradients scattered
  # once, with two bytes per parameter.
  if split:
    exposed = _EXPOSED_PARTIAL_TILES if counts.partial_tiles else _EXPOSED
    seconds += accumulate * 3 * 2 * counts.gathered / rate * exposed
  # Replicas sum their gradients, in float32.
  if sizes["data"] > 1:
    seconds += accumulate * 2 * 4 * counts.owned / rate
  seconds += (
    4 * counts.owned * (topology.slices - 1) * chip.devices / chip.dcn_bandwidth
  )
  # The forward and the backward pass of a layer each have three all-reduces
  # over tensor, which move the data twice, and two all-to-alls over frame.
  seconds += (
    counts.stream_bytes
    * (12 * (tensor - 1) / tensor + 4 * (frame - 1) / frame)
    / (2 * link)
  )
  collectives_per_layer = (
    3 * split + (sizes["data"] > 1) + 6 * (tensor > 1) + 4 * (frame > 1)
  )
  seconds += accumulate * collectives_per_layer * _START_SECONDS * counts.layers
  seconds = max(seconds, counts.host_bytes / chip.host_bandwidth)
  return RoughEstimate(counts.hbm_bytes, seconds)


class _PolicyCost(NamedTuple):
  """The cost of a remat policy, for one token of one layer.

  Attributes:
    saved: Numbers saved on the chip.
    flops: FLOPs of matrix products that are recomputed.
    norms: Numbers whose norms are recomputed.
    offloaded: Numbers saved in the host's memory.
  """

  saved: float
  flops: float
  norms: float
  offloaded: float


def _policy_cost(
  stack: Mapping[str, Any], remat: str, tensor: int, tokens: int
) -> _PolicyCost:
  """Returns the cost of a remat policy.

  Args:
    stack: The fields of a transformer.
    remat: One of REMAT_POLICIES.
    tensor: Size of the mesh axis tensor.
    tokens: Tokens per frame.
  """
  width, mlp = stack["width"], stack["mlp_dim"] / tensor
  inner = stack["num_heads"] * stack["head_dim"] / tensor
  attention, mlp_in = 4 * tokens * inner, 2 * width * mlp
  projections = 2 * 6 * width * inner + 2 * 2 * width * inner
  cost = _PolicyCost
  return {
    # Each policy also saves the layer's input. Without remat, about three times
    # as much is saved as with "products", in a plan of CoinRun's dynamics.
    "none": cost(3 * (8 * inner + 3 * width + mlp), 0, 0, 0),
    "products": cost(8 * inner + 3 * width + mlp, 0, width, 0),
    "dots": cost(6 * inner + 4 * width + mlp, attention, width, 0),
    "attention_mlp": cost(2 * inner + width + mlp, projections, width, 0),
    "attention": cost(2 * inner + width, projections + mlp_in, width, 0),
    "offload": cost(width, projections + mlp_in, width, 2 * inner),
    "full": cost(width, projections + mlp_in + attention, width, 0),
  }[remat]


def _count_weights(
  found: Facts, sizes: Mapping[str, int]
) -> tuple[float, float, bool]:
  """Counts the parameters of a device.

  Returns:
    The number of parameters that a device owns, the number that it uses after
    gathering them, and whether the rows of any shard do not fill full tiles.
  """
  owned = gathered = 0.0
  partial_tiles = False
  for shape, axes in found.params:
    count = math.prod(shape)
    for size, name in zip(shape, axes, strict=True):
      ways = math.prod(sizes[axis] for axis in rules.RULES[name]) if name else 1
      if name == "embed":
        partial_tiles |= (
          ways > 1 and len(shape) > 2 and size // ways % _TILE != 0
        )
    shards = lambda names: math.prod(
      sizes[axis] for name in names if name for axis in rules.RULES[name]
    )
    owned += count / shards(axes)
    gathered += count / shards(name for name in axes if name != "embed")
  return owned, gathered, partial_tiles
