import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.evals import evaluated_world
from genie_jax.models import store
from genie_jax.sampling import maskgit
from tests.fixtures import tiny_world

WORLD = {
  **tiny_world.WORLD,
  "width": 8,
  "num_codes": 7,
  "num_latent_actions": 3,
}
MODELS = tiny_world.MODELS


def make_part(name):
  fields = {"world": WORLD, "model": MODELS[name]}
  inputs = (jnp.zeros((1, 2, 8, 8, 3)),)
  if name == "dynamics":
    tokens = jnp.zeros((1, 2, 2, 2), jnp.int32)
    inputs = tokens, tokens[:, 1:, 0, 0], tokens > 0
  params = jax.jit(store.part(name, fields, {}).module.init)(
    jax.random.key(1), *inputs
  )
  return store.part(name, fields, nn.unbox(params)["params"])


@pytest.fixture(scope="module")
def parts():
  return {name: make_part(name) for name in MODELS}


@pytest.fixture(scope="module")
def world(parts):
  return evaluated_world.from_parts(
    parts,
    sampling=maskgit.MaskGIT(refinements=2),
    actions="latent",
    fingerprint="",
  )


def test_any_number_of_clips_has_the_shapes_that_metrics_need(world):
  frames = np.random.default_rng(0).integers(
    0, 256, (70, 4, 8, 8, 3), dtype=np.uint8
  )  # One full batch is 64.
  tokens = world.encode(frames)
  assert tokens.shape == (70, 4, 2, 2) and tokens.dtype == np.int32
  assert world.decode(tokens).shape == frames.shape
  assert world.decode(tokens).dtype == np.uint8
  latent = world.infer(frames)
  assert latent.shape == (70, 3) and latent.max() < 3
  assert world.next_frame(tokens, latent, 0).shape == (70, 2, 2)
  ids = np.arange(70, dtype=np.int32)
  drawn = world.rollout(tokens[:, :1], latent, ids, 0)
  assert drawn.shape == tokens.shape
  np.testing.assert_array_equal(drawn[:, 0], tokens[:, 0])


def test_equal_clip_ids_and_buttons_draw_equal_rollouts(world):
  prompt = np.zeros((6, 1, 2, 2), np.int32)
  buttons = np.ones((6, 3), np.int32)
  ids = np.array([0, 1, 2, 0, 1, 2], np.int32)
  drawn = world.rollout(prompt, buttons, ids, 5)
  np.testing.assert_array_equal(drawn[:3], drawn[3:])
  assert (drawn[0] != drawn[1]).any()
  assert (drawn != world.rollout(prompt, buttons, ids, 6)).any()


def test_padding_a_batch_does_not_change_results():
  double = jax.jit(lambda x: 2 * x)
  values = np.arange(11.0)
  np.testing.assert_array_equal(
    evaluated_world.in_batches(double, 4, values), 2 * values
  )


def test_latent_actions_need_a_lam(parts):
  without = {name: parts[name] for name in ("tokenizer", "dynamics")}
  make = lambda actions: evaluated_world.from_parts(
    without, sampling=maskgit.MaskGIT(), actions=actions, fingerprint=""
  )
  with pytest.raises(errors.UserError, match="no lam"):
    make("latent")
  assert make("true").infer is None


def test_a_true_action_beyond_the_buttons_is_refused(parts):
  world = evaluated_world.from_parts(
    parts, sampling=maskgit.MaskGIT(), actions="true", fingerprint=""
  )
  frames = np.zeros((1, 3, 8, 8, 3), np.uint8)
  np.testing.assert_array_equal(
    world.buttons(frames, np.array([[2, 9]]), {9: 1}), [[2, 1]]
  )
  with pytest.raises(errors.UserError, match="true action 9"):
    world.buttons(frames, np.array([[2, 9]]), {})
  with pytest.raises(errors.UserError, match="have none"):
    world.buttons(frames, None, {})
