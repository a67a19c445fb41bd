"""Tests of the changes with which a run may resume."""

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import pytest

from genie_jax.checkpoints import manager, reader
from genie_jax.cli import main
from genie_jax.core import buckets, errors
from genie_jax.core import config as config_lib
from genie_jax.data import manifest
from genie_jax.train import fork, loop, workdir
from tests.fixtures import stage_data, toy_stage

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def started(folder, name):
  """Writes a shipped config as that of a run; returns a function.

  The function checks whether the run may resume with changes: {"a.b": value},
  None to remove a field.
  """
  config = config_lib.load(str(EXPERIMENTS / name))
  workdir.write(folder, config_lib.to_dict(config))

  def resume(**changes):
    fields = config_lib.load(str(EXPERIMENTS / name))
    with fields.unlocked():
      for path, value in changes.items():
        *groups, field = path.split(".")
        group = fields
        for part in groups:
          group = group[part]
        if value is None:
          del group[field]
        else:
          group[field] = value
    workdir.check(folder, config_lib.to_dict(fields), resumes=True)

  return resume


def test_a_run_of_the_largest_model_may_resume_on_fewer_or_more_chips(tmp_path):
  resume = started(tmp_path, "platformers/dynamics.py")
  stack = "model.transformer"
  resume(**{"optimizer.accumulate": 1, "mesh.data": 8})
  resume(
    **{
      f"{stack}.remat": "full",
      f"{stack}.unroll": 2,
      f"{stack}.attention": "xla",
      "mesh.frame": 2,
      "data.num_workers": 0,
      "data.num_threads": 4,
    }
  )
  resume(**{f"{stack}.attention": None})
  for name, value in (
    (f"{stack}.num_layers", 47),
    (f"{stack}.dtype", "float32"),
    ("optimizer.mu_dtype", "bfloat16"),
    ("optimizer.b1", 0.8),
    ("data.batch_size", 256),
    ("data.path", "elsewhere"),
    ("seed", 1),
    ("model.actions_enter", "concat"),
  ):
    with pytest.raises(errors.UserError, match=f"config.{name}="):
      resume(**{name: value})


@pytest.mark.parametrize(
  "name, stacks",
  [
    ("joint.py", ("dynamics.transformer", "lam.encoder", "lam.decoder")),
    ("lam.py", ("encoder", "decoder")),
    ("tokenizer.py", ("encoder", "decoder")),
  ],
)
def test_fields_of_execution_may_change_in_every_stack(tmp_path, name, stacks):
  resume = started(tmp_path, f"platformers/{name}")
  for stack in stacks:
    for field, value in (
      ("remat", "dots"),
      ("attention", "xla"),
      ("unroll", 4),
    ):
      resume(**{f"model.{stack}.{field}": value})


@pytest.mark.parametrize("name", ["joint.py", "lam.py", "tokenizer.py"])
def test_runs_from_before_quantizers_had_names_may_resume(tmp_path, name):
  resume = started(tmp_path, f"coinrun/{name}")
  path = tmp_path / workdir.FILE
  config = json.loads(path.read_text())
  assert config.pop("quantizer") == {"name": "vq", "levels": []}
  path.write_text(json.dumps(config))
  resume()
  resume(quantizer=None)
  for field, value in (("name", "fsq"), ("levels", (8, 8))):
    with pytest.raises(errors.UserError, match=f"config.quantizer.{field}="):
      resume(**{f"quantizer.{field}": value})


def test_data_may_move_but_not_change(tmp_path):
  resume = started(tmp_path, "platformers/dynamics.py")
  # The run is of a version that did not write the fingerprint.
  resume(**{"data.fingerprint": "a" * 64})
  with pytest.raises(errors.UserError, match=r"config.data.path=''"):
    resume(**{"data.fingerprint": "a" * 64, "data.path": "elsewhere"})
  path = tmp_path / workdir.FILE
  config = json.loads(path.read_text())
  config["data"]["fingerprint"] = "a" * 64
  path.write_text(json.dumps(config))
  resume(**{"data.fingerprint": "a" * 64, "data.path": "elsewhere"})
  for changes in ({}, {"data.path": "elsewhere"}):
    with pytest.raises(
      errors.UserError, match=f"fingerprint {'a' * 12}, but .* {'b' * 12};"
    ):
      resume(**{"data.fingerprint": "b" * 64, **changes})


class _Position:
  """A data iterator without data."""

  def get_state(self):
    return {"next_batch": 3}


def sealed(folder, **changes):
  """Writes config.json and a checkpoint that seals the same config.

  Returns:
    The run's folder and the config.
  """
  run = buckets.run_folder(folder)
  config = config_lib.load(f"{EXPERIMENTS / 'coinrun/lam.py'}:smoke")
  config = config_lib.to_dict(config) | changes
  workdir.write(run, config)
  checkpoints = manager.Checkpoints(run, 2)
  fields = {"step": jnp.int32(3), "params": {"w": jnp.ones(2)}}
  checkpoints.save(fields, _Position(), {"config": config})
  checkpoints.close()
  return run, config


@pytest.mark.parametrize(
  "content, why",
  [
    (None, "does not exist"),
    (b'{"seed": 0', "is not valid JSON"),
    (b"[]", "must be a group of fields"),
    (b"\xff", "is not valid JSON"),
    (lambda config: config.update(seed=5), "was edited: config.seed is 5"),
    (
      lambda config: config["model"]["encoder"].update(width=999),
      "was edited: config.model.encoder.width is 999",
    ),
    (lambda config: config.pop("model"), "was edited: config.model."),
  ],
)
def test_the_config_sealed_in_the_checkpoint_decides(
  tmp_path, caplog, content, why
):
  run, config = sealed(tmp_path)
  path = tmp_path / workdir.FILE
  edited = json.loads(path.read_text())
  if callable(content):
    content(edited)
    content = json.dumps(edited).encode()
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  assert workdir.read(run) == config
  warnings = [r.getMessage() for r in caplog.records if r.levelname[0] == "W"]
  assert len(warnings) == 1 and len(warnings[0].splitlines()) == 1
  assert why in warnings[0] and "sealed in the newest checkpoint" in warnings[0]
  workdir.check(run, config, resumes=True)
  with pytest.raises(errors.UserError, match=r"config\.seed=0, but now it"):
    workdir.check(run, config | {"seed": 5}, resumes=True)


def test_fields_that_may_change_are_those_of_the_file(tmp_path, caplog):
  run, config = sealed(tmp_path)
  workdir.write(run, config | {"steps": 77})
  found = workdir.read(run)
  assert found is not None and found["steps"] == 77
  assert "sealed" not in caplog.text


@pytest.mark.parametrize("content", ["[]", '{"started": "now"}', "{", "null"])
def test_another_started_file_is_one_line(tmp_path, content):
  (tmp_path / workdir.STARTED).write_text(content)
  with pytest.raises(errors.UserError, match=r"started\.json"):
    workdir.first_start(buckets.run_folder(tmp_path))


@pytest.mark.parametrize("content", ["[]", '{"step": -1, "source": "a"}', "7"])
def test_another_fork_file_is_one_line(tmp_path, content):
  (tmp_path / fork.FILE).write_text(content)
  with pytest.raises(errors.UserError, match=r"fork\.json"):
    fork.check(buckets.run_folder(tmp_path), fork.Fork("a", 1), True)


def test_a_run_resumes_with_other_microbatches(tmp_path):
  for steps, accumulate in ((2, 1), (4, 2)):
    fields = toy_stage.config(
      steps=steps, optimizer__accumulate=accumulate, eval_batches=0
    )
    result = loop.train(
      toy_stage.make_stage(), fields, tmp_path, toy_stage.makers(fields)[0]
    )
    assert result.step == steps
  assert (
    reader.read_note(buckets.run_folder(tmp_path) / reader.FOLDER / "4")[
      "iterator"
    ]["next"]
    == 4
  )


def train(run, tokens, *overrides):
  """Trains the smoke mode with AdamW, which compiles faster than Muon."""
  return main.main(
    [
      "train",
      "--config",
      f"{EXPERIMENTS / 'coinrun/dynamics.py'}:smoke",
      "--workdir",
      str(run),
      f"--config.data.path={tokens}",
      "--config.optimizer.name=adamw",
      "--config.start=random",
      "--config.data.batch_size=16",
      "--config.eval_batches=0",
      *overrides,
    ]
  )


@pytest.mark.slow
def test_a_run_resumes_with_other_microbatches_and_remat_and_moved_data(
  tmp_path, capsys
):
  tokens = stage_data.write_tokens(
    tmp_path / "tokens", (64, 64, 3), grid=(4, 4), num_codes=64
  )
  run = tmp_path / "run"
  assert train(run, tokens, "--config.steps=2") == 0
  moved = shutil.move(tokens, tmp_path / "moved")
  assert (
    train(
      run,
      moved,
      "--config.steps=4",
      "--config.optimizer.accumulate=2",
      "--config.model.transformer.remat=full",
      "--config.model.transformer.unroll=2",
    )
    == 0
  )
  read = lambda step: reader.read_note(
    buckets.run_folder(run) / reader.FOLDER / str(step)
  )
  assert read(4)["iterator"]["next_batch"] == 4
  assert read(4)["config"]["optimizer"]["accumulate"] == 2
  assert (
    read(4)["config"]["data"]["fingerprint"]
    == manifest.Manifest.read(moved).fingerprint
  )
  lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
  assert [x["step"] for x in lines if "loss" in x] == [1, 2, 3, 4]
  # Different data at the same path.
  shutil.rmtree(moved)
  stage_data.write_tokens(moved, (64, 64, 3), grid=(4, 4), num_codes=64)
  found = manifest.Manifest.read(moved)
  dataclasses.replace(found, name="other").write(moved)
  capsys.readouterr()
  assert train(run, moved, "--config.steps=6") == 2
  assert "was started with data of fingerprint" in capsys.readouterr().err
