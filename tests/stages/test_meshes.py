"""Tests of every stage's step on meshes that split a clip.

What the frame axis does to the compiled step is in `test_frame_axis.py`.
"""

import contextlib
import math

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import PartitionSpec as P

from genie_jax.core import config as config_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from tests.stages import training

STAGES = ("tokenizer", "lam", "dynamics", "joint")
MIXED = dict(data=1, fsdp=2, tensor=2, frame=2)
ONE = dict(data=1, fsdp=1, tensor=1, frame=1)
# What the partitioner logs when it gives up on a layout and copies.
COPIES = "nvoluntary full rematerialization"


def load(stage, **model):
  config = config_lib.load(
      f"experiments/coinrun/{stage}.py:smoke").unlock()
  if "start" in config:
    config.start = "random"  # The other one reads a tokenizer.
  if model:
    config.model.transformer.update(model)
  return config


def build(config, sizes):
  """Returns the step on a mesh, its abstract state, and a batch of noise."""
  config.mesh.update(sizes)
  stage = registry.make(config)
  devices = jax.devices()[:math.prod(sizes.values())]
  mesh = mesh_lib.make(config.mesh, devices)
  optimizer = optimizer_lib.make(
      config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  rows = config.data.batch_size
  batch = training.random_batch(stage, rows, {
      "tokens": config.world.num_codes,
      "latent_actions": config.world.num_latent_actions})
  step = step_lib.make_train_step(stage, optimizer, mesh, like, rows)
  evaluate = step_lib.make_eval_step(stage, mesh, like, rows)
  state = state_lib.create(stage, optimizer, like, config.seed)
  return step, evaluate, state, batch


def losses(stage, sizes):
  """Returns the losses of two steps and the held-out means."""
  step, evaluate, state, batch = build(load(stage), sizes)
  found = []
  for _ in range(2):
    # The second loss tells of the first gradient. Its norm jumps where sums in
    # another order let one vector of noise choose another code.
    state, metrics = step(state, batch)
    found.append(float(metrics["loss"]))
  terms = evaluate(state.params, state.extra, batch, jax.random.key(0))
  return found + [float(terms[name].mean()) for name in sorted(terms)]


@contextlib.contextmanager
def compiling_anew():
  """Keeps the cache out: what comes from there was partitioned long ago."""
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_same_where_clips_are_split(stage, capfd):
  # The latent action model has 17 tokens and 3 frames here, which no axis
  # divides: they are filled up.
  wanted = losses(stage, ONE)
  capfd.readouterr()
  with compiling_anew():
    found = losses(stage, MIXED)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  assert COPIES not in capfd.readouterr().err


def test_the_partitioner_says_so_when_it_copies(capfd):
  mesh = jax.make_mesh(
      (2, 2, 2), ("a", "b", "c"), (jax.sharding.AxisType.Auto,) * 3)
  place = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))
  step = jax.jit(
      lambda x: jax.lax.with_sharding_constraint(
          x * 2, place(None, None, ("c", "b"))) + 1,
      in_shardings=place(("a", "b", "c")))
  capfd.readouterr()
  with compiling_anew():
    step.lower(jax.ShapeDtypeStruct((8, 8, 8), np.float32)).compile()
  assert COPIES in capfd.readouterr().err
