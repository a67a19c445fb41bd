"""Tests of learning rates that transfer: a coordinate check of every rule.

As in the coordinate check of arXiv:2203.03466 (appendix D.1), what an update
does must not depend on the size of the model. Here each kind of parameter is
updated alone, and the loss must fall by the same amount at all widths and
depths: the slope of log(change) in log(size) is 0. A missing factor of m or d
makes it 1 or -1. The loss and not the logits is measured, because an update
changes each logit by a part along the gradient, which has the size that the
rules promise, and a random part, which for the vectors of norms is larger and
shrinks with the width.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genie_jax.core import errors
from genie_jax.models import dynamics
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import transfer
from tests.fixtures import stage_training

GRID, FRAMES, CODES, ACTIONS, CLIPS = (2, 2), 3, 32, 4, 8
WIDTHS, DEPTHS = (32, 64, 128, 256), (2, 4, 8, 16)
BASE = {"base_width": WIDTHS[0], "base_layers": DEPTHS[0]}
SEEDS = (0, 1)
# A missing factor causes a slope of 1; a quarter is left to finite sizes.
TOLERANCE = 0.25


class Built:
  """A dynamics model of one shape, its batch and its compiled gradient."""

  def __init__(self, width, layers):
    self.model = dynamics.Dynamics(
      grid=GRID,
      num_codes=CODES,
      num_latent_actions=ACTIONS,
      transformer=dict(
        num_layers=layers,
        width=width,
        num_heads=width // 8,
        head_dim=8,
        mlp_dim=2 * width,
        dtype="float32",
      ),
      last_frame=True,
      last_frame_reach=1,
    )
    rng = np.random.default_rng(0)
    shape = (CLIPS, FRAMES, *GRID)
    tokens = rng.integers(0, CODES, shape).astype(np.int32)
    actions = rng.integers(0, ACTIONS, (CLIPS, FRAMES - 1)).astype(np.int32)
    hidden = rng.uniform(size=shape) < 0.5
    inputs = (tokens, actions, hidden)
    self.logits = jax.jit(
      lambda params: self.model.apply({"params": params}, *inputs)
    )

    def loss(params):
      entropy = optax.softmax_cross_entropy_with_integer_labels(
        self.model.apply({"params": params}, *inputs), tokens
      )
      return (entropy * hidden).sum() / hidden.sum()

    self.gradient = jax.jit(jax.grad(loss))
    self.init = jax.jit(lambda rng: self.model.init(rng, *inputs)["params"])

  def boxed(self, seed):
    return self.init(jax.random.key(seed))


@functools.cache
def built(width, layers):
  return Built(width, layers)


@functools.cache
def started(width, layers, seed):
  """Returns initial parameters of CompleteP and their gradient.

  The readout is ten times smaller than at the start of a run, at all sizes.
  Otherwise a part of the gradient of the final norm, which makes all logits
  smaller, has the size of the initial logits, and they shrink with the width.
  """
  made = built(width, layers)
  boxed = made.boxed(seed)
  params = nn.unbox(transfer.scale_init(boxed, "completep", *BASE.values()))
  readout = params["to_logits"]
  readout = {**readout, "kernel": 0.1 * readout["kernel"]}
  params = {**params, "to_logits": readout}
  return params, made.gradient(params)


def kind_of(path):
  """Returns the kind of a parameter."""
  names = tuple(key.key for key in path)
  found = transfer._KINDS.get(names[-2:], transfer._KINDS.get(names[-1:]))
  return found[0]


def change(width, layers, kind, epsilon):
  """Returns how much one update of one kind alone reduces the loss.

  It is the product of gradient and update, the change to first order, so no
  learning rate is too large for it.
  """
  # One update of Adam is the sign of the gradient if epsilon is small, and
  # the gradient itself, divided by it, if it is large.
  optimizer = optimizer_lib.make(
    dict(
      peak_lr=max(epsilon, 1.0),
      schedule="constant",
      eps=epsilon,
      transfer="completep",
      **BASE,
    ),
    1,
    frozenset(),
  ).transformation
  total = 0.0
  for seed in SEEDS:
    params, gradient = started(width, layers, seed)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    products = jax.tree_util.tree_map_with_path(
      lambda path, g, u: float((g * u).sum()) if kind_of(path) == kind else 0.0,
      gradient,
      updates,
    )
    total -= sum(jax.tree.leaves(products))
  return total


def slope(sizes, values):
  return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def slopes(axis, kind, epsilon):
  """Returns the slope of the change over widths or over depths."""
  if axis == "width":
    return slope(WIDTHS, [change(w, 2, kind, epsilon) for w in WIDTHS])
  return slope(DEPTHS, [change(32, n, kind, epsilon) for n in DEPTHS])


# The scales of queries and keys are shared by all heads. Before training, the
# heads' gradients have random signs, so their sum depends on the width.
CASES = [
  pytest.param(
    # The deep models compile for a long time.
    *(axis, kind, epsilon),
    marks=[pytest.mark.slow] if axis == "depth" else [],
  )
  for axis in ("width", "depth")
  for kind in transfer.RULES
  for epsilon in (1e-20, 1e6)
  if (axis, kind) != ("width", "head_norm")
]


@pytest.mark.parametrize("axis, kind, epsilon", CASES)
def test_each_kind_of_parameter_moves_the_loss_equally_at_all_sizes(
  axis, kind, epsilon
):
  assert abs(slopes(axis, kind, epsilon)) < TOLERANCE


# Kind, field of `Factors`, the factor without its dependence, and where the
# check must notice.
WRONG = [
  ("into_branch", "update", lambda m, d: 1.0, "width", 1e-20),
  ("out_of_branch", "update", lambda m, d: 1 / d, "width", 1e-20),
  ("out_of_branch", "update", lambda m, d: 1 / m, "depth", 1e-20),
  ("input_kernel", "update", lambda m, d: 1.0, "width", 1e-20),
  ("readout", "update", lambda m, d: 1.0, "width", 1e-20),
  ("embedding", "update", lambda m, d: 1 / m, "width", 1e-20),
  ("embedding", "gradient", lambda m, d: 1.0, "width", 1e6),
  ("into_branch", "gradient", lambda m, d: d, "width", 1e6),
  ("into_branch", "gradient", lambda m, d: m, "depth", 1e6),
  ("out_of_branch", "gradient", lambda m, d: 1.0, "width", 1e6),
  ("input_kernel", "gradient", lambda m, d: 1.0, "width", 1e6),
  ("readout", "gradient", lambda m, d: m, "width", 1e6),
  ("branch_norm", "gradient", lambda m, d: d, "width", 1e6),
  ("branch_norm", "gradient", lambda m, d: m, "depth", 1e6),
  ("head_norm", "gradient", lambda m, d: 1.0, "depth", 1e6),
  ("final_norm", "gradient", lambda m, d: 1.0, "width", 1e6),
]


@pytest.mark.parametrize(
  "kind, field, factor, axis, epsilon",
  [
    pytest.param(*case, marks=[pytest.mark.slow] if "depth" in case else [])
    for case in WRONG
  ],
)
def test_the_check_fails_when_a_factor_is_wrong(
  kind, field, factor, axis, epsilon, monkeypatch
):
  right = transfer.RULES[kind]
  monkeypatch.setitem(
    transfer.RULES,
    kind,
    lambda m, d: dataclasses.replace(right(m, d), **{field: factor(m, d)}),
  )
  assert abs(slopes(axis, kind, epsilon)) > 3 * TOLERANCE


def initial(width, layers, name):
  """Returns the initial parameters of a transfer."""
  boxed = built(width, layers).boxed(0)
  return nn.unbox(transfer.scale_init(boxed, name, *BASE.values()))


@pytest.mark.parametrize("name, wanted", [("completep", -0.5), ("none", 0.0)])
def test_initial_logits_shrink_with_the_root_of_the_width(name, wanted):
  # The final norm makes the inputs of the readout 1 at every width.
  sizes = [
    float(built(width, 2).logits(initial(width, 2, name)).std())
    for width in WIDTHS
  ]
  assert slope(WIDTHS, sizes) == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("name, wanted", [("completep", -1.0), ("none", -0.5)])
def test_a_branch_shrinks_with_the_number_of_layers(name, wanted):
  sizes = []
  for layers in DEPTHS:
    params = initial(32, layers, name)
    kernel = params["stack"]["layers"]["mlp_out"]["kernel"]
    sizes.append(float(kernel.std()))
  assert slope(DEPTHS, sizes) == pytest.approx(wanted, abs=0.02)


def test_the_base_model_trains_as_without_a_transfer():
  made = built(*BASE.values())
  outcomes = []
  for name in ("none", "mup", "completep"):
    params = initial(*BASE.values(), name)
    fields = dict(
      peak_lr=1e-2, schedule="constant", weight_decay=0.1, transfer=name, **BASE
    )
    optimizer = optimizer_lib.make(fields, 1, frozenset()).transformation
    state = optimizer.init(params)
    for _ in range(2):
      updates, state = optimizer.update(made.gradient(params), state, params)
      params = optax.apply_updates(params, updates)
    outcomes.append(params)
  for other in outcomes[1:]:
    jax.tree.map(np.testing.assert_array_equal, outcomes[0], other)


def test_the_decay_of_weights_is_the_same_at_all_sizes():
  params = {"stack": {"layers": {"mlp_in": {"kernel": jnp.ones((2, 256, 8))}}}}
  fields = dict(
    peak_lr=0.1, schedule="constant", weight_decay=0.5, transfer="mup", **BASE
  )
  optimizer = optimizer_lib.make(fields, 1, frozenset()).transformation
  none = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(none, optimizer.init(params), params)
  np.testing.assert_allclose(jax.tree.leaves(updates)[0], -0.05, rtol=1e-6)


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"transfer": "mupp"},
      "config.optimizer.transfer is 'mupp'; it must be one",
    ),
    ({"transfer": "mup"}, "base_width is 0; it must be at least 1"),
    (
      {"transfer": "completep", "base_width": 8},
      "base_layers is 0; it must be at least 1 for completep",
    ),
    (
      {"transfer": "mup", "base_width": 8, "name": "muon"},
      "config.optimizer.name is 'muon'; it must be 'adamw' for a transfer",
    ),
  ],
)
def test_an_incomplete_transfer_is_refused(changes, message):
  with pytest.raises(errors.UserError, match=message):
    optimizer_lib.make(changes, 1, frozenset())


def test_a_parameter_without_a_rule_is_refused():
  with pytest.raises(
    errors.UserError, match="no factors for the parameter a/b"
  ):
    transfer.factors({"a": {"b": jnp.zeros(3)}}, "mup", 8, 0)


def test_every_parameter_of_a_dynamics_stage_has_a_rule():
  config = stage_training.load("dynamics")
  config.model.update(last_frame=True, last_frame_reach=1)
  config.optimizer.update(transfer="completep", base_width=8, base_layers=1)
  stage = stage_training.registry.make(config)
  params, _ = jax.eval_shape(stage.init, jax.random.key(0))
  found = transfer.factors(params, "completep", 8, 1)
  leaves = jax.tree.leaves(found)
  assert all(isinstance(leaf, transfer.Factors) for leaf in leaves)
  assert len(leaves) == len(jax.tree.leaves(nn.unbox(params)))
