"""Tests of every stage's step on meshes that split a clip."""

import math
import re

import jax
import numpy as np
import pytest

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


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_same_where_clips_are_split(stage, capfd):
  # The latent action model has 17 tokens and 3 frames here, which no axis
  # divides: they are filled up.
  wanted = losses(stage, ONE)
  capfd.readouterr()
  found = losses(stage, MIXED)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)
  # The partitioner says so when it gives up on a layout and copies.
  assert "nvoluntary full rematerialization" not in capfd.readouterr().err


def compiled(frame):
  config = load("dynamics", num_layers=2, unroll=1, remat="full")
  config.data.batch_size = 2
  step, _, state, batch = build(
      config, dict(data=1, fsdp=2, tensor=1, frame=frame))
  return step.lower(state, batch).compile(), config


def test_the_frame_axis_exchanges_in_every_block_and_gathers_nothing_whole():
  whole, _ = compiled(1)
  split, config = compiled(4)
  text = split.as_text()
  # To places and back in each of the two loops over blocks, and once where the
  # backward pass computes the block again.
  in_loops = [line for line in text.splitlines()
              if re.search(r" all-to-all(-start)?\(", line)
              and "while/body" in line]
  assert len(in_loops) == 5
  assert " all-to-all" not in whole.as_text()
  # An activation of whole clips is [B, T, N, ...]; indices of tokens, which
  # the gradient of their table needs everywhere, are integers.
  for line in text.splitlines():
    gathered = re.search(r"= \(?b?f\d+\[([\d,]*)\]\S* all-gather", line)
    if gathered and "/layers/" in line:
      shape = gathered[1].split(",")
      assert shape[1:3] != [str(config.data.num_frames), "16"], line
  # 4 of the 8 devices' work on a clip: activations fall, parameters stay.
  assert split.memory_analysis().temp_size_in_bytes < (
      0.6 * whole.memory_analysis().temp_size_in_bytes)
