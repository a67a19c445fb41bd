"""Tests that the sharding rules define the axes of all arrays of all models."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from genie_jax.models import store
from genie_jax.nn import st_transformer
from genie_jax.sharding import rules
from tests.fixtures import tiny_models

VARIANTS = [
  ("tokenizer", {}),
  ("lam", {"actions_enter": "add"}),
  ("lam", {"actions_enter": "prepend", "predict": "change"}),
  ("dynamics", {"actions_enter": "add"}),
  ("dynamics", {"actions_enter": "prepend"}),
]


def inputs(name):
  if name == "dynamics":
    return (
      tiny_models.tokens(),
      tiny_models.actions(3),
      tiny_models.tokens() > 5,
    )
  return (tiny_models.clip(),)


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_every_axis_of_every_parameter_has_a_name_from_the_rules(name, changes):
  boxed = store.abstract_params(name, tiny_models.fields(name, **changes))
  leaves = jax.tree_util.tree_leaves_with_path(
    boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  assert len(leaves) > 10
  for path, leaf in leaves:
    assert isinstance(leaf, nn.LogicallyPartitioned), path
    assert len(leaf.names) == leaf.value.ndim, (path, leaf.names)
    rules.spec(leaf.names)  # Raises for unknown and for conflicting names.


@pytest.mark.parametrize("name", ["tokenizer", "lam", "dynamics"])
def test_the_first_axis_of_scanned_layers_is_the_layers_axis(name):
  boxed = store.abstract_params(name, tiny_models.fields(name))
  stacks = [boxed[key] for key in boxed if "stack" in key]
  assert stacks
  for stack in stacks:
    for leaf in jax.tree.leaves(
      stack["layers"], is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    ):
      assert leaf.names[0] == "layers"
      assert leaf.value.shape[0] == tiny_models.STACK["num_layers"]


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_every_activation_is_constrained_with_names_from_the_rules(
  name, changes, monkeypatch
):
  seen = set()
  real = rules.constrain

  def record(x, axes):
    seen.add(tuple(axes))
    assert len(axes) == x.ndim
    return real(x, axes)

  monkeypatch.setattr(rules, "constrain", record)
  part = tiny_models.part(name, **changes)
  jax.eval_shape(
    lambda: part.module.apply({"params": part.params}, *inputs(name))
  )
  wanted = {
    st_transformer._BY_FRAME,
    st_transformer._BY_PLACE,
    ("act_batch", None, "act_space", "act_mlp"),
  }
  if name == "dynamics":
    wanted.add((None, None))  # Embedding tables are gathered for lookups.
  assert seen == wanted


@pytest.mark.parametrize(
  "name, frame", [("tokenizer", 2), ("dynamics", 2), ("lam", 1)]
)
def test_models_trace_on_a_mesh_that_splits_every_axis(name, frame):
  # A LAM has T - 1 predictions, and an action token in addition to the
  # patches. Both numbers are odd in the paper's sizes, so the LAM does not use
  # the frame axis.
  mesh = AbstractMesh(
    (1, 2, 2, frame), rules.MESH_AXES, axis_types=(AxisType.Auto,) * 4
  )
  part = tiny_models.part(name)

  def forward():
    with jax.sharding.use_abstract_mesh(mesh):
      return part.module.apply({"params": part.params}, *inputs(name))

  shapes = jax.tree.leaves(jax.eval_shape(forward))
  assert all(np.prod(shape.shape) > 0 for shape in shapes)
