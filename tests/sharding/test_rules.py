"""Tests of the rules that map logical axes to mesh axes."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.sharding import rules

MIXED = dict(data=2, fsdp=2, tensor=1, frame=2)


def test_every_rule_maps_to_mesh_axes():
  for axes in rules.RULES.values():
    assert set(axes) <= set(rules.MESH_AXES)


def test_spec_maps_each_name_by_the_rules():
  assert rules.spec(("layers", "embed", "mlp")) == P(
    None, ("fsdp", "frame"), "tensor"
  )
  assert rules.spec(("act_batch", "act_time", None)) == P(
    ("data", "fsdp"), "frame", None
  )


def test_the_error_for_an_unknown_axis_suggests_the_closest_name():
  with pytest.raises(ValueError, match="did you mean 'act_batch'"):
    rules.spec(("act_bacth", None))


def test_two_names_of_one_mesh_axis_are_rejected():
  with pytest.raises(ValueError, match=r"'act_time' and 'act_space'.*'frame'"):
    rules.spec(("act_batch", "act_time", "act_space", "act_embed"))


def test_constrain_without_a_mesh_returns_its_input_and_checks_names():
  x = jnp.ones((3, 5))
  assert rules.constrain(x, ("act_batch", "act_embed")) is x
  with pytest.raises(ValueError, match="Unknown logical axis"):
    rules.constrain(x, ("act_batch", "act_embd"))


def test_constrain_in_a_mesh_sets_the_layout():
  mesh = mesh_lib.make(MIXED)

  @jax.jit
  def double(x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return rules.constrain(x * 2, ("act_batch", "act_time", "act_embed"))

  x = jax.device_put(jnp.ones((8, 4, 3)), mesh_lib.replicated(mesh))
  assert double(x).sharding.spec == P(("data", "fsdp"), "frame")


def test_constrain_rejects_a_dimension_that_does_not_split_evenly():
  mesh = mesh_lib.make(MIXED)

  def double(x):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return rules.constrain(x * 2, ("act_batch", "act_time"))

  with pytest.raises(errors.UserError, match=r"Dimension 1 \('act_time'\).*3"):
    jax.eval_shape(double, jax.ShapeDtypeStruct((8, 3), jnp.float32))
