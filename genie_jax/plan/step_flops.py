"""FLOPs of one train step, by formula and from its compiled program."""

import dataclasses

import jax
import ml_collections

from genie_jax.plan import aot_compile
from genie_jax.plan.hlo import matmul_flops
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state
from genie_jax.train import step as step_lib

_ONE_DEVICE = {"data": 1, "fsdp": 1, "tensor": 1, "frame": 1}


@dataclasses.dataclass(frozen=True)
class StepFlops:
  """FLOPs of the matrix products of one train step.

  The program differs from the formula in what is known: attention in time is
  computed for all pairs of frames where the formula counts the causal half, and
  with rematerialisation parts of the forward pass are computed twice.

  Attributes:
    formula: `Stage.flops_per_clip` x clips of a batch.
    forward: Of the program's forward pass.
    backward: Of its backward pass, without what is recomputed.
    recomputed: Of the forward pass, for a second time.
    other: Outside the model, such as the products of Muon.
  """

  formula: float
  forward: float
  backward: float
  recomputed: float
  other: float

  @property
  def compiled(self) -> float:
    """Of the whole program."""
    return self.forward + self.backward + self.recomputed + self.other


def count(config: ml_collections.ConfigDict) -> StepFlops:
  """Compiles a config's step for one device here, and counts its FLOPs.

  Nothing is allocated or run. On a TPU or a GPU, kernels that are not XLA's are
  not counted.

  Args:
    config: A training config; its mesh is not used.

  Raises:
    UserError: The config is invalid.
    ValueError: The program has a loop of unknown length.
  """
  config = aot_compile.with_random_start(config)
  stage = registry.make(config)
  mesh = mesh_lib.make(_ONE_DEVICE, jax.devices()[:1])
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  like = state.abstract(stage, optimizer, mesh)
  clips = config.data.batch_size
  step = step_lib.make_train_step(stage, optimizer, mesh, like, clips)
  batch = {
    name: jax.ShapeDtypeStruct((clips, *feature.shape), feature.dtype)
    for name, feature in stage.features.items()
  }
  found = matmul_flops.by_pass(step.lower(like, batch).compile().as_text())
  return StepFlops(
    formula=stage.flops_per_clip * clips,
    forward=found.get("forward", 0.0),
    backward=found.get("backward", 0.0),
    recomputed=found.get("recomputed", 0.0),
    other=found.get("", 0.0),
  )
