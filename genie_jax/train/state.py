"""The state that a train step updates, and its layout on a mesh."""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from genie_jax.sharding import mesh as mesh_lib
from genie_jax.sharding import rules
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import stage as stage_lib
from genie_jax.weights import param_tree

Tree = Any


@flax.struct.dataclass
class TrainState:
  """The state of training; a step takes a state and returns the next one.

  Attributes:
    step: int32 scalar, the number of updates made.
    params: Nested dict of parameters, without boxes.
    extra: The stage's own arrays, for example codebook statistics.
    opt_state: Optax state, with the layout of the parameters.
    rng: Base key. It never changes: each step folds its number into it, so
      keys are neither lost nor reused when a run resumes.
  """

  step: jax.Array
  params: Tree
  extra: Tree
  opt_state: Tree
  rng: jax.Array

  def fields(self) -> dict[str, Tree]:
    """Returns the state's trees by name, as a checkpoint stores them."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }


def abstract(
  stage: stage_lib.Stage, optimizer: optimizer_lib.Optimizer, mesh: Mesh
) -> TrainState:
  """Returns the state's shapes, dtypes and layouts; computes nothing.

  Raises:
    ValueError: A parameter has no logical axes.
    UserError: A parameter does not split over the mesh.
  """
  boxed, extra = jax.eval_shape(stage.init, jax.random.key(0))
  params = place(boxed, mesh)
  opt_state = jax.eval_shape(optimizer.transformation.init, params)
  whole = mesh_lib.replicated(mesh)
  replicate = lambda tree: jax.tree.map(lambda x: _with(x, whole), tree)
  rng, step = jax.eval_shape(lambda: (jax.random.key(0), jnp.int32(0)))
  return TrainState(
    step=replicate(step),
    params=params,
    extra=replicate(extra),
    opt_state=_like_params(opt_state, params, whole),
    rng=replicate(rng),
  )


def place(boxed: Tree, mesh: Mesh) -> Tree:
  """Returns the shapes, dtypes and layouts of boxed parameters.

  Args:
    boxed: Abstract parameters from `init`, in boxes with their axis names.
    mesh: The device mesh.

  Raises:
    ValueError: A parameter has no logical axes.
    UserError: A parameter does not split over the mesh.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, box: _place(path, box, mesh), boxed, is_leaf=_is_box
  )


def shardings(state: TrainState) -> TrainState:
  """Returns the layout of each array of an abstract or real state."""
  return jax.tree.map(lambda x: x.sharding, state)


def create(
  stage: stage_lib.Stage,
  optimizer: optimizer_lib.Optimizer,
  like: TrainState,
  seed: int,
) -> TrainState:
  """Initialises a state; each device computes and stores only its part.

  Args:
    stage: Initialises the parameters.
    optimizer: Initialises the optimizer state.
    like: The abstract state, from `abstract`.
    seed: Seed. The values depend only on it, not on the mesh.
  """

  def init(rng):
    first, base = jax.random.split(rng)
    # Unboxed here, because boxes would add an entry to every path.
    params, extra = stage.init(first)
    params = nn.unbox(params)
    return TrainState(
      step=jnp.int32(0),
      params=params,
      extra=extra,
      opt_state=optimizer.transformation.init(params),
      rng=base,
    )

  return jax.jit(init, out_shardings=shardings(like))(jax.random.key(seed))


def reset_optimizer(
  state: TrainState, optimizer: optimizer_lib.Optimizer, like: TrainState
) -> TrainState:
  """Returns `state` with a fresh optimizer, as after a warm start."""
  fresh = jax.jit(
    optimizer.transformation.init, out_shardings=shardings(like).opt_state
  )(state.params)
  return dataclasses.replace(state, opt_state=fresh)


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def _with(x: Any, layout: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)


def _place(path, box, mesh: Mesh) -> jax.ShapeDtypeStruct:
  name = param_tree.path_name(path)
  if not _is_box(box):
    raise ValueError(
      f"Parameter {name} has no logical axes; make it with "
      "nn.with_logical_partitioning."
    )
  rules.check_divides(
    box.value.shape, box.names, mesh.shape, f"parameter {name}"
  )
  return _with(box.value, mesh_lib.sharding(mesh, box.names))


def _like_params(opt_state: Tree, params: Tree, whole: NamedSharding) -> Tree:
  """Gives each leaf of the optimizer state the layout of its parameter.

  A leaf's parameter is the one with the same shape whose path is a suffix of
  the leaf's path; leaves without one are replicated. Optax's own tree maps are
  not used, because they lose boxes inside masked transforms.
  """
  table = dict(jax.tree_util.tree_leaves_with_path(params))

  def leaf(path, x):
    for start in range(len(path)):
      owner = table.get(path[start:])
      if owner is not None and owner.shape == x.shape:
        return _with(x, owner.sharding)
    return _with(x, whole)

  return jax.tree_util.tree_map_with_path(leaf, opt_state)
