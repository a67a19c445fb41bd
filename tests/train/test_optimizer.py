"""Tests of the optimizer and its schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.train import optimizer

BASE = dict(name="adamw", peak_lr=1.0, end_lr=0.1, warmup_steps=10)


def rates(steps=100, **changes):
  found = optimizer.settings(BASE | changes, steps)
  return np.array(jax.vmap(optimizer.schedule(found, steps))(jnp.arange(steps)))


def test_warm_up_is_linear_and_its_first_rate_is_not_zero():
  np.testing.assert_allclose(rates()[:10], np.arange(1, 11) / 10, rtol=1e-6)


def test_cosine_falls_from_the_peak_to_the_end():
  found = rates(schedule="cosine")
  assert found.max() == found[10] == 1.0
  np.testing.assert_allclose(found[55], 0.55, rtol=1e-5)  # half way
  assert 0.1 <= found[-1] < 0.101
  assert (np.diff(found[10:]) < 0).all()


def test_wsd_is_constant_and_then_falls_linearly():
  found = rates(schedule="wsd", decay_steps=20)
  np.testing.assert_array_equal(found[10:81], np.ones(71, np.float32))
  np.testing.assert_allclose(np.diff(found[80:]), -0.9 / 20, rtol=1e-4)


def test_constant_stays_at_the_peak():
  assert (rates(schedule="constant")[9:] == 1.0).all()


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(peak_learning_rate=1), r"Unknown field \S*peak_learning_rate"),
    (dict(schedule="cosin"), "schedule is 'cosin'"),
    (dict(name="sgd"), "name is 'sgd'"),
    (dict(schedule="wsd", decay_steps=101), "between 1 and config.steps"),
    (dict(accumulate=0), "accumulate is 0"),
  ],
)
def test_a_wrong_field_is_named(changes, message):
  with pytest.raises(errors.UserError, match=message):
    optimizer.make(BASE | changes, 100, frozenset())


def test_weight_decay_is_selected_by_name_and_not_by_rank():
  params = {
    "block": {
      "scale": jnp.ones((3, 4)),
      "kernel": jnp.ones((3, 4)),
      "bias": jnp.ones((4,)),
      "gate": jnp.ones((4,)),
    }
  }
  mask = optimizer.decay_mask(params, {"scale", "bias"})
  assert mask == {
    "block": {"scale": False, "kernel": True, "bias": False, "gate": True}
  }
  made = optimizer.make(
    dict(name="adamw", peak_lr=0.5, schedule="constant", weight_decay=0.1),
    10,
    {"scale", "bias"},
  )
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = made.transformation.update(
    zeros, made.transformation.init(params), params
  )
  # With no gradient only decay moves a parameter: by 0.5 * 0.1.
  moved = jax.tree.map(lambda x: float(x.ravel()[0]), updates)["block"]
  np.testing.assert_allclose(
    [moved["kernel"], moved["gate"], moved["scale"], moved["bias"]],
    [-0.05, -0.05, 0, 0],
    rtol=1e-6,
  )


def test_clipping_bounds_the_gradient_before_adam():
  params = {"kernel": jnp.zeros((4,))}
  make = lambda clip: (
    optimizer.make(
      dict(
        name="adamw", peak_lr=1.0, schedule="constant", clip_norm=clip, eps=1.0
      ),
      10,
      frozenset(),
    ).transformation
  )
  grads = {"kernel": jnp.full((4,), 50.0)}  # norm 100
  size = lambda clip: float(
    -make(clip).update(grads, make(clip).init(params), params)[0]["kernel"][0]
  )
  # Adam's first update is g / (|g| + eps), which with eps 1 reveals |g|.
  np.testing.assert_allclose(size(0.0), 50 / 51, rtol=1e-5)
  np.testing.assert_allclose(size(1.0), 0.5 / 1.5, rtol=1e-5)


def test_first_moment_can_be_bfloat16():
  made = optimizer.make(BASE | dict(mu_dtype="bfloat16"), 10, frozenset())
  state = made.transformation.init({"kernel": jnp.zeros((4,))})
  assert state[0].mu["kernel"].dtype == jnp.bfloat16
  assert state[0].nu["kernel"].dtype == jnp.float32


def stacked():
  """Returns parameters with the names of a scanned stack of two layers."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    "layers": {
      "space": {
        "qkv": {"kernel": draw(2, 12, 3, 2, 4)},
        "out": {"kernel": draw(2, 2, 4, 12)},
      },
      "mlp_in": {"kernel": draw(2, 12, 24)},
      "mlp_out": {"kernel": draw(2, 24, 12)},
      "mlp_norm": {"scale": draw(2, 12)},
    },
    "embed": {"kernel": draw(12, 12)},
  }


def test_muon_makes_each_matrix_of_a_layer_nearly_orthogonal():
  params = stacked()
  made = optimizer.make(
    dict(name="muon", peak_lr=1.0, schedule="constant"), 10, {"scale"}
  )
  updates, _ = made.transformation.update(
    params, made.transformation.init(params), params
  )
  layers = updates["layers"]
  matrices = {
    "query": layers["space"]["qkv"]["kernel"][1, :, 0].reshape(12, 8),
    "value": layers["space"]["qkv"]["kernel"][1, :, 2].reshape(12, 8),
    "out": layers["space"]["out"]["kernel"][0].reshape(8, 12),
    "mlp_in": layers["mlp_in"]["kernel"][0],
    "mlp_out": layers["mlp_out"]["kernel"][1],
  }
  for name, matrix in matrices.items():
    size = np.linalg.svd(matrix, compute_uv=False)
    # Five Newton-Schulz iterations bring singular values to 0.7 to 1.2.
    assert size.max() / size.min() < 2, name
    # An update is as large as Adam's: its root mean square is 0.2.
    rms = np.sqrt(np.mean(np.square(matrix)))
    np.testing.assert_allclose(rms, 0.2, rtol=0.3, err_msg=name)


def test_muon_updates_all_but_layer_matrices_with_adam():
  params = stacked()
  # A layer of another package's model, whose dimensions are not known.
  params["layers"]["gate"] = {"kernel": jnp.ones((2, 3, 4))}
  make = lambda name: (
    optimizer.make(
      dict(name=name, peak_lr=1.0, schedule="constant", b1=0.0), 10, {"scale"}
    ).transformation
  )
  first = lambda name: make(name).update(
    params, make(name).init(params), params
  )[0]
  muon, adam = first("muon"), first("adamw")
  for get in (
    lambda tree: tree["embed"]["kernel"],
    lambda tree: tree["layers"]["mlp_norm"]["scale"],
    lambda tree: tree["layers"]["gate"]["kernel"],
  ):
    np.testing.assert_allclose(get(muon), get(adam), rtol=1e-5)


def test_muon_descends_and_decays_by_name():
  params = stacked()
  made = optimizer.make(
    dict(name="muon", peak_lr=0.5, schedule="constant", weight_decay=0.1),
    10,
    {"scale"},
  )
  state = made.transformation.init(params)
  updates, _ = made.transformation.update(params, state, params)
  up, down = jax.tree.leaves(params), jax.tree.leaves(updates)
  assert all(jnp.vdot(a, b) < 0 for a, b in zip(up, down, strict=True))
  still = jax.tree.map(jnp.zeros_like, params)
  decayed, _ = made.transformation.update(still, state, params)
  np.testing.assert_allclose(
    decayed["layers"]["mlp_in"]["kernel"],
    -0.05 * params["layers"]["mlp_in"]["kernel"],
    rtol=1e-5,
  )
  assert not decayed["layers"]["mlp_norm"]["scale"].any()
