"""Tests of the state's layout and creation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.weights import param_tree
from tests.fixtures import toy_stage

SPLIT = dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)


def test_optimizer_state_has_the_layout_of_its_parameters():
  _, _, like, state, _ = toy_stage.built(toy_stage.config(**SPLIT))
  adam = next(part for part in state.opt_state if hasattr(part, "mu"))
  rows = ("fsdp", "frame")
  for tree in (state.params, adam.mu, adam.nu):
    assert tree["up"]["kernel"].sharding.spec == P(rows, "tensor")
    assert tree["up"]["kernel"].addressable_shards[0].data.shape == (4, 8)
    assert tree["down"]["kernel"].sharding.spec == P("tensor", rows)
  assert state_lib.shardings(like) == state_lib.shardings(state)


def test_muons_momentum_has_the_layout_of_its_parameters():
  config = config_lib.load("experiments/coinrun/tokenizer.py:smoke")
  mesh = mesh_lib.make(dict(data=2, fsdp=2, tensor=2, frame=1))
  stage = registry.make(config)
  optimizer = optimizer_lib.make(
    dict(name="muon", peak_lr=1.0), 1, stage.no_decay
  )
  like = state_lib.abstract(stage, optimizer, mesh)
  moments = {
    param_tree.path_name(path).split("mu/")[-1]: x.sharding.spec
    for path, x in jax.tree_util.tree_leaves_with_path(like.opt_state)
    if "/mu/" in param_tree.path_name(path)
  }
  specs = {
    param_tree.path_name(path): x.sharding.spec
    for path, x in jax.tree_util.tree_leaves_with_path(like.params)
  }
  assert moments == specs


def test_initial_values_do_not_depend_on_the_mesh():
  split = toy_stage.built(toy_stage.config(**SPLIT))[3]
  single = toy_stage.built(toy_stage.config(), devices=jax.devices()[:1])[3]
  for a, b in zip(
    jax.tree.leaves(split.params), jax.tree.leaves(single.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def abstract(init):
  stage = dataclasses.replace(toy_stage.make_stage(), init=init)
  mesh = mesh_lib.make(dict(data=1, fsdp=8, tensor=1, frame=1))
  optimizer = optimizer_lib.make(dict(peak_lr=1.0), 1, frozenset())
  return state_lib.abstract(stage, optimizer, mesh)


def test_a_parameter_without_axes_raises():
  with pytest.raises(ValueError, match="Parameter up/kernel has no logical"):
    abstract(lambda rng: ({"up": {"kernel": jnp.zeros((8, 8))}}, {}))


def test_an_indivisible_parameter_is_named_in_the_error():
  box = lambda: nn.LogicallyPartitioned(jnp.zeros((6, 8)), ("embed", "mlp"))
  with pytest.raises(errors.UserError, match=r"up/kernel is 6.*8 dev"):
    abstract(lambda rng: ({"up": {"kernel": box()}}, {}))


def test_abstract_state_of_a_huge_model_takes_no_memory():
  box = lambda: nn.LogicallyPartitioned(
    jnp.zeros((2**20, 2**20)), ("embed", "mlp")
  )
  like = abstract(lambda rng: ({"kernel": box()}, {}))
  assert like.params["kernel"].shape == (2**20, 2**20)
