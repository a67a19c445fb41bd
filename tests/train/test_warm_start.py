"""Tests of warm starts from another model's weights."""

import jax
import numpy as np
import pytest

from genie_jax.checkpoints import manager, reader
from genie_jax.core import errors
from genie_jax.sharding import hosts
from genie_jax.train import warm_start
from genie_jax.weights import param_tree
from tests.fixtures import toy_stage


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A workdir with a checkpoint of the toy stage after one step."""
  folder = tmp_path_factory.mktemp("source")
  _, _, _, state, step = toy_stage.built(toy_stage.config())
  batch = toy_stage.batch(0, 16)
  batch.pop("source")
  state, _ = step(state, batch)
  checkpoints = manager.Checkpoints(folder, keep=1)
  checkpoints.save(
    state.fields(),
    toy_stage.Batches(16, hosts.Share()),
    {"config": {"stage": "toy"}},
  )
  checkpoints.close()
  return folder


def start(source, hidden=toy_stage.HIDDEN, stage_name="toy", seed=7):
  fields = toy_stage.config(seed=seed)
  _, optimizer, like, state, _ = toy_stage.built(
    fields, toy_stage.make_stage(hidden=hidden)
  )
  fresh = jax.device_get(state.params)
  new, report = warm_start.apply(
    state, str(source), stage_name, optimizer, like
  )
  return fresh, new, report


def test_all_weights_of_a_workdir_are_loaded_and_the_optimizer_is_reset(
  workdir,
):
  _, new, report = start(workdir)
  params, extra, _ = reader.load_params(workdir)
  for name in ("up", "down"):
    np.testing.assert_array_equal(
      new.params[name]["kernel"], params[name]["kernel"]
    )
  assert int(new.extra["seen"]) == int(extra["seen"]) > 0
  np.testing.assert_array_equal(new.extra["codes"].mean, extra["codes"]["mean"])
  assert not report.missing and not report.unused
  assert int(new.step) == 0
  moments = next(part for part in new.opt_state if hasattr(part, "mu"))
  assert not any(np.any(x) for x in jax.tree.leaves(moments.mu))


def test_arrays_that_do_not_fit_are_reported(workdir, tmp_path, caplog):
  params, _, _ = reader.load_params(workdir)
  params["up"]["extra_bias"] = np.zeros(3, np.float32)
  params["down"]["kernel"] = params["down"]["kernel"][:, :4]
  del params["up"]["bias"]
  param_tree.save(tmp_path / "model.safetensors", {"toy": params})
  with caplog.at_level("WARNING"):
    fresh, new, report = start(tmp_path)
  np.testing.assert_array_equal(
    new.params["up"]["kernel"], params["up"]["kernel"]
  )
  np.testing.assert_array_equal(
    new.params["down"]["kernel"], fresh["down"]["kernel"]
  )
  assert report.loaded == ("params/up/kernel",)
  assert report.missing["params/down/kernel"] == (
    "the source has shape [16, 4], this model [16, 8]"
  )
  assert report.missing["params/up/bias"] == "not in the source"
  assert set(report.unused) == {
    "params/toy/down/kernel",
    "params/toy/up/extra_bias",
  }
  for name in (*report.missing, *report.unused):
    assert name in caplog.text


def test_bfloat16_weights_of_a_saved_model_become_float32(workdir, tmp_path):
  params, _, _ = reader.load_params(workdir)
  half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), params)
  param_tree.save(tmp_path / "model.safetensors", {"toy": half, "other": half})
  _, new, _ = start(tmp_path)
  assert new.params["up"]["kernel"].dtype == np.float32
  np.testing.assert_array_equal(
    new.params["up"]["kernel"], half["up"]["kernel"].astype(np.float32)
  )


def test_a_part_trained_separately_can_be_loaded_into_a_joint_model(workdir):
  table, names = warm_start._read(str(workdir))
  value, origin = table["params/toy/up/kernel"]
  assert origin == "params/up/kernel" and origin in names
  assert value.shape == (toy_stage.WIDTH, toy_stage.HIDDEN)


def test_a_model_of_another_kind_is_refused(workdir, tmp_path):
  with pytest.raises(errors.UserError, match="none of its 5 arrays fits"):
    start(workdir, hidden=32)
  with pytest.raises(errors.UserError, match="neither a workdir"):
    start(tmp_path)


def test_the_extra_of_a_saved_model_follows_from_its_parameters(
  workdir, tmp_path
):
  calls = []

  def warm(params, extra):
    calls.append(params)
    return {**extra, "seen": extra["seen"] + 5}

  def started(source):
    fields = toy_stage.config(seed=7)
    _, optimizer, like, state, _ = toy_stage.built(fields)
    return warm_start.apply(state, str(source), "toy", optimizer, like, warm)[0]

  params, _, _ = reader.load_params(workdir)
  param_tree.save(tmp_path / "model.safetensors", {"toy": params})
  new = started(tmp_path)
  assert int(new.extra["seen"]) == 5 and len(calls) == 1
  jax.tree.map(np.testing.assert_array_equal, calls[0], params)
  # A workdir has its own; a model that lacks a parameter is not understood.
  started(workdir)
  del params["up"]["bias"]
  param_tree.save(tmp_path / "model.safetensors", {"toy": params})
  assert int(started(tmp_path).extra["seen"]) == 0
  assert len(calls) == 1
