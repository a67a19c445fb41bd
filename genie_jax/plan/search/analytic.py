"""Whether a layout can work, and a guess of what it needs and takes.

Nothing is compiled: the guess only says what a search compiles first. It
counts parameters by their axes, saved activations by remat policy, FLOPs with
what a policy computes again, and collectives as bytes over the links.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from genie_jax.core import chips, errors
from genie_jax.models import build
from genie_jax.plan import aot_compile
from genie_jax.plan import topology as topology_lib
from genie_jax.sharding import mesh, rules
from genie_jax.stages import registry
from genie_jax.train import optimizer

# Remat policies of `nn.st_transformer`, from what computes least again.
RECOMPUTING = (
  "none",
  "products",
  "dots",
  "attention_mlp",
  "attention",
  "offload",
  "full",
)

# Share of peak that products reach beside all else (plans of the 10.1B model).
_REACHED = 0.7
# Share of the weights' gathering and scattering that compute does not hide,
# in the same plans; whole tiles of 16 rows, and others: these are copied and
# summed, none of it hidden.
_EXPOSED, _EXPOSED_ODD, _TILE = 0.4, 2.0, 16
# Bytes of HBM that computing all norms of a layer again moves for each number
# of the stream: 35 ms of 48 layers in the same plans.
_NORM_BYTES = 27
# What a collective takes however small it is.
_START_SECONDS = 5e-6


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a guess needs to know of a config, whatever its layout.

  Attributes:
    params: Shape and logical axes of each parameter.
    features: Shape and logical axes of each array of a clip.
    stacks: The fields of each transformer.
    batch_size: Clips a step.
    frames: Of a clip.
    tokens: Of a frame.
    codes: Of the vocabulary.
    flops: Of a step: model FLOPs.
    state_bytes: Of a parameter with its optimizer state and gradient.
  """

  params: tuple[tuple[tuple[int, ...], tuple[str | None, ...]], ...]
  features: tuple[tuple[tuple[int, ...], tuple[str | None, ...]], ...]
  stacks: tuple[Mapping[str, Any], ...]
  batch_size: int
  frames: int
  tokens: int
  codes: int
  flops: float
  state_bytes: int


@dataclasses.dataclass(frozen=True)
class Guess:
  """What a layout likely needs and takes.

  Attributes:
    bytes: Of HBM on a device.
    seconds: Of a step.
  """

  bytes: float
  seconds: float


def facts(config: ml_collections.ConfigDict) -> Facts:
  """Returns what is the same in every layout of a config.

  Raises:
    UserError: The config does not make sense.
  """
  config = aot_compile.without_start(config)
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


def fault(
  found: Facts, sizes: Mapping[str, int], accumulate: int, slices: int
) -> str | None:
  """Returns why a layout cannot work, None where nothing speaks against it.

  Args:
    found: From `facts`.
    sizes: Of every mesh axis.
    accumulate: Microbatches a step.
    slices: Of the topology.
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


def fault_of(
  config: ml_collections.ConfigDict, topology: topology_lib.Topology
) -> str | None:
  """Returns why a config cannot work on chips, None where it can."""
  try:
    sizes = mesh.sizes(config.mesh, topology.num_devices)
  except errors.UserError as error:
    return str(error)
  return fault(
    facts(config), sizes, config.optimizer.get("accumulate", 1), topology.slices
  )


def guess(
  found: Facts,
  sizes: Mapping[str, int],
  remat: str,
  accumulate: int,
  topology: topology_lib.Topology,
) -> Guess:
  """Returns what a layout likely needs and takes.

  Args:
    found: From `facts`.
    sizes: Of every mesh axis.
    remat: A name in RECOMPUTING.
    accumulate: Microbatches a step.
    topology: The chips.
  """
  chip, tensor, frame = topology.chip, sizes["tensor"], sizes["frame"]
  clips = found.batch_size / (sizes["data"] * sizes["fsdp"] * accumulate)
  frames = -(-found.frames // frame)
  tokens = clips * frames * found.tokens  # On a device, of a microbatch.
  saved = again = normed = largest = moved = host = 0.0
  for stack in found.stacks:
    numbers, products, norms, hosted = _policy(
      stack, remat, tensor, found.tokens
    )
    size = jnp.dtype(stack["dtype"]).itemsize
    layers = stack["num_layers"]
    saved += layers * tokens * numbers * size
    again += layers * tokens * products
    normed += layers * tokens * norms * _NORM_BYTES
    host += layers * tokens * hosted * size
    # In flight in one layer, in float32.
    largest = max(
      largest, tokens * 4 * _policy(stack, "products", tensor, found.tokens)[0]
    )
    moved += layers * tokens * stack["width"] * size
  own, whole, odd = _weights(found, sizes)
  link = chip.link_bandwidth / chip.devices
  rate = 2 * max(1, chip.torus_dims - 1) * link
  seconds = (found.flops / topology.num_devices + accumulate * again) / (
    _REACHED * chip.peak_flops / chip.devices
  )
  seconds += accumulate * normed * chip.devices / chip.hbm_bandwidth
  split = sizes["fsdp"] * frame > 1
  # Weights come twice and gradients go once, in two bytes, in every part.
  if split:
    seconds += (
      accumulate * 3 * 2 * whole / rate * (_EXPOSED_ODD if odd else _EXPOSED)
    )
  # Replicas sum their gradients, in float32.
  if sizes["data"] > 1:
    seconds += accumulate * 2 * 4 * own / rate
  seconds += (
    4 * own * (topology.slices - 1) * chip.devices / (chip.dcn_bandwidth)
  )
  # Three sums each way in a layer, two passes each; two exchanges each way.
  seconds += (
    accumulate
    * moved
    * (12 * (tensor - 1) / tensor + 4 * (frame - 1) / frame)
    / (2 * link)
  )
  kinds = 3 * split + (sizes["data"] > 1) + 6 * (tensor > 1) + 4 * (frame > 1)
  seconds += (
    accumulate
    * kinds
    * _START_SECONDS
    * sum(stack["num_layers"] for stack in found.stacks)
  )
  seconds = max(seconds, accumulate * 2 * host / chips.HOST_BANDWIDTH)
  state = own * (found.state_bytes + 4 * (accumulate > 1))
  return Guess(
    state + saved + largest + 6 * tokens * found.codes / tensor, seconds
  )


def _policy(stack, remat, tensor, tokens) -> tuple[float, ...]:
  """Returns what a policy does for one token of one layer.

  Numbers saved on the chip, FLOPs of products computed again, numbers
  normalised again, numbers kept by the host.
  """
  width, mlp = stack["width"], stack["mlp_dim"] / tensor
  inner = stack["num_heads"] * stack["head_dim"] / tensor
  attention, mlp_in = 4 * tokens * inner, 2 * width * mlp
  projections = 2 * 6 * width * inner + 2 * 2 * width * inner
  return {
    # The layer's input comes on top of what a policy names.
    # Three times what the products are, by a plan of CoinRun's dynamics.
    "none": (3 * (8 * inner + 3 * width + mlp), 0, 0, 0),
    "products": (8 * inner + 3 * width + mlp, 0, width, 0),
    "dots": (6 * inner + 4 * width + mlp, attention, width, 0),
    "attention_mlp": (2 * inner + width + mlp, projections, width, 0),
    "attention": (2 * inner + width, projections + mlp_in, width, 0),
    "offload": (width, projections + mlp_in, width, 2 * inner),
    "full": (width, projections + mlp_in + attention, width, 0),
  }[remat]


def _weights(found, sizes) -> tuple[float, float, bool]:
  """Returns parameters that a device owns, and uses; and if any part is odd.

  Odd are parts whose rows fill no whole tiles.
  """
  own = whole = 0.0
  odd = False
  for shape, axes in found.params:
    count = math.prod(shape)
    for size, name in zip(shape, axes, strict=True):
      ways = math.prod(sizes[axis] for axis in rules.RULES[name]) if name else 1
      if name == "embed":
        odd |= ways > 1 and len(shape) > 2 and size // ways % _TILE != 0
    over = lambda names: math.prod(
      sizes[axis] for name in names if name for axis in rules.RULES[name]
    )
    own += count / over(axes)
    whole += count / over(name for name in axes if name != "embed")
  return own, whole, odd
