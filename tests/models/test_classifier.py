"""Tests of the classifier of clips."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.models import registry, store
from genie_jax.sharding import rules

CONFIG = "experiments/platformers/classifier.py"
FIELDS = {
  "world": {"height": 24, "width": 32, "channels": 3},
  "model": {"features": 8, "dtype": "float32"},
}


def size(fields):
  shapes = nn.unbox(store.abstract_params("classifier", fields))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope="module")
def made():
  """A small classifier with random weights, also in its last layer."""
  module = registry.build("classifier", FIELDS)
  rng = np.random.default_rng(0)
  shapes = nn.unbox(store.abstract_params("classifier", FIELDS))
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2
  params = jax.tree.map(draw, shapes)
  return jax.jit(lambda frames: module.apply({"params": params}, frames))


def clips(count, frames=4, seed=1):
  rng = np.random.default_rng(seed)
  return rng.random((count, frames, 24, 32, 3)).astype(np.float32)


def test_it_has_the_parameters_of_resnet_18():
  # torchvision's resnet18 has 11,689,512 with a layer of 512 x 1000 + 1000 and
  # three input channels; here are one output and twelve input channels.
  wanted = 11_689_512 - 513_000 + 513 + 7 * 7 * 9 * 64
  # And the first layer and the three shortcuts have no norm.
  wanted -= 2 * (64 + 128 + 256 + 512)
  assert size(config_lib.load(CONFIG)) == wanted
  assert f"{wanted / 1e6:.0f}M parameters" in pathlib.Path(CONFIG).read_text()


def test_an_untrained_classifier_gives_every_clip_one_half():
  module = registry.build("classifier", FIELDS)
  made = jax.jit(module.init_with_output)(jax.random.key(0), clips(3))[0]
  assert (np.asarray(made) == 0).all()


def test_a_score_depends_on_no_other_clip_of_the_batch(made):
  three = clips(3)
  one = np.concatenate([three[:1], clips(2, seed=5)])
  assert made(three).shape == (3,) and made(three).dtype == jnp.float32
  np.testing.assert_allclose(made(three)[0], made(one)[0], rtol=1e-5)
  assert len(set(np.asarray(made(three)).tolist())) == 3


def test_the_order_of_pairs_does_not_count_but_that_of_frames_does(made):
  four = clips(1)
  swapped = four[:, [2, 3, 0, 1]]
  np.testing.assert_allclose(made(four), made(swapped), rtol=1e-4)
  assert abs(made(four) - made(four[:, ::-1]))[0] > 1e-3


def test_a_still_clip_and_a_moving_one_differ_though_each_frame_is_the_same():
  module = registry.build("classifier", FIELDS)
  first, second = clips(2, frames=1)
  still = np.concatenate([first, first, second, second])[None]
  moving = np.concatenate([first, second, second, first])[None]
  inputs = module.bind({})._runs
  assert (np.asarray(inputs(jnp.asarray(still)))[..., 3:] == 0).all()
  assert (np.asarray(inputs(jnp.asarray(moving)))[..., 3:] != 0).any()


def test_frames_are_made_smaller_by_averaging():
  fields = {**FIELDS, "model": {"features": 8, "shrink": 2}}
  module = registry.build("classifier", fields)
  frames = clips(1, frames=2)
  found = np.asarray(module.bind({})._runs(jnp.asarray(frames)))
  assert found.shape == (1, 12, 16, 6)
  wanted = 4 * (frames[0, 0, :2, :2].mean((0, 1)) - 0.5)
  np.testing.assert_allclose(found[0, 0, 0, :3], wanted, rtol=1e-5)


def test_every_parameter_has_logical_axes_and_it_traces_on_a_split_mesh():
  boxed = store.abstract_params("classifier", FIELDS)
  leaves = jax.tree.leaves(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  assert all(isinstance(leaf, nn.LogicallyPartitioned) for leaf in leaves)
  assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
  mesh = AbstractMesh(
    (1, 2, 2, 2), rules.MESH_AXES, axis_types=(AxisType.Auto,) * 4
  )
  module = registry.build("classifier", FIELDS)

  def forward(params):
    with jax.sharding.use_abstract_mesh(mesh):
      return module.apply({"params": params}, clips(4))

  assert jax.eval_shape(forward, nn.unbox(boxed)).shape == (4,)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"features": 0}, "config.model.features=0 must be"),
    ({"shrink": 1.5}, "config.model.shrink=1.5 must be"),
    ({"shrink": 4}, "leaves less than 8 rows"),
    ({"run": 1}, "config.model.run=1 must be"),
    ({"dtype": "int8"}, "config.model.dtype='int8' is unknown"),
    ({"layers": 18}, "config.model.layers is not a field"),
  ],
)
def test_an_invalid_field_is_one_clear_line(changes, message):
  fields = {**FIELDS, "model": {"features": 8, **changes}}
  with pytest.raises(errors.UserError, match=message):
    registry.build("classifier", fields)


def test_a_run_is_its_first_frame_and_the_change_to_each_next_one():
  fields = {**FIELDS, "model": {"features": 8, "run": 3}}
  module = registry.build("classifier", fields)
  frames = clips(1, frames=6)
  found = np.asarray(module.bind({})._runs(jnp.asarray(frames)))
  assert found.shape == (2, 24, 32, 9)
  first, changes = (
    frames[0, ::3],
    np.diff(frames[0].reshape(2, 3, 24, 32, 3), axis=1),
  )
  wanted = 4 * np.concatenate(
    [first - 0.5, changes[:, 0], changes[:, 1]], axis=-1
  )
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_part_of_a_run_is_one_clear_line():
  module = registry.build("classifier", FIELDS)
  with pytest.raises(errors.UserError, match="multiple of 2 frames, not 3"):
    module.init(jax.random.key(0), clips(1, frames=3))
