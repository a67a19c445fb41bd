"""Tests of the losses and updates that stages with a quantizer share."""

import dataclasses

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.nn import codes as codes_lib
from genie_jax.nn import fsq, quantizers, vq
from genie_jax.sharding import hosts
from genie_jax.stages import autoencoding
from genie_jax.train import stage
from genie_jax.train import step as step_lib
from tests.fixtures import toy_stage

CODEBOOK = dict(
  learn_by="average", share_decay=0.9, centre_decay=0.9, dead_below=0.1
)
LOSS = dict(squared_error=100.0, codebook=1.0, commitment=0.25)


def config(quantizer=None, loss=None, accumulate=1, **codebook):
  """Returns the groups of a config with which quantizers are trained."""
  return ml_collections.ConfigDict(
    dict(
      codebook={**CODEBOOK, **codebook},
      loss=LOSS if loss is None else loss,
      optimizer=dict(accumulate=accumulate),
      **({"quantizer": quantizer} if quantizer else {}),
    )
  )


def state(share):
  """Returns a codebook of four codes, whose centres are the codes plus 3."""
  table = np.arange(8, dtype=np.float32).reshape(4, 2)
  statistics = vq.CodeStatistics(
    share=np.array(share, np.float32),
    mass=np.full(4, 2.0, np.float32),
    total=2 * (table + 3),
    age=np.float32(50),
  )
  return {"codes": {"codebook": table}, "other": 1}, {"codes": statistics}


@pytest.mark.parametrize("learn_by", ["average", "gradient"])
def test_codes_learn_as_configured_and_dead_ones_are_replaced(learn_by):
  codes = autoencoding.Codes(vq.Codebook(4, 2), config(learn_by=learn_by))
  params, extra = state([0.5, 0.0, 0.25, 0.25])
  fresh = np.full((4, 2), -1, np.float32)
  found, extra = jax.jit(codes.after_update)(
    params, extra, fresh, jax.random.key(0)
  )
  table = params["codes"]["codebook"]
  wanted = table + 3 if learn_by == "average" else table.copy()
  wanted[1] = -1
  np.testing.assert_allclose(found["codes"]["codebook"], wanted)
  assert found["other"] == 1
  assert float(extra["codes"].share[1]) == 0.25


def quantising_stage(codes, mean_extra=True):
  """Returns a stage that only quantises the toy stage's inputs."""
  module = codes.quantizer

  def init(rng):
    params = module.init(rng, np.zeros((1, toy_stage.WIDTH), np.float32))
    return {"codes": params["params"]}, codes.fresh()

  def loss(params, extra, batch, rng, step):
    del step
    made = module.apply({"params": params["codes"]}, batch["inputs"])
    extra, aux = codes.update(extra, made, rng)
    losses = {
      name: stage.Term.of(loss) for name, loss in codes.losses(made).items()
    }
    return stage.Outcome(losses, {}, extra, aux)

  toy = toy_stage.make_stage()
  return dataclasses.replace(
    toy,
    features={"inputs": toy.features["inputs"]},
    loss_scales={name: codes.loss_scales[name] for name in vq.Codebook.LOSSES},
    init=init,
    loss=loss,
    after_update=codes.after_update,
    mean_extra=mean_extra,
  )


def codes_after_steps(accumulate, mean_extra=True):
  """Returns codes and statistics after three steps in so many parts."""
  codes = autoencoding.Codes(
    vq.Codebook(4, toy_stage.WIDTH, unit_norm=False),
    # No code dies: replacements are drawn from the last part alone.
    config(accumulate=accumulate, dead_below=0.0),
  )
  made = quantising_stage(codes, mean_extra)
  mesh, optimizer, _, state, step = toy_stage.built(
    toy_stage.config(optimizer__accumulate=accumulate),
    made,
    jax.devices()[:1],
  )
  layout = step_lib.batch_shardings(made, mesh, 16, optimizer.accumulate)
  for number in range(3):
    batch = {"inputs": toy_stage.batch(number, 16)["inputs"]}
    state, _ = step(state, hosts.to_global(batch, layout, hosts.Share()))
  return jax.device_get((state.params["codes"], state.extra["codes"]))


def test_statistics_decay_once_a_step_however_it_is_split():
  whole = jax.tree.leaves(codes_after_steps(1))
  for found in (
    jax.tree.leaves(codes_after_steps(4)),
    jax.tree.leaves(codes_after_steps(2)),
  ):
    for one, other in zip(whole, found, strict=True):
      np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)
  # The parts one after the other would decay four times a step.
  in_turn = jax.tree.leaves(codes_after_steps(4, mean_extra=False))
  assert not np.allclose(whole[1], in_turn[1], rtol=1e-2)


def test_a_loss_that_averages_replace_has_no_gradient():
  inputs = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)

  def gradients(**codebook):
    codes = autoencoding.Codes(vq.Codebook(4, 2), config(**codebook))
    params = nn.unbox(codes.quantizer.init(jax.random.key(0), inputs))["params"]

    def loss(params, x):
      losses = codes.losses(codes.quantizer.apply({"params": params}, x))
      return sum(value.mean() for value in losses.values()), losses

    both = jax.grad(loss, argnums=(0, 1), has_aux=True)
    (table, x), losses = both(params, inputs)
    return np.abs(table["codebook"]).max(), np.asarray(x), losses

  with_it, x, losses = gradients()
  without, same_x, same_losses = gradients(loss_gradient=False)
  assert with_it > 0 and without == 0
  # The encoder's gradient and what is reported stay.
  np.testing.assert_array_equal(x, same_x)
  assert np.abs(x).max() > 0
  for name, value in losses.items():
    np.testing.assert_array_equal(value, same_losses[name])
  assert gradients(learn_by="gradient")[0] == with_it


def test_codes_must_learn_by_something():
  with pytest.raises(errors.UserError, match="codes would never learn"):
    autoencoding.check(config(learn_by="gradient", loss_gradient=False))


def test_code_usage_counts_codes_above_a_tenth_of_an_even_share():
  share = np.array([0.9, 0.026, 0.024, 0.05], np.float32)
  extra = {"codes": codes_lib.Usage(share, np.float32(50))}
  codes = autoencoding.Codes(fsq.FSQ((2, 2)), config())
  metrics = codes.metrics(extra)
  assert float(metrics["code_usage"].mean()) == 0.75
  assert metrics == autoencoding.Codes(vq.Codebook(4, 2), config()).metrics(
    state(share)[1]
  )


def test_fsq_changes_no_parameters_and_averages_the_use_of_codes():
  codes = autoencoding.Codes(fsq.FSQ((3, 2)), config())
  x = np.random.default_rng(0).normal(size=(5, 40, 2)).astype(np.float32)
  made = codes.quantizer.apply({}, x)
  extra, aux = jax.jit(codes.update)(codes.fresh(), made, jax.random.key(0))
  share = np.bincount(np.asarray(made.codes).ravel(), minlength=6) / 200
  # The first batch has a weight of nine tenths.
  np.testing.assert_allclose(extra["codes"].share, 0.9 * share, rtol=1e-5)
  params = {"other": 1}
  found, after = codes.after_update(params, extra, aux, jax.random.key(1))
  assert found == params and after["codes"] is extra["codes"]


def test_scales_of_other_quantizers_losses_are_ignored():
  assert autoencoding.Codes(vq.Codebook(4, 2), config()).loss_scales == LOSS
  rounding = autoencoding.Codes(fsq.FSQ((2, 2)), config())
  assert rounding.loss_scales == {"squared_error": 100.0}
  # The scale of a loss that no quantizer has is kept, so that the train step
  # reports it.
  odd = config(loss={"squared_error": 1.0, "squared_eror": 1.0})
  assert "squared_eror" in autoencoding.Codes(fsq.FSQ((4,)), odd).loss_scales
  with pytest.raises(errors.UserError, match=r"config.loss.commitment is miss"):
    autoencoding.Codes(
      vq.Codebook(4, 2), config(loss={"squared_error": 1.0, "codebook": 1.0})
    )


@pytest.mark.parametrize("quantizer", [None, *quantizers.names()])
def test_losses_are_those_of_pixels_and_of_the_quantizer(quantizer):
  frames = np.full((1, 2, 4, 4, 3), 0.5, np.float32)
  more = {"more": np.full((3,), 2.0)}
  found = autoencoding.losses(frames, frames - 0.5, more)
  assert {name: float(term.mean()) for name, term in found.items()} == {
    "squared_error": 0.25,
    "more": 2.0,
  }
  group = quantizer and dict(name=quantizer, levels=())
  autoencoding.check(config(quantizer=group))


def with_centre(side, weight):
  return ml_collections.ConfigDict(
    dict(world=dict(height=8, width=6), centre=dict(side=side, weight=weight))
  )


def test_pixels_in_the_middle_count_more():
  weights = autoencoding.pixel_weights(with_centre(2, 5.0))
  assert weights.shape == (8, 6, 1)
  assert weights[3:5, 2:4].mean() == 5 and weights.sum() == 48 + 4 * 4
  frames = np.zeros((1, 2, 8, 6, 3), np.float32)
  wrong = frames.copy()
  wrong[:, :, 3:5, 2:4] = 1
  found = autoencoding.losses(wrong, frames, {}, weights=weights)
  assert float(found["squared_error"].mean()) == pytest.approx(20 / 64)


def test_without_a_weight_all_pixels_count_the_same():
  assert autoencoding.pixel_weights(with_centre(2, 1.0)) is None
  assert autoencoding.pixel_weights(config()) is None


@pytest.mark.parametrize("side, weight", [(0, 2.0), (7, 2.0), (2, 0.0)])
def test_a_square_that_does_not_fit_is_one_line(side, weight):
  with pytest.raises(errors.UserError, match=r"config\.centre has side="):
    autoencoding.pixel_weights(with_centre(side, weight))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(learn_by="averages"), "did you mean 'average'"),
    (dict(share_decay=1.0), "share_decay=1.0 must be at least 0 and less"),
    (dict(centre_decay=-0.1), "centre_decay=-0.1"),
    (
      dict(quantizer=dict(name="fsq"), share_decay=1.0),
      "share_decay=1.0 must be at least 0 and less",
    ),
    (
      dict(quantizer=dict(name="fqs")),
      "quantizer.name='fqs' is unknown.*'fsq'",
    ),
    (dict(quantizer=dict(levels=())), "quantizer.name=None is not the name"),
    (
      dict(quantizer=dict(name="no_such_package:Quantizer")),
      "no_such_package cannot be imported",
    ),
  ],
)
def test_an_invalid_quantizer_config_raises_a_one_line_error(changes, message):
  with pytest.raises(errors.UserError, match=message) as raised:
    autoencoding.check(config(**changes))
  assert "\n" not in str(raised.value)


def test_bytes_become_floats_and_error_frames_are_grey_without_error():
  frames = np.array([[0, 255]], np.uint8)
  assert np.asarray(autoencoding.as_float(frames)).tolist() == [[0.0, 1.0]]
  truth, predicted = np.array([0.5, 0.5, 0.2]), np.array([0.5, 0.7, 0.0])
  found = autoencoding.error_frames(truth, predicted)
  assert found[0] == 128 and found[1] > 200 and found[2] < 60


@pytest.mark.parametrize("learn_by", ["average", "gradient"])
def test_trained_codes_without_statistics_are_kept(learn_by):
  """A saved model has codes and no statistics; training must not lose them."""
  rng = np.random.default_rng(0)
  angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
  table = np.stack([np.cos(angles), np.sin(angles)], -1).astype(np.float32)
  quantizer = vq.Codebook(16, 2)
  codes = autoencoding.Codes(quantizer, config(learn_by=learn_by))
  params = {"codes": {"codebook": table}}

  @jax.jit
  def step(params, extra, inputs, rng):
    quantized = quantizer.apply({"params": params["codes"]}, inputs)
    extra, aux = codes.update(extra, quantized, rng)
    return codes.after_update(params, extra, aux, rng)

  def train(extra, steps):
    found = params
    for number in range(steps):
      chosen = rng.integers(0, 16, 8)  # So at least 8 codes are not used.
      inputs = table[chosen] + 0.01 * rng.normal(size=(8, 2))
      found, extra = step(
        found, extra, inputs.astype(np.float32), jax.random.key(number)
      )
    return found["codes"]["codebook"]

  kept = train(codes.warm(params, codes.fresh()), 10)
  np.testing.assert_allclose(kept, table, atol=0.05)
  # What fresh statistics do: the first batch replaces all codes.
  lost = np.abs(np.asarray(train(codes.fresh(), 1)) - table).max(-1)
  assert (lost > 0.1).sum() >= 8
