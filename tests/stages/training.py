"""Running a stage's step on one device, as the loop does on many."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from genie_jax.core import config as config_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib

# The first step may have a learning rate of 0, and stacks that start as the
# identity pass gradients on to their inner layers only from the next one.
STEPS = 3


@dataclasses.dataclass
class Trained:
  """What a few steps left behind.

  Attributes:
    stage: The stage.
    before: Host copies of the first parameters and extra state.
    state: The last state.
    metrics: Metrics of each step.
    evaluation: Means of the held-out terms.
    hides_history: Whether a LAM's decoder sees one frame only.
  """
  stage: stage_lib.Stage
  before: tuple[Any, Any]
  state: state_lib.TrainState
  metrics: list[dict[str, float]]
  evaluation: dict[str, float]
  hides_history: bool


def load(stage: str) -> ml_collections.ConfigDict:
  """Returns a small config of a stage that needs no other's results."""
  config = config_lib.load(
      f"experiments/coinrun/{stage}.py:smoke").unlock()
  if "start" in config:
    config.start = "random"  # The other one reads a tokenizer.
  return config


@dataclasses.dataclass
class Steps:
  """A stage's steps on a mesh, not yet compiled.

  Attributes:
    stage: The stage.
    mesh: The mesh.
    like: The abstract state.
    train: `(state, batch) -> (state, metrics)`.
    evaluate: `(params, extra, batch, rng) -> terms`.
    create: `() -> state`, the first.
  """
  stage: stage_lib.Stage
  mesh: Mesh
  like: state_lib.TrainState
  train: Callable[..., Any]
  evaluate: Callable[..., Any]
  create: Callable[[], state_lib.TrainState]


def steps(config: ml_collections.ConfigDict, num_devices: int) -> Steps:
  """Returns the steps of a config on the first devices."""
  stage = registry.make(config)
  mesh = mesh_lib.make(config.mesh, jax.devices()[:num_devices])
  optimizer = optimizer_lib.make(
      config.optimizer, config.steps, stage.no_decay)
  like = state_lib.abstract(stage, optimizer, mesh)
  rows = config.data.batch_size
  return Steps(
      stage, mesh, like,
      step_lib.make_train_step(stage, optimizer, mesh, like, rows),
      step_lib.make_eval_step(stage, mesh, like, rows),
      lambda: state_lib.create(stage, optimizer, like, config.seed))


def train(
    config: ml_collections.ConfigDict, batch: dict[str, np.ndarray],
    evaluates: bool = True,
) -> Trained:
  """Takes STEPS steps on one batch and evaluates on it."""
  made = steps(config, 1)
  stage, state = made.stage, made.create()
  before = jax.device_get((state.params, state.extra))
  step_lib.check_batch(stage, batch, config.data.batch_size)
  batch = {name: batch[name] for name in stage.features}
  metrics = []
  for _ in range(STEPS):
    state, values = made.train(state, batch)
    metrics.append({name: float(x) for name, x in values.items()})
  terms = {}
  if evaluates:
    terms = made.evaluate(state.params, state.extra, batch, jax.random.key(0))
  return Trained(
      stage, before, state, metrics,
      {name: float(np.asarray(term.total) / max(float(term.count), 1e-9))
       for name, term in terms.items()},
      hides_history=_lam(config).get("decoder", {}).get("window") == 1)


def _lam(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  return config.model.get("lam", config.model)


def check(trained: Trained) -> None:
  """Asserts what holds of every stage after its first steps."""
  assert int(trained.state.step) == STEPS
  for metrics in trained.metrics:
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    scales = trained.stage.loss_scales
    assert {f"losses/{name}" for name in scales} <= set(metrics)
    whole = sum(
        scale * metrics[f"losses/{name}"] for name, scale in scales.items())
    assert abs(whole - metrics["loss"]) < 1e-4 * abs(metrics["loss"])
  assert all(math.isfinite(value) for value in trained.evaluation.values())
  still = unmoved(trained.before[0], trained.state.params)
  if trained.hides_history:
    # A frame that sees itself alone gives it all weight, whatever its score.
    still = [path for path in still if not re.search(
        "decoder_stack/layers/time/(query|key)_norm/scale$", path)]
  assert not still, f"{STEPS} steps left these as they were: {still}"


def unmoved(before: Any, after: Any) -> list[str]:
  """Returns the paths of arrays that two trees have in common, bit by bit."""
  before = jax.tree_util.tree_leaves_with_path(before)
  after = jax.tree.leaves(jax.device_get(after))
  return [
      state_lib.path_name(path) for (path, old), new in zip(
          before, after, strict=True) if np.array_equal(old, new)]


def random_batch(
    stage: stage_lib.Stage, config: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
  """Returns a batch of noise: codes, latent actions, or pixels."""
  rng = np.random.default_rng(0)
  most = {"tokens": config.world.num_codes,
          "latent_actions": config.world.num_latent_actions}
  rows = config.data.batch_size
  return {
      name: rng.integers(
          0, most.get(name, 256), (rows, *feature.shape)).astype(
              feature.dtype)
      for name, feature in stage.features.items()}
