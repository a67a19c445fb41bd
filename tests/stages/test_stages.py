"""Tests that every stage trains with its shipped smoke config."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import loader
from genie_jax.models import store
from genie_jax.stages import joint, registry
from tests.fixtures import stage_data, stage_training

CONFIGS = pathlib.Path(__file__).parents[2] / "experiments" / "coinrun"
NAMES = ("tokenizer", "lam", "dynamics", "joint")


def load(name, *overrides, mode="smoke"):
  return config_lib.load(f"{CONFIGS / name}.py:{mode}", overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A clips folder and a token folder that fit the smoke configs."""
  root = tmp_path_factory.mktemp("data")
  clips = stage_data.write_clips(root / "clips")
  config = load("tokenizer")
  tokens = stage_data.write_tokens(
    root / "tokens",
    (64, 64, 3),
    grid=(4, 4),
    num_codes=64,
    tokenizer=stage_data.random_part("tokenizer", config),
  )
  return {"tokenizer": clips, "lam": clips, "dynamics": tokens, "joint": tokens}


def first_batch(config):
  batches = loader.make_iterator(
    registry.make(config).open_source("train"),
    config.data.batch_size,
    config.seed,
  )
  batch = next(batches)
  batches.close()
  return batch


@pytest.fixture(scope="module")
def trained(data):
  """Returns a function that trains a stage for two steps, once per stage."""
  kept = {}

  def get(name):
    if name not in kept:
      config = load(name, f"--config.data.path={data[name]}")
      batch = first_batch(config)
      kept[name] = config, batch, stage_training.train(config, batch)
    return kept[name]

  return get


# These compile for a long time.
BY_COST = [
  pytest.param(name, marks=pytest.mark.slow)
  if name in ("lam", "joint")
  else name
  for name in NAMES
]


@pytest.mark.parametrize("name", BY_COST)
def test_two_steps_of_the_smoke_config_move_every_parameter(trained, name):
  _, _, made = trained(name)
  assert made.stage.name == name
  stage_training.check(made)


@pytest.mark.parametrize("name", BY_COST)
def test_a_preview_has_rows_of_frames_of_the_worlds_shape(trained, name):
  _, batch, made = trained(name)
  drawn = jax.jit(made.stage.preview)(
    made.state.params,
    made.state.extra,
    {name: batch[name][:2] for name in made.stage.features},
    jax.random.key(0),
  )
  assert {len(array) for array in jax.tree.leaves(drawn)} == {2}
  pictures = made.stage.show(jax.tree.map(lambda x: np.asarray(x[0]), drawn))
  assert pictures
  for rows in pictures.values():
    assert len(rows) >= 3
    assert any("truth" in row for row in rows)
    shapes = {frames.shape[1:] for frames in rows.values()}
    assert len(shapes) == 1 and shapes.pop()[-1] == 3
    assert {frames.dtype for frames in rows.values()} == {np.dtype("uint8")}


@pytest.mark.parametrize(
  "name", [name for name in BY_COST if name != "dynamics"]
)
def test_codebook_statistics_follow_the_batches(trained, name):
  _, _, made = trained(name)
  before, after = made.before[1], jax.device_get(made.state.extra)
  assert not np.array_equal(before["codes"].share, after["codes"].share)
  prefix = "lam_" if name == "joint" else ""
  for metrics in made.metrics:
    assert 0 <= metrics[f"{prefix}code_usage"] <= 1
    assert metrics[f"{prefix}code_perplexity"] >= 1 - 1e-4


@pytest.mark.slow  # Compiles for a long time.
def test_held_out_metrics_of_a_lam_include_its_baselines(trained):
  assert {
    "squared_error",
    "random_action_squared_error",
    "copy_squared_error",
  } <= set(trained("lam")[2].evaluation)


def test_held_out_metrics_of_dynamics_include_their_baselines(trained):
  assert {
    "cross_entropy",
    "accuracy",
    "copy_accuracy",
    "changed_token_accuracy",
  } <= set(trained("dynamics")[2].evaluation)
  both = trained("joint")[2].evaluation
  assert "accuracy" in both and "lam_random_action_squared_error" in both


def test_copy_accuracy_is_the_share_of_unchanged_tokens(trained):
  _, batch, made = trained("dynamics")
  tokens = np.asarray(batch["tokens"])
  still = tokens[:, 1:] == tokens[:, :-1]
  # One target frame per clip is drawn; its share is one of those below.
  shares = still.mean((2, 3))
  assert (
    shares.min() - 1e-6
    <= made.evaluation["copy_accuracy"]
    <= (shares.max() + 1e-6)
  )


@pytest.mark.slow  # Compiles for a long time.
def test_in_the_joint_stage_the_dynamics_loss_never_moves_the_lam(trained):
  _, batch, made = trained("joint")
  stage, state = made.stage, made.state

  def terms(params, wanted):
    outcome = stage.loss(
      params, state.extra, batch, jax.random.key(0), state.step
    )
    return sum(
      term.mean()
      for name, term in outcome.losses.items()
      if name.startswith("lam_") == wanted
    )

  @jax.jit
  def sizes(params):
    largest = lambda tree: jnp.stack(
      [jnp.abs(leaf).max() for leaf in jax.tree.leaves(tree)]
    ).max()
    dynamics = jax.grad(terms)(params, False)
    lam = jax.grad(terms)(params, True)
    return [
      largest(part)
      for part in (
        dynamics["lam"],
        dynamics["dynamics"],
        lam["lam"],
        lam["dynamics"],
      )
    ]

  crossed, own, lam_own, back = (float(x) for x in sizes(state.params))
  assert crossed == 0 and back == 0
  assert own > 0 and lam_own > 0


def test_a_start_from_the_codebook_gives_similar_tokens_similar_embeddings(
  trained, data
):
  config, _, made = trained("dynamics")
  assert config.start == "codebook"
  table = made.before[0]["token_embedding"]
  codes = (
    store.load(data["dynamics"] / "tokenizer")
    .parts["tokenizer"]
    .params["codes"]["codebook"]
  )
  distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
  upper = np.triu_indices(len(codes), 1)
  # A random projection to a larger space keeps distances up to some noise.
  assert (
    np.corrcoef(distances(codes)[upper], distances(table)[upper])[0, 1] > 0.8
  )
  np.testing.assert_allclose(
    made.before[0]["to_logits"]["kernel"] * table.shape[1] ** 0.5,
    table.T,
    rtol=1e-5,
    atol=1e-6,
  )


def test_true_actions_train_the_same_stage(data):
  config = load(
    "dynamics",
    f"--config.data.path={data['dynamics']}",
    "--config.actions=true",
    "--config.world.num_latent_actions=15",
  )
  stage = registry.make(config)
  assert set(stage.features) == {"tokens", "actions"}
  batch = first_batch(config)
  params, extra = jax.eval_shape(stage.init, jax.random.key(0))
  outcome = jax.eval_shape(
    stage.loss, nn.unbox(params), extra, batch, jax.random.key(0), np.int32(0)
  )
  assert set(outcome.losses) == set(stage.loss_scales)


def test_a_world_with_another_number_of_actions_than_the_data_is_refused(data):
  config = load(
    "dynamics",
    f"--config.data.path={data['dynamics']}",
    "--config.actions=true",
  )
  with pytest.raises(errors.UserError, match=r"num_actions.*15.*8"):
    registry.make(config).open_source("train")


@pytest.mark.parametrize(
  "name, override, message",
  [
    ("tokenizer", "--config.stage=tokeniser", "did you mean 'tokenizer'"),
    ("dynamics", "--config.actions=both", "config.actions='both' is unknown"),
    ("joint", "--config.actions=true", "the joint stage learns its actions"),
    ("dynamics", "--config.mask.per=pixel", "mask.per='pixel'"),
    ("tokenizer", "--config.model.encoder.head_dim=3", "is odd"),
    ("lam", "--config.model.shrink=5", "does not divide"),
  ],
)
def test_an_invalid_config_raises_a_one_line_error(name, override, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    registry.make(load(name, override))
  assert "\n" not in str(raised.value)


def test_a_joint_config_gives_each_part_its_own_model():
  config = load("joint")
  for part in ("lam", "dynamics"):
    found = joint.part_config(config, part)
    for name, wanted in (
      ("model", config.model[part]),
      ("world", config.world),
    ):
      assert found[name].to_dict() == wanted.to_dict()
  assert "lam" in config.model  # The config itself is unchanged.


@pytest.mark.slow
def test_flops_count_every_product_of_the_forward_pass_three_times(trained):
  for name in ("tokenizer", "lam", "dynamics"):
    config, _, made = trained(name)
    assert isinstance(config, ml_collections.ConfigDict)
    params = sum(
      leaf.size
      for path, leaf in jax.tree_util.tree_leaves_with_path(made.state.params)
      if "kernel" in jax.tree_util.keystr(path)
    )
    # Every kernel is applied to nearly all 16 tokens of a frame, with two
    # FLOPs per parameter, three times. Attention adds 7 % at this width.
    tokens = made.stage.flops_per_clip / (6 * params)
    whole = 16 * config.data.num_frames
    assert 0.7 * whole < tokens < 1.4 * whole, name
