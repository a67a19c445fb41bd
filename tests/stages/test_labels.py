"""Tests of a few true keys in the loss of the latent action model."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.stages import labels, registry
from tests.fixtures import stage_data, stage_training

CONFIG = pathlib.Path(__file__).parents[2] / "experiments/coinrun/lam.py"


def load(clips, *overrides):
  path = f"--config.data.path={clips}"
  return config_lib.load(f"{CONFIG}:smoke", (path, *overrides))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
  return stage_data.write_clips(tmp_path_factory.mktemp("data") / "clips")


def test_a_transition_is_labelled_in_all_windows_or_in_none():
  level = jnp.zeros(50, jnp.int32) + 3
  start = jnp.arange(50)
  found = np.asarray(labels.chosen(level, start, 7, 0.3))
  for window in range(49):
    np.testing.assert_array_equal(found[window, 1:], found[window + 1, :-1])


@pytest.mark.parametrize("share", [0.025, 0.5, 1.0])
def test_the_share_of_labels_is_kept_in_every_level(share):
  level = jnp.repeat(jnp.arange(20), 4000)
  start = jnp.tile(jnp.arange(4000), 20)
  found = np.asarray(labels.chosen(level, start, 1, share))
  by_level = found.reshape(20, 4000).mean(1)
  error = 4 * np.sqrt(share * (1 - share) / 4000)
  assert np.abs(by_level - share).max() <= error
  # Levels differ, and neighbours are independent.
  if share == 0.5:
    same = found.reshape(20, 4000)
    assert abs((same[0] == same[1]).mean() - 0.5) < 0.04
    assert abs((same[:, 1:] == same[:, :-1]).mean() - 0.5) < 0.02


def manifest(**fields):
  made = manifest_lib.Manifest(
    kind="clips",
    name="game",
    fps=10,
    frame_shape=(8, 8, 3),
    frames_per_record=16,
    splits={},
    num_actions=6,
    action_aliases={5: 4},
    made_by={"by": "a test"},
  )
  return dataclasses.replace(made, **fields)


def test_keys_with_the_same_effect_share_a_code():
  np.testing.assert_array_equal(
    labels.classes(manifest(), 5), [0, 1, 2, 3, 4, 4]
  )
  merged = manifest(made_by={"keys": {"effect": [1, 1, 2, 4, 4, 4]}})
  np.testing.assert_array_equal(labels.classes(merged, 3), [0, 0, 1, 2, 2, 2])


def test_the_loss_is_the_cross_entropy_of_labelled_transitions():
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  inputs, vectors = (
    unit(rng.normal(size=(2, 3, 4))),
    unit(rng.normal(size=(5, 4))),
  )
  keys = rng.integers(0, 5, (2, 3))
  mask = np.array([[1, 0, 1], [0, 0, 1]], bool)
  logits = 10 * inputs @ vectors.T
  chance = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  wanted = -np.log(np.take_along_axis(chance, keys[..., None], -1)[..., 0])
  found = labels.loss(inputs, vectors, keys, mask)
  np.testing.assert_allclose(
    found.mean(), wanted[mask].sum() / mask.size, rtol=1e-5
  )
  assert labels.loss(inputs, vectors, keys, np.zeros_like(mask)).mean() == 0


def test_labels_are_off_unless_they_have_a_weight(clips):
  stage = registry.make(load(clips))
  assert set(stage.features) == {"frames"}
  assert labels.LOSS not in stage.loss_scales


@pytest.mark.slow
def test_labels_teach_the_code_of_each_key(clips):
  config = load(
    clips,
    "--config.labels.weight=1.0",
    "--config.labels.share=1.0",
    "--config.world.num_latent_actions=16",
  )
  stage = registry.make(config)
  assert {"actions", "source", "start"} <= set(stage.features)
  rng = np.random.default_rng(0)
  batch = {
    name: rng.integers(
      0, 200 if name == "frames" else 9, (4, *feature.shape)
    ).astype(feature.dtype)
    for name, feature in stage.features.items()
  }
  made = stage_training.train(config, batch)
  losses = [metrics[f"losses/{labels.LOSS}"] for metrics in made.metrics]
  assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize(
  ("overrides", "said"),
  [
    (["--config.labels.share=0.0"], "share=0.0 and weight=1.0"),
    (["--config.labels.share=1.5"], "config.labels.share is 1.5"),
    (["--config.world.num_latent_actions=3"], "there are 3 codes"),
  ],
)
def test_bad_labels_are_refused(clips, overrides, said):
  with pytest.raises(errors.UserError, match=said):
    registry.make(load(clips, "--config.labels.weight=1.0", *overrides))


def test_clips_without_keys_are_refused():
  with pytest.raises(errors.UserError, match="has no true actions"):
    labels.classes(manifest(num_actions=None, action_aliases={}), 8)
