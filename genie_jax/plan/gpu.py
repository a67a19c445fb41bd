"""Plans a training run on NVIDIA GPUs, without compiling it.

The compiler of GPUs is not run, as it needs JAX's CUDA plugin and times kernels
on an attached GPU. Memory and work of a GPU are counted by formula
(`search.analytic.count`); its time is a roofline with the efficiencies below:

  products    FLOPs of matrix products with weights / peak
  attention   FLOPs of attention / peak, and the scores that plain attention
              writes and reads / memory bandwidth
  memory      bytes of norms, residual streams and other elementwise operations,
              of the optimizer and of the logits / memory bandwidth
  links       bytes of collectives / bandwidth of the links in a node or of the
              network, whichever takes longer

Compute takes the sum of the first three. Collectives take no time if they
overlap with it completely, and all of their time if they do not: a plan has
both, as low and high. None of this has been compared with a measurement.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections

from genie_jax.core import errors, gpus
from genie_jax.nn import attention
from genie_jax.plan import training
from genie_jax.plan.search import analytic
from genie_jax.sharding import mesh, rules

_DAY = 86_400.0
_GIB = 2**30

# Shares of the data sheets' rates. They are assumptions, not measurements.
# Published for comparison: attention kernels of two generations run at 35 and
# 75 % of an H100's peak (arXiv:2407.08608); all-reduces in a node of A100 at
# 200 of 300 GB/s (github.com/NVIDIA/nccl-tests/issues/149); all-gathers of 32
# nodes of H100 at 200 of 400 GB/s (github.com/NVIDIA/nccl/issues/1218).
PRODUCTS, ATTENTION, MEMORY, LINKS, NETWORK = 0.7, 0.4, 0.8, 0.7, 0.5

# What a compiled program needs of the memory by formula, at most: for TPUs and
# with fused attention, 1.01 to 1.19 times in the stored plans of the paper's
# models. For GPUs it is not known.
MARGIN = 1.2

# The share of a GPU's memory that launch/slurm.sbatch lets XLA allocate.
ALLOCATED = 0.92

# Numbers that elementwise operations of a layer read and write for a token, in
# a forward pass: three norms and three residual sums of the width, rotary
# embedding of four arrays of all heads, and the nonlinearity of the MLP. The
# backward pass moves twice as many.
_WIDTHS, _HEADS, _MLPS = 3 * 2 + 3 * 3, 4 * 2, 2
# Passes over float32 scores of plain attention: written by the product, read
# and written by the softmax, and read by the second product, in the forward
# pass; twice as many in the backward pass.
_SCORES = 4
# float32 arrays of scores of a layer that exist at once in its backward pass.
_SCORES_AT_ONCE = 3
# float32 numbers of a parameter that the optimizer reads and writes: parameter,
# gradient, both moments; all but the gradient are written.
_OPTIMIZER = 7
# How often the logits are written or read, forward and backward.
_LOGITS = 4
# Policies under which attention is computed a second time, as in `analytic`.
_ATTENTION_AGAIN = ("dots", "full")
# Stages whose transformers have as many positions as a frame has tokens.
_STAGES = ("tokenizer", "dynamics")
# TF32 runs at half of the rate of bfloat16, on all of these GPUs.
_FLOAT32 = 0.5

_ASSUMED = (
  f"products at {PRODUCTS:.0%} of peak, attention at {ATTENTION:.0%}",
  f"memory at {MEMORY:.0%}, links in a node at {LINKS:.0%}, the network at "
  f"{NETWORK:.0%} of their bandwidth",
  f"XLA may allocate {ALLOCATED:.0%} of the memory",
)
METHOD = (
  "not compiled and not compared with any measurement; memory and FLOPs are "
  "counted by formula, seconds are a roofline",
  "not included: input, checkpoints, evaluation, slow hosts, restarts",
)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Nodes of GPUs.

  Attributes:
    gpu: The kind of GPU.
    nodes: Number of nodes.
    per_node: GPUs of a node.
  """

  gpu: gpus.Gpu
  nodes: int
  per_node: int

  @property
  def name(self) -> str:
    """For example "h100:32x8"."""
    return f"{self.gpu.name}:{self.nodes}x{self.per_node}"

  @property
  def num_gpus(self) -> int:
    """Number of GPUs."""
    return self.nodes * self.per_node


def names_gpu(text: str) -> bool:
  """Returns whether the text of --topology is about GPUs."""
  return re.split("[:-]", text.strip().lower())[0] in gpus.GPUS


def parse(text: str) -> Cluster:
  """Parses GPUs such as "h100:8" (one node) or "h100:32x8" (nodes x GPUs).

  Raises:
    UserError: It is not of this form, or a node has too many GPUs.
  """
  found = re.fullmatch(
    r"([a-z0-9]+):(?:([1-9]\d*)x)?([1-9]\d*)", text.strip().lower()
  )
  if not found:
    raise errors.UserError(
      f"--topology={text!r} is not a number of GPUs; write GPU:COUNT for one "
      "node or GPU:NODESxCOUNT, for example h100:8 or h100:32x8."
    )
  gpu = gpus.find(found[1])
  cluster = Cluster(gpu, int(found[2] or 1), int(found[3]))
  if cluster.per_node > gpu.per_node:
    raise errors.UserError(
      f"--topology={text}: a node of {gpu.name} has {gpu.per_node} GPUs, not "
      f"{cluster.per_node}; write {gpu.name}:NODESx{gpu.per_node}."
    )
  return cluster


def plan(
  config: ml_collections.ConfigDict,
  cluster: Cluster,
  price: float | None = None,
) -> dict[str, Any]:
  """Plans a training run.

  Args:
    config: A training config.
    cluster: The GPUs.
    price: Price of a GPU for an hour; None omits the cost.

  Returns:
    The plan as JSON values.

  Raises:
    UserError: The config is invalid or of another stage, or does not split over
      the GPUs.
  """
  if config.stage not in _STAGES:
    raise errors.UserError(
      f"Plans for GPUs count the stages {' and '.join(_STAGES)}, whose "
      f"transformers see the tokens of the world; {config.stage!r} sees others."
    )
  found = analytic.facts(config)
  sizes = mesh.sizes(config.mesh, cluster.num_gpus)
  accumulate = config.optimizer.get("accumulate", 1)
  invalid = analytic.layout_error(found, sizes, accumulate, slices=1)
  if invalid:
    raise errors.UserError(
      f"The config does not split over {cluster.name}: {invalid.rstrip('.')}."
    )
  remat = training.remat_of(config)
  if not isinstance(remat, str):
    raise errors.UserError(
      "A plan for GPUs needs one remat policy for all transformers, not "
      f"{remat}; set them to the same one."
    )
  counts = analytic.count(found, sizes, remat, accumulate)
  parts = compute_seconds(found, counts, sizes, remat, accumulate, cluster.gpu)
  links = collective_seconds(counts, sizes, accumulate, cluster)
  compute, exchange = sum(parts.values()), sum(links.values())
  # Copies to and from the host's memory overlap with everything else.
  host = counts.host_bytes / (LINKS * cluster.gpu.host_bandwidth)
  low, high = max(compute, exchange, host), max(compute + exchange, host)
  peak = cluster.gpu.peak_flops * cluster.num_gpus
  hours = [x * config.steps / 3600 * cluster.num_gpus for x in (low, high)]
  scores = score_memory(found, counts, sizes)
  needed = counts.hbm_bytes + scores
  limit = ALLOCATED * cluster.gpu.memory_gb * 1e9
  return {
    "stage": config.stage,
    "topology": cluster.name,
    "gpus": cluster.num_gpus,
    "calibrated": None,
    "mesh": dict(sizes),
    "remat": remat,
    "accumulate": accumulate,
    "batch_size": found.batch_size,
    "params": sum(math.prod(shape) for shape, _ in found.params),
    "model_flops_per_step": found.flops,
    "steps": config.steps,
    "fits": MARGIN * needed <= limit,
    "memory_gib_per_gpu": needed / _GIB,
    "memory_limit_gib": limit / _GIB,
    "memory_margin": MARGIN,
    "memory_gib_by_use": {
      "parameters, optimizer, gradients": counts.state_bytes / _GIB,
      "saved for the backward pass": counts.saved_bytes / _GIB,
      "layer being computed": (counts.layer_bytes + scores) / _GIB,
      "logits": counts.logits_bytes / _GIB,
    },
    "seconds_by_part": parts,
    "collective_seconds": links,
    "step_seconds_low": low,
    "step_seconds_high": high,
    "mfu_low": found.flops / (peak * high),
    "mfu_high": found.flops / (peak * low),
    "days_low": low * config.steps / _DAY,
    "days_high": high * config.steps / _DAY,
    "gpu_hours_low": hours[0],
    "gpu_hours_high": hours[1],
    "price_per_gpu_hour": price,
    "cost_low": None if price is None else hours[0] * price,
    "cost_high": None if price is None else hours[1] * price,
    "assumptions": [*_ASSUMED, *cluster.gpu.assumptions],
    "method": list(METHOD),
  }


def compute_seconds(
  found: analytic.Facts,
  counts: analytic.Counts,
  sizes: Mapping[str, int],
  remat: str,
  accumulate: int,
  gpu: gpus.Gpu,
) -> dict[str, float]:
  """Returns the seconds of a step on one GPU, by what limits them.

  Args:
    found: From `analytic.facts`.
    counts: From `analytic.count`, of the same layout.
    sizes: Size of every mesh axis.
    remat: The remat policy.
    accumulate: Microbatches per step.
    gpu: The GPU.

  Returns:
    "products", "attention" and "memory".
  """
  tensor, again = sizes["tensor"], remat != "none"
  tokens = accumulate * counts.tokens
  products = counts.flops + counts.recomputed_flops
  attended = score_bytes = moved = 0.0
  precision = 1.0
  for stack in found.stacks:
    inner = stack["num_heads"] * stack["head_dim"] / tensor
    size = jnp.dtype(stack["dtype"]).itemsize
    rows = stack["num_layers"] * tokens
    if size == 4:
      precision = _FLOAT32
    # FLOPs of attention among the tokens of a frame and, of which the model
    # counts the causal half, among the frames of a clip.
    space, time = (
      4 * length * inner for length in (found.tokens, found.frames)
    )
    repeated = space if remat in _ATTENTION_AGAIN else 0.0
    products -= rows * (3 * (space + time / 2) + repeated)
    attended += rows * (3 * (space + time) + repeated)
    scores = rows * 4 * _score_lengths(found, stack) * stack["num_heads"]
    score_bytes += scores / tensor * _SCORES * (3 + again)
    moved += (
      rows
      * size
      * (3 + again)
      * (
        _WIDTHS * stack["width"]
        + _HEADS * inner
        + _MLPS * stack["mlp_dim"] / tensor
      )
    )
  moved += 4 * _OPTIMIZER * counts.owned
  moved += accumulate * _LOGITS * counts.logits_bytes
  rate = precision * gpu.peak_flops
  memory = MEMORY * gpu.memory_bandwidth
  # Weights are read from memory by each of the three products of a layer.
  weights = accumulate * 3 * 2 * counts.gathered
  return {
    "products": max(products / (PRODUCTS * rate), weights / memory),
    "attention": attended / (ATTENTION * rate) + score_bytes / memory,
    "memory": moved / memory,
  }


def _score_lengths(found: analytic.Facts, stack: Mapping[str, Any]) -> int:
  """Returns the scores of a token and a head that go through memory.

  Attention in time is plain on a GPU; attention in space where cuDNN's kernel
  does not fit.
  """
  fused = stack.get("attention", "auto") == "auto" and attention.fits_cudnn(
    found.tokens, stack["head_dim"], jnp.dtype(stack["dtype"])
  )
  return found.frames + (0 if fused else found.tokens)


def score_memory(
  found: analytic.Facts, counts: analytic.Counts, sizes: Mapping[str, int]
) -> float:
  """Returns the bytes of the scores of the layer that is being computed.

  Args:
    found: From `analytic.facts`.
    counts: From `analytic.count`, of the same layout.
    sizes: Size of every mesh axis.
  """
  return max(
    counts.tokens
    * 4
    * _SCORES_AT_ONCE
    * _score_lengths(found, stack)
    * stack["num_heads"]
    / sizes["tensor"]
    for stack in found.stacks
  )


def collective_seconds(
  counts: analytic.Counts,
  sizes: Mapping[str, int],
  accumulate: int,
  cluster: Cluster,
) -> dict[str, float]:
  """Returns the seconds of a step's collectives, if nothing else runs.

  Args:
    counts: From `analytic.count`.
    sizes: Size of every mesh axis.
    accumulate: Microbatches per step.
    cluster: The GPUs.

  Returns:
    "weights": gathered twice and gradients scattered once per microbatch, with
    two bytes per parameter; "replicas": gradients summed over data, in
    float32; "tensor": six all-reduces of the residual stream per layer;
    "frame": four all-to-alls.
  """
  gather = lambda axes, num_bytes: exchange_seconds(
    num_bytes, axes, sizes, cluster
  )
  # An all-reduce is a reduce-scatter and an all-gather.
  return {
    "weights": 3 * accumulate * gather(("fsdp", "frame"), 2 * counts.gathered),
    "replicas": 2 * accumulate * gather(("data",), 4 * counts.owned),
    "tensor": 6 * 2 * gather(("tensor",), counts.stream_bytes),
    "frame": 4
    * exchange_seconds(
      counts.stream_bytes, ("frame",), sizes, cluster, all_to_all=True
    ),
  }


def exchange_seconds(
  num_bytes: float,
  axes: Sequence[str],
  sizes: Mapping[str, int],
  cluster: Cluster,
  all_to_all: bool = False,
) -> float:
  """Returns the seconds of an all-gather or a reduce-scatter.

  GPUs are numbered by node, and the last mesh axis varies fastest, so a group
  takes as many GPUs of a node as its axes allow. They share what comes from
  other nodes: each receives a part through its own network card.

  Args:
    num_bytes: Bytes of the whole array; for an all-to-all, of one GPU.
    axes: Mesh axes of the group.
    sizes: Size of every mesh axis.
    cluster: The GPUs.
    all_to_all: Whether it is an all-to-all, of which nothing can be shared.
  """
  members = [0]
  stride = 1
  for name in reversed(rules.MESH_AXES):
    if name in axes:
      members = [x + i * stride for x in members for i in range(sizes[name])]
    stride *= sizes[name]
  nodes = len({member // cluster.per_node for member in members})
  received = num_bytes * (1 - 1 / len(members))
  remote = num_bytes * (1 - 1 / nodes)
  if not all_to_all:
    remote /= len(members) / nodes
  return max(
    received / (LINKS * cluster.gpu.link_bandwidth),
    remote / (NETWORK * cluster.gpu.network_bandwidth),
  )


def render(report: Mapping[str, Any]) -> str:
  """Formats a plan as text.

  Args:
    report: From `plan`.
  """
  ends = lambda name, form: (
    f"{report[f'{name}_low']:{form}} to {report[f'{name}_high']:{form}}"
  )
  seconds = lambda parts: ", ".join(
    f"{name} {value:.4g} s" for name, value in parts.items() if value
  )
  lines = [
    f"{report['stage']}: {report['params'] / 1e6:,.1f}M parameters on "
    f"{report['topology']} ({report['gpus']} GPUs); not calibrated",
    "mesh "
    + ", ".join(f"{k} {v}" for k, v in report["mesh"].items())
    + f"; {report['batch_size']} clips per step; accumulate "
    f"{report['accumulate']}; remat {report['remat']}",
    "",
    f"memory {report['memory_gib_per_gpu']:.1f} GiB of "
    f"{report['memory_limit_gib']:.1f} GiB per GPU, by formula; a compiled "
    f"program may need {report['memory_margin']:g} times as much",
    *(
      f"  {name:34}{value:8.2f}"
      for name, value in report["memory_gib_by_use"].items()
    ),
    "",
    f"step {ends('step_seconds', '.4g')} s: collectives overlapped completely, "
    "and not at all",
    f"  compute: {seconds(report['seconds_by_part'])}",
    f"  collectives: {seconds(report['collective_seconds']) or 'none'}",
    f"MFU {ends('mfu', '.1%')}",
    f"{report['steps']} steps in {ends('days', '.2f')} days, "
    f"{ends('gpu_hours', ',.0f')} GPU-hours",
  ]
  if report["cost_low"] is not None:
    lines.append(
      f"cost {ends('cost', ',.0f')} at {report['price_per_gpu_hour']:g} per "
      "GPU-hour"
    )
  lines += [f"  {line}" for line in report["method"]]
  lines += [f"  assumed: {line}" for line in report["assumptions"]]
  return "\n".join(lines)
