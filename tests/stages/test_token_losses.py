"""Tests of the losses of the dynamics model, and of their precision."""

import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.extend import core

from genie_jax.core import errors
from genie_jax.models import registry
from genie_jax.stages import dynamics
from tests.fixtures import stage_training

GRID, CODES = (1, 2, 2, 2), 5
MASK = dict(
  per="clip", rate="uniform", low=1.0, high=1.0, clean_frame=0.0, clean_past=0.0
)


def terms(logits, z_loss):
  """Returns the losses of a model that always has these logits."""
  model = types.SimpleNamespace(
    apply=lambda variables, tokens, actions, hidden: variables["params"]
  )
  tokens = jnp.zeros(GRID, jnp.int32)
  return dynamics.token_terms(
    model,
    logits,
    tokens,
    jnp.zeros((1, 1), jnp.int32),
    jax.random.key(0),
    ml_collections.ConfigDict(MASK),
    z_loss=z_loss,
  )[0]


def test_the_z_loss_is_the_squared_logarithm_of_the_normaliser():
  logits = jnp.asarray(
    np.random.default_rng(0).normal(size=(*GRID, CODES)), jnp.float32
  )
  found = terms(logits, True)
  judged = logits[:, 1:]  # The first frame is not predicted.
  wanted = np.mean(np.log(np.exp(judged).sum(-1)) ** 2)
  assert float(found["z"].mean()) == pytest.approx(wanted, rel=1e-5)
  assert set(terms(logits, False)) == {"cross_entropy"}


def test_the_z_loss_moves_the_normaliser_and_no_probability():
  logits = jnp.full((*GRID, CODES), 7.0)
  gradient = jax.grad(lambda x: terms(x, True)["z"].mean())(logits)[:, 1:]
  assert float(gradient.min()) > 0
  np.testing.assert_allclose(gradient, gradient[0, 0, 0, 0, 0], rtol=1e-5)


def test_the_z_loss_is_off_unless_the_config_has_it():
  config = stage_training.load("dynamics")
  assert dynamics.loss_scales(config) == {"cross_entropy": 1.0}
  config.z_loss = 1e-4
  assert dynamics.loss_scales(config) == {"cross_entropy": 1.0, "z": 1e-4}
  assert dynamics.make(config).loss_scales == dynamics.loss_scales(config)
  config.z_loss = -1.0
  with pytest.raises(errors.UserError, match=r"z_loss is -1\.0"):
    dynamics.make(config)


def equations(jaxpr):
  """Yields all equations of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_a_bfloat16_model_has_float32_logits_losses_and_their_gradients():
  """No operation over the codes is in bfloat16 but the product itself."""
  config = stage_training.load("dynamics")
  config.world.num_codes = 77  # No other dimension has this size.
  config.model.transformer.dtype = "bfloat16"
  model = registry.build("dynamics", config, trusted=True)
  frames = config.data.num_frames
  tokens = jnp.zeros((1, frames, 4, 4), jnp.int32)
  actions = jnp.zeros((1, frames - 1), jnp.int32)
  params = jax.eval_shape(
    model.init, jax.random.key(0), tokens, actions, tokens > 0
  )["params"]

  def loss(params):
    found, _ = dynamics.token_terms(
      model, params, tokens, actions, jax.random.key(0), config.mask,
      z_loss=True,
    )  # fmt: skip
    return found["cross_entropy"].mean() + found["z"].mean()

  over_codes = [
    (equation.primitive.name, value.aval.dtype)
    for equation in equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    for value in equation.invars
    if getattr(value.aval, "shape", ())[-1:] == (77,)
    and len(value.aval.shape) > 2
  ]
  softmax = [
    dtype for name, dtype in over_codes if name in ("exp", "reduce_max")
  ]
  assert softmax and set(softmax) == {jnp.dtype("float32")}
  # In bfloat16: the product, its bias, their casts and their gradients.
  low = {name for name, dtype in over_codes if dtype == jnp.bfloat16}
  assert low <= {
    "convert_element_type", "dot_general", "reshape", "reduce_sum", "add_any",
    "add", "transpose", "squeeze", "custom_jvp_call", "jit", "pjit",
  }, low  # fmt: skip
