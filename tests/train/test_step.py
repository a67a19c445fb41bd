"""Tests of the train step."""

import re

import jax
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.sharding import hosts
from genie_jax.train import state as state_lib
from genie_jax.train import step as step_lib
from tests.fixtures import toy_stage


def run(fields, steps=3, stage=None, devices=None):
  """Returns the last state and the metrics of each step."""
  stage = stage or toy_stage.make_stage()
  mesh, optimizer, _, state, step = toy_stage.built(fields, stage, devices)
  size = fields.data.batch_size
  layout = step_lib.batch_shardings(stage, mesh, size, optimizer.accumulate)
  seen = []
  for number in range(steps):
    batch = hosts.to_global(
      toy_stage.batch(number, size), layout, hosts.Share()
    )
    state, metrics = step(state, batch)
    seen.append(jax.device_get(metrics))
  return state, seen


@pytest.fixture(scope="module")
def single():
  return run(toy_stage.config(), devices=jax.devices()[:1])


@pytest.mark.parametrize(
  "axes",
  [
    dict(data=8),
    dict(fsdp=8),
    dict(tensor=8),
    dict(fsdp=2, frame=4),
    dict(data=2, fsdp=2, tensor=2),
    dict(fsdp=2, tensor=2, frame=2),
  ],
)
def test_every_mesh_gives_the_same_losses(single, axes):
  axes = dict(data=1, fsdp=1, tensor=1, frame=1) | axes
  fields = toy_stage.config(**{f"mesh__{name}": n for name, n in axes.items()})
  state, seen = run(fields)
  for mine, other in zip(seen, single[1], strict=True):
    for name in mine:
      # Sums in a different order: a few units in the last place of float32.
      np.testing.assert_allclose(
        mine[name], other[name], rtol=2e-5, err_msg=name
      )
  np.testing.assert_allclose(
    state.params["up"]["kernel"],
    single[0].params["up"]["kernel"],
    rtol=1e-3,
    atol=1e-5,
  )  # Larger, because Adam divides by small second moments.


def test_layout_constraints_are_in_the_lowered_step():
  fields = toy_stage.config(mesh__data=2, mesh__fsdp=2, mesh__frame=2)
  _, _, like, _, step = toy_stage.built(fields)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, x in toy_stage.batch(0, 16).items()
    if name != "source"
  }
  text = step.lower(like, batch).as_text()
  assert text.count("sdy.sharding_constraint") >= 2


def test_the_new_state_has_the_same_layout_and_the_old_one_is_deleted():
  fields = toy_stage.config(mesh__fsdp=4, mesh__tensor=2)
  _, _, like, state, step = toy_stage.built(fields)
  batch = {n: x for n, x in toy_stage.batch(0, 16).items() if n != "source"}
  new, _ = step(state, batch)
  assert state.params["up"]["kernel"].is_deleted()
  assert state_lib.shardings(new) == state_lib.shardings(like)


@pytest.mark.parametrize("fsdp, devices", [(1, 1), (2, 2)])
def test_accumulation_equals_the_big_batch_with_uneven_counts(fsdp, devices):
  fields = toy_stage.config(mesh__fsdp=fsdp)
  parts = toy_stage.config(mesh__fsdp=fsdp, optimizer__accumulate=4)
  hidden = toy_stage.batch(0, 16)["hidden"].reshape(4, 4, -1).sum((0, 2))
  assert len(set(hidden)) > 1  # A mean of means would differ.
  devices = jax.devices()[:devices]
  whole, seen_whole = run(fields, devices=devices)
  cut, seen_cut = run(parts, devices=devices)
  for a, b in zip(seen_whole, seen_cut, strict=True):
    for name in ("loss", "losses/fit", "losses/size", "grad_norm", "shown"):
      np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(
    whole.params["up"]["kernel"],
    cut.params["up"]["kernel"],
    rtol=1e-4,
    atol=1e-6,
  )
  assert int(whole.extra["seen"]) == int(cut.extra["seen"])


def test_the_sum_of_gradients_is_split_as_the_parameters_are(single):
  fields = toy_stage.config(
    mesh__fsdp=4, mesh__tensor=2, optimizer__accumulate=4
  )
  _, _, like, _, step = toy_stage.built(fields)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype)
    for name, x in toy_stage.batch(0, 16).items()
    if name != "source"
  }
  lowered = step.lower(like, batch)
  # Two constraints for each parameter: of the zeros and of each sum.
  constraints = re.findall(
    r"sdy.sharding_constraint \S+ <@\w+, (.*?)> : tensor<([\dx]*)xf32>",
    lowered.as_text(),
  )
  for layout, shape in (
    ('[{"fsdp", "frame"}, {"tensor"}]', "8x16"),
    ('[{"tensor"}, {"fsdp", "frame"}]', "16x8"),
    ('[{"tensor"}]', "16"),
  ):
    assert constraints.count((layout, shape)) == 2, constraints
  # The loop over microbatches carries arrays that are split 4 x 2 ways.
  carried = [
    line
    for line in lowered.compile().as_text().splitlines()
    if re.search(r" while\(", line) and "f32[2,8]" in line
  ]
  assert carried and not [line for line in carried if "f32[8,16]" in line]
  _, seen = run(fields)
  for mine, other in zip(seen, single[1], strict=True):
    for name in ("loss", "grad_norm"):
      # Sums in a different order: a few units in the last place of float32.
      np.testing.assert_allclose(mine[name], other[name], rtol=2e-5)


def test_summing_the_counts_does_not_run_the_model():
  def products(accumulate):
    fields = toy_stage.config(optimizer__accumulate=accumulate)
    _, _, like, _, step = toy_stage.built(fields, devices=jax.devices()[:1])
    batch = {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype)
      for name, x in toy_stage.batch(0, 16).items()
      if name != "source"
    }
    text = step.lower(like, batch).compile().as_text()
    return text.count(" dot(") + text.count("__cpu$gemm")

  # The text contains the body of the loop once, whatever its length.
  assert products(4) == products(1) > 0


def test_after_update_and_extra_run_inside_the_step(single):
  state, _ = single
  hidden = sum(toy_stage.batch(n, 16)["hidden"].sum() for n in range(3))
  assert int(state.extra["seen"]) == hidden
  assert np.abs(state.extra["codes"].mean).max() > 0


def test_each_step_draws_different_random_numbers(single):
  noise = [float(metrics["noise"]) for metrics in single[1]]
  assert len(set(noise)) == 3


def test_loss_is_the_sum_of_scaled_losses_and_scales_may_be_schedules():
  stage = toy_stage.make_stage({"fit": lambda step: 2.0 + step, "size": 3.0})
  _, seen = run(toy_stage.config(), stage=stage)
  for number, metrics in enumerate(seen):
    np.testing.assert_allclose(
      metrics["loss"],
      (2 + number) * metrics["losses/fit"] + 3 * metrics["losses/size"],
      rtol=1e-6,
    )


@pytest.mark.parametrize(
  "scales, message",
  [
    ({"fit": 1.0}, "loss 'size' that has no scale"),
    (
      {"fit": 1.0, "size": 1.0, "fitt": 1.0},
      "scale for a loss 'fitt'.*did you mean 'fit'",
    ),
  ],
)
def test_loss_names_must_match_their_scales(scales, message):
  with pytest.raises(errors.UserError, match=message):
    run(toy_stage.config(), steps=1, stage=toy_stage.make_stage(scales))


def test_an_indivisible_batch_raises_a_clear_error():
  with pytest.raises(errors.UserError, match=r"is 12.*multiple of 8"):
    toy_stage.built(toy_stage.config(data__batch_size=12))
  with pytest.raises(
    errors.UserError, match=r"accumulate=4.*or use a multiple of 32"
  ) as raised:
    toy_stage.built(toy_stage.config(optimizer__accumulate=4))
  # One microbatch would split.
  assert "set config.optimizer.accumulate=1, or" in str(raised.value)
  with pytest.raises(errors.UserError, match="use a multiple of 32") as raised:
    toy_stage.built(
      toy_stage.config(optimizer__accumulate=4, data__batch_size=12)
    )
  assert "accumulate=1" not in str(raised.value)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda batch: batch.pop("hidden"), "reads 'hidden'.*inputs, source"),
    (
      lambda batch: batch.update(inputs=batch["inputs"][:, :3]),
      r"float32\[4, 3, 8\].*needs float32\[4, 4, 8\]",
    ),
    (
      lambda batch: batch.update(hidden=batch["hidden"].astype(np.int32)),
      r"int32\[4, 4\].*needs bool\[4, 4\]",
    ),
  ],
)
def test_a_batch_of_the_wrong_form_is_refused(change, message):
  batch = toy_stage.batch(0, 4)
  change(batch)
  with pytest.raises(errors.UserError, match=message):
    step_lib.check_batch(toy_stage.make_stage(), batch, 4)
