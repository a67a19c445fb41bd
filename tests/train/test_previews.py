"""Tests of previews: they are the same on every mesh and never stop a run."""

import dataclasses
import json
import math
import re

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from genie_jax.checkpoints import reader
from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import loop, metrics, previews
from tests.fixtures import stage_training, toy_stage


def train(workdir, stage, **changes):
  fields = toy_stage.config(
    steps=2, eval_every=1, checkpoint_every=1, **changes
  )
  return loop.train(stage, fields, workdir, *toy_stage.makers(fields))


def drawn(workdir):
  return sorted(path.name for path in (workdir / "previews").glob("*"))


def with_show(show):
  return dataclasses.replace(toy_stage.make_stage(), show=show)


def fail(error):
  def show(arrays):
    raise error

  return show


@pytest.mark.parametrize(
  "error",
  [
    errors.UserError("there is no tokenizer"),
    OSError("No space left on device"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"),
  ],
)
def test_previews_that_cannot_be_shown_log_one_warning(tmp_path, caplog, error):
  with caplog.at_level("WARNING", "absl"):
    result = train(tmp_path, with_show(fail(error)))
  assert result.step == 2 and "eval/fit" in result.metrics
  assert not drawn(tmp_path)
  said = [
    record.getMessage()
    for record in caplog.records
    if "no more previews" in record.getMessage()
  ]
  assert len(said) == 1 and "\n" not in said[0] and said[0].startswith("step 1")
  assert str(error).splitlines()[0] in said[0]


def test_other_errors_of_previews_are_raised(tmp_path):
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
    train(tmp_path, with_show(fail(jax.errors.JaxRuntimeError("INTERNAL: x"))))
  # The step was saved before its preview was drawn, so a restart skips it.
  assert reader.valid_steps(tmp_path) == [1]
  line = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
  assert json.loads(line)["step"] == 1 and "eval/fit" in json.loads(line)
  assert train(tmp_path, toy_stage.make_stage()).step == 2
  assert drawn(tmp_path) == ["toy_00000002.png"]


def test_previews_that_do_not_fit_into_memory_are_skipped(
  tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(previews, "free_bytes", lambda mesh: 8)
  with caplog.at_level("WARNING", "absl"):
    assert train(tmp_path, toy_stage.make_stage()).step == 2
  assert not drawn(tmp_path)
  (said,) = [x for x in caplog.messages if "no more previews" in x]
  assert re.search(r"GiB on each device, of which .* are free next to", said)


def test_free_memory_is_the_minimum_over_devices_and_unknown_on_a_cpu():
  class Device:
    def __init__(self, stats):
      self.memory_stats = lambda: stats

  class Some:
    local_devices = (
      Device(None),
      Device({"bytes_limit": 9, "bytes_in_use": 2}),
      Device({"bytes_limit": 9, "bytes_in_use": 4}),
    )

  assert previews.free_bytes(Some) == 5
  assert previews.free_bytes(mesh_lib.make(toy_stage.config().mesh)) is None


def test_previews_are_the_same_on_every_mesh(tmp_path):
  for name, sizes in (
    ("one", dict(fsdp=8)),
    ("other", dict(data=1, fsdp=2, tensor=2, frame=2)),
  ):
    train(
      tmp_path / name,
      toy_stage.make_stage(),
      **{f"mesh__{axis}": size for axis, size in sizes.items()},
    )
    assert drawn(tmp_path / name) == ["toy_00000001.png", "toy_00000002.png"]
  one, other = (
    np.asarray(
      Image.open(tmp_path / name / "previews/toy_00000001.png"), np.int32
    )
    for name in ("one", "other")
  )
  # Sums are added in a different order and then rounded.
  assert np.abs(one - other).max() <= 1


def rollout_program(sizes):
  """Returns a dynamics model's preview on a mesh, `Pictures` and the state."""
  config = stage_training.load("dynamics")
  config.model.transformer.update(num_layers=3, unroll=1)
  config.mesh.update(sizes)
  steps = stage_training.steps(config, math.prod(sizes.values()))
  batch, state = (
    stage_training.random_batch(steps.stage, config),
    steps.create(),
  )
  clip = {name: x[:1] for name, x in batch.items()}
  shown = []
  stage = dataclasses.replace(
    steps.stage, show=lambda arrays: shown.append(arrays) or {}
  )
  made = previews.Pictures(stage, steps.mesh, steps.like, epath.Path("unused"))
  made.draw(1, state, clip, jax.random.key(0), metrics.Many([]))
  return shown[0], made, state


@pytest.mark.slow
def test_a_rollout_on_a_split_model_gathers_one_layer_at_a_time():
  (truth, whole), _, _ = rollout_program(
    dict(data=1, fsdp=1, tensor=1, frame=1)
  )
  (same, split), made, state = rollout_program(
    dict(data=1, fsdp=2, tensor=2, frame=2)
  )
  assert whole.shape == truth.shape and (truth == same).all()
  assert (whole[0] == truth[0]).all()
  # A draw may differ if sums in a different order change a score.
  assert (whole == split).mean() > 0.9
  text = made._program.as_text()
  kernel = state.params["stack"]["layers"]["mlp_in"]["kernel"]
  layers, rows, columns = kernel.shape
  assert kernel.sharding.shard_shape(kernel.shape) == (
    layers,
    rows // 4,
    columns // 2,
  )
  gathers = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", text)
  assert f"{rows},{columns // 2}" in [
    shape.removeprefix("1,") for shape in gathers
  ]
  whole_stack = f"{layers},{rows}"
  assert not [shape for shape in gathers if shape.startswith(whole_stack)]
