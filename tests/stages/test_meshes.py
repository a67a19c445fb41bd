"""Tests of every stage's step on meshes that split a clip.

Tests of the compiled step with a frame axis are in `test_frame_axis.py`.
"""

import contextlib
import math

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from tests.fixtures import stage_training

STAGES = ("tokenizer", "lam", "dynamics", "joint")
MIXED = dict(data=1, fsdp=2, tensor=2, frame=2)
ONE = dict(data=1, fsdp=1, tensor=1, frame=1)
# The partitioner logs this when it cannot reshard and replicates an array.
COPIES = "nvoluntary full rematerialization"


def losses(stage, sizes):
  """Returns the losses of two steps and the held-out means."""
  config = stage_training.load(stage)
  config.mesh.update(sizes)
  steps = stage_training.steps(config, math.prod(sizes.values()))
  batch, state = (
    stage_training.random_batch(steps.stage, config),
    steps.create(),
  )
  found = []
  for _ in range(2):
    # The second loss depends on the first gradient. The gradient's norm itself
    # is not compared: it jumps if sums in a different order make one vector of
    # noise choose another code.
    state, metrics = steps.train(state, batch)
    found.append(float(metrics["loss"]))
  terms = steps.evaluate(state.params, state.extra, batch, jax.random.key(0))
  return found + [float(terms[name].mean()) for name in sorted(terms)]


@contextlib.contextmanager
def without_compilation_cache():
  """Disables the cache, because cached programs are not partitioned again."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize(
  "stage",
  [
    # These take minutes to compile.
    pytest.param(stage, marks=pytest.mark.slow)
    if stage in ("tokenizer", "lam", "joint")
    else stage
    for stage in STAGES
  ],
)
def test_losses_are_the_same_if_clips_are_split(stage, capfd):
  # The latent action model has 17 tokens and 3 frames here, which are not
  # divisible by any axis, so they are padded.
  wanted = losses(stage, ONE)
  capfd.readouterr()
  with without_compilation_cache():
    found = losses(stage, MIXED)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  assert COPIES not in capfd.readouterr().err


def test_the_partitioner_logs_when_it_replicates(capfd):
  mesh = jax.make_mesh(
    (2, 2, 2), ("a", "b", "c"), (jax.sharding.AxisType.Auto,) * 3
  )
  place = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))
  step = jax.jit(
    lambda x: (
      jax.lax.with_sharding_constraint(x * 2, place(None, None, ("c", "b"))) + 1
    ),
    in_shardings=place(("a", "b", "c")),
  )
  capfd.readouterr()
  with without_compilation_cache():
    step.lower(jax.ShapeDtypeStruct((8, 8, 8), np.float32)).compile()
  assert COPIES in capfd.readouterr().err
