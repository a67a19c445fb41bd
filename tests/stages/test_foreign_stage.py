"""Tests that another package can add a stage and a model as documented."""

import dataclasses
import json
import pathlib
import re
import sys

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from genie_jax.cli import main
from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.core import registry as registry_lib
from genie_jax.models import registry as models
from genie_jax.models import store
from genie_jax.stages import registry as stages
from genie_jax.train import stage as stage_lib
from genie_jax.worlds import trained_models
from tests.fixtures import stage_data, tiny_models, tiny_world

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "extending.md"
STAGE, MODEL = "linear_frames:stage", "linear_frames:model"


def printed_files():
  """Returns name -> text of the example files in the docs."""
  blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
  files = (re.match(r"# (\w+\.py)\n", block) for block in blocks)
  return {
    name[1]: block
    for name, block in zip(files, blocks, strict=True)
    if name is not None
  }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A workdir that `genie train` wrote for the stage in the docs."""
  folder = tmp_path_factory.mktemp("package")
  files = printed_files()
  assert set(files) == {"linear_frames.py", "config.py"}
  for name, text in files.items():
    (folder / name).write_text(text)
  clips = stage_data.write_clips(folder / "clips")
  sys.path.insert(0, str(folder))
  try:
    code = main.main(
      [
        "train",
        "--config",
        str(folder / "config.py"),
        "--workdir",
        str(folder / "run"),
        f"--config.data.path={clips}",
      ]
    )
    assert code == 0
    yield folder / "run"
  finally:
    sys.path.remove(str(folder))
    sys.modules.pop("linear_frames", None)
    forget(STAGE, MODEL)


def forget(*names):
  for name in names:
    stages._STAGES._values.pop(name, None)
    models._MODELS._values.pop(name, None)


@pytest.fixture
def unknown(monkeypatch):
  """Unregisters the stage and the model, as in a new process."""
  for kind, name in ((stages._STAGES, STAGE), (models._MODELS, MODEL)):
    monkeypatch.delitem(kind._values, name)
  yield
  # Removes what a test registered again; monkeypatch then restores the rest.
  forget(STAGE, MODEL)


def test_the_stage_in_the_docs_trains_and_its_model_can_be_read(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
  assert lines[-1]["step"] == 2
  found = trained_models.read(run)
  assert found.trained and set(found.parts) == {"linear_frames"}
  part = found.parts["linear_frames"]
  assert part.config["model"] == {"name": MODEL, "code_dim": 16}
  frames = stage_data.frames_of(0, 8, (64, 64, 3))[None] / np.float32(255)
  made = part.module.apply({"params": part.params}, frames)
  assert made.shape == frames.shape and np.isfinite(made).all()


def test_its_model_is_saved_and_loaded_like_any_other(run, tmp_path):
  part, fingerprint = trained_models.part(run, "linear_frames", lazy=True)
  assert store.save(tmp_path, {"linear_frames": part}) == fingerprint
  loaded = store.load(tmp_path).parts["linear_frames"]
  assert loaded.config == part.config and loaded.module == part.module
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, np.asarray(y)),
    loaded.params,
    part.params,
  )


@pytest.mark.parametrize(
  "change, message",
  [
    ({"code_dim": 2.5}, "code_dim=2.5 is out of range or of the wrong type"),
    ({"code_dims": 3}, "code_dims is not a field of LinearFrames.*'code_dim'"),
    ({"name": 3}, r"linear_frames\.model\.name=3 is not the name of a part"),
  ],
)
def test_its_fields_are_checked_against_those_of_its_class(
  run, tmp_path, change, message
):
  part, _ = trained_models.part(run, "linear_frames")
  store.save(tmp_path, {"linear_frames": part})
  config = json.loads((tmp_path / "config.json").read_text())
  config["parts"]["linear_frames"]["model"] |= change
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match=message) as raised:
    store.load(tmp_path)
  assert "\n" not in str(raised.value)


def test_a_workdir_cannot_import_its_stage_but_a_plugin_can(
  run, unknown, monkeypatch
):
  refused = (
    f"config.stage='{STAGE}' is a stage of another package, which is not "
    "loaded; set GENIE_PLUGINS=linear_frames if you trust it"
  )
  with pytest.raises(errors.UserError, match=refused) as raised:
    trained_models.read(run)
  assert "\n" not in str(raised.value)
  monkeypatch.setattr(registry_lib, "_plugins", set())
  monkeypatch.setenv(registry_lib.PLUGINS, "linear_frames")
  registry_lib.load_plugins()
  assert set(trained_models.read(run).parts) == {"linear_frames"}


def test_a_saved_model_of_an_unknown_package_is_refused(run, tmp_path, unknown):
  config = {"world": dict(tiny_models.WORLD), "model": {"name": MODEL}}
  part = tiny_models.part("lam")
  store.save(tmp_path, {"lam": dataclasses.replace(part, config=config)})
  with pytest.raises(
    errors.UserError,
    match=f"parts.lam.model.name='{MODEL}' is a model of another package.*"
    "GENIE_PLUGINS=linear_frames",
  ):
    store.load(tmp_path)


@pytest.mark.parametrize(
  "stage, message",
  [
    ("linear_frame:stage", "linear_frame cannot be imported"),
    ("linear_frames:stages_", "linear_frames has no 'stages_'; name a stage"),
    (
      "linear_frames:make",
      "'linear_frames:make' is of type function; it needs",
    ),
    (
      "tokeniser",
      "'tokeniser' is unknown .did you mean 'tokenizer'.*'module:attribute'",
    ),
  ],
)
def test_an_unusable_stage_raises_a_one_line_error(
  run, tmp_path, capsys, stage, message
):
  code = main.main(
    [
      "train",
      "--config",
      str(run.parent / "config.py"),
      "--workdir",
      str(tmp_path / "run"),
      f"--config.stage={stage}",
    ]
  )
  lines = capsys.readouterr().err.splitlines()
  assert code == 2 and len(lines) == 1, lines
  assert re.search(message, lines[0]), lines[0]
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "value, message",
  [
    (print, "is of type builtin_function_or_method; it needs to be a .*Type"),
    (
      stages.StageType(make=print, parts=None),
      "has no method parts; it needs parts",
    ),
  ],
)
def test_a_stage_type_that_breaks_the_protocol_is_refused(value, message):
  with pytest.raises(errors.UserError, match=message):
    stages.register("broken", value)
  assert "broken" not in stages.names()


@pytest.mark.parametrize(
  "value, message",
  [
    (nn.Dense, "'broken' is of type .*; it needs to be a .*ModelType"),
    (
      models.ModelType(int, print, print),
      "module=<class 'int'>; it needs a subclass of flax.linen.Module",
    ),
    (models.ModelType(nn.Dense, None, print), "no method build; it needs"),
    (models.ModelType(nn.Dense, print, ()), "no method inputs; it needs"),
  ],
)
def test_a_model_type_that_breaks_the_protocol_is_refused(value, message):
  with pytest.raises(errors.UserError, match=message):
    models.register("broken", value)
  assert "broken" not in models.names()


@pytest.fixture
def registries(monkeypatch):
  """Restores the registries after the test."""
  for kind in (stages._STAGES, models._MODELS):
    monkeypatch.setattr(kind, "_values", dict(kind._values))


def test_what_a_stage_returns_is_checked(registries, tmp_path):
  fields = tiny_models.fields("tokenizer")
  both = {"lam": fields, "tokenizer": fields}
  stages.register(
    "bad", stages.StageType(lambda config: 3, lambda config: ["lam"])
  )
  config = {"stage": "bad", **fields}
  with pytest.raises(errors.UserError, match="returned int; it must return"):
    stages.make(ml_collections.ConfigDict(config))
  with pytest.raises(
    errors.UserError, match=r"it must return role -> \{'world'"
  ):
    stages.parts(config)
  stages.register("half", stages.StageType(print, lambda config: both))
  part = tiny_models.part("lam")
  run = tiny_world.write_workdir(
    tmp_path / "run", "half", {}, {"lam": part.params}
  )
  with pytest.raises(
    errors.UserError, match="parameters have no tokenizer; the `parts`"
  ):
    trained_models.read(run)


def test_a_model_of_the_wrong_class_is_refused(registries):
  models.register(
    "bad", models.ModelType(nn.Dense, lambda config: nn.Conv(1, 1), print)
  )
  with pytest.raises(
    errors.UserError, match="module=Dense, but its build returned a Conv"
  ):
    models.build("bad", tiny_models.fields("lam"))


def test_a_stage_without_data_raises_a_helpful_error():
  made = stage_lib.Stage("mine", {}, {}, *[print] * 5, flops_per_clip=1.0)
  with pytest.raises(errors.UserError, match="give its Stage an open_source"):
    made.open_source("train")


def test_a_shipped_stage_can_train_a_user_defined_model(registries):
  shipped = models.model_type("tokenizer", {})

  class Mine(shipped.module):
    """A tokenizer of another class."""

  def build(config):
    assert "name" not in config["model"]
    made = shipped.build(config)
    return Mine(
      **{
        field.name: getattr(made, field.name)
        for field in dataclasses.fields(made)
        if field.name not in ("parent", "name")
      }
    )

  models.register(
    "mine", dataclasses.replace(shipped, module=Mine, build=build)
  )
  config = config_lib.load("experiments/coinrun/tokenizer.py:smoke").unlock()
  config.model.name = "mine"
  made = stages.make(config)
  jax.eval_shape(made.init, jax.random.key(0))
  (fields,) = stages.parts(config).values()
  part = store.part("tokenizer", fields, {})
  assert isinstance(part.module, Mine)
  assert part.config["model"]["name"] == "mine"
