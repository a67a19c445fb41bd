"""Tests of saved models: round trips and error messages."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.models import build, store
from genie_jax.weights import param_tree
from tests.fixtures import tiny_models


@pytest.fixture(scope="module")
def parts():
  return {name: tiny_models.part(name) for name in tiny_models.MODELS}


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
  """A folder with all three models, and the fingerprint of `save`."""
  folder = tmp_path_factory.mktemp("saved") / "models"
  return folder, store.save(folder, parts, extra={"note": "kept"})


@pytest.fixture
def folder(written, tmp_path):
  """A copy of the folder that a test may damage."""
  return shutil.copytree(written[0], tmp_path / "models")


def edit(folder, change):
  path = folder / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


def edit_tensors(folder, change):
  path = folder / "model.safetensors"
  tree, metadata = param_tree.load(path)
  flat = param_tree.flatten(tree)
  change(flat)
  param_tree.save(path, param_tree.unflatten(flat), metadata)


def test_weights_configs_and_fingerprint_survive_a_round_trip(written, parts):
  folder, fingerprint = written
  found = store.load(folder)
  assert found.fingerprint == fingerprint and found.config["note"] == "kept"
  assert set(found.parts) == set(parts)
  for name, part in parts.items():
    assert found.parts[name].config == part.config
    assert found.parts[name].module == part.module
    wanted = param_tree.flatten(part.params)
    got = param_tree.flatten(found.parts[name].params)
    assert wanted.keys() == got.keys()
    for path, leaf in wanted.items():
      np.testing.assert_array_equal(got[path], leaf)


def test_bfloat16_halves_the_file_and_loads_as_float32(
  written, parts, tmp_path
):
  fingerprint = store.save(tmp_path, parts, dtype="bfloat16")
  size = lambda folder: (folder / "model.safetensors").stat().st_size
  assert size(tmp_path) < 0.65 * size(written[0])
  found = store.load(tmp_path)
  assert found.fingerprint == fingerprint != written[1]
  wanted = param_tree.flatten(parts["lam"].params)
  for path, leaf in param_tree.flatten(found.parts["lam"].params).items():
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(
      leaf, wanted[path].astype(ml_dtypes.bfloat16).astype(np.float32)
    )


FSQ = {"name": "fsq"}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory):
  """A folder with a tokenizer and a LAM that use FSQ."""
  folder = tmp_path_factory.mktemp("rounded") / "models"
  parts = {}
  for name in ("tokenizer", "lam"):
    fields = {**tiny_models.fields(name), "quantizer": FSQ}
    made = store.part(name, fields, {})
    shapes = nn.unbox(store.abstract_params(name, made.config))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    parts[name] = dataclasses.replace(made, params=params)
  store.save(folder, parts)
  return folder


def test_naming_the_default_quantizer_changes_no_config_or_fingerprint(parts):
  for name in ("tokenizer", "lam"):
    fields = {**tiny_models.fields(name), "quantizer": {"name": "vq"}}
    made = store.part(name, fields, parts[name].params)
    assert made.config == parts[name].config and made.module == (
      parts[name].module
    )
    assert store.fingerprint({name: made}) == (
      store.fingerprint({name: parts[name]})
    )


def test_fsq_is_recorded_with_all_fields_and_has_no_parameters(rounded):
  config = json.loads((rounded / "config.json").read_text())
  levels = {"tokenizer": [11], "lam": [5]}
  for name, part in store.load(rounded).parts.items():
    wanted = {"name": "fsq", "levels": levels[name]}
    assert config["parts"][name]["quantizer"] == wanted
    assert part.config["quantizer"] == wanted
    assert "codes" not in part.params
    assert part.params["to_code"]["kernel"].shape[-1] == 1
  assert (
    "quantizer"
    not in store.part(
      "dynamics", {**tiny_models.fields("dynamics"), "quantizer": FSQ}, {}
    ).config
  )


@pytest.mark.parametrize(
  "group, message",
  [
    ("fsq", "lam.quantizer='fsq' is not a group"),
    ({"levels": [5]}, "lam.quantizer.name=None"),
    ({"name": ["fsq"]}, "lam.quantizer.name="),
    ({"name": "a_package:Mine"}, "GENIE_PLUGINS=a_package if you trust it"),
    ({"name": "fsq", "levels": [6]}, r"multiplies to 6.*has 5 codes"),
    ({"name": "fsq", "levels": [5.0]}, "must be whole numbers"),
    ({"name": "fsq", "levels": 5}, "must be whole numbers"),
    ({"name": "fsq", "level": [5]}, "did you mean 'levels'"),
    ({"name": "vq"}, "lacks tensor lam/codes/codebook"),
    (None, "lacks tensor lam/codes/codebook"),
  ],
)
def test_an_invalid_saved_quantizer_raises_a_one_line_error(
  rounded, tmp_path, group, message
):
  folder = shutil.copytree(rounded, tmp_path / "models")
  edit(folder, lambda c: c["parts"]["lam"].update(quantizer=group))
  with pytest.raises(errors.UserError, match=message) as raised:
    store.load(folder)
  said = str(raised.value)
  assert str(folder) in said and "\n" not in said


def test_one_changed_weight_changes_the_fingerprint(folder, written):
  def change(flat):
    name = "tokenizer/codes/codebook"
    flat[name] = flat[name].copy()
    flat[name][0, 0] += 1e-3

  edit_tensors(folder, change)
  assert store.load(folder).fingerprint != written[1]


@pytest.mark.parametrize(
  "change, message",
  [
    (
      lambda c: c.update(format_version=3),
      "has format_version 3.*reads 1 to 2",
    ),
    (lambda c: c.pop("format_version"), "has format_version None"),
    (lambda c: c.pop("parts"), "does not describe saved models"),
    (
      lambda c: c["parts"].update(policy=c["parts"]["lam"]),
      "parts.policy.*'policy' is unknown",
    ),
    (lambda c: c["parts"]["lam"].pop("world"), "config.world is missing"),
    (lambda c: c["parts"]["lam"]["world"].pop("height"), "world.height=None"),
    (
      lambda c: c["parts"]["lam"]["world"].update(num_latent_actions=7),
      r"lam/codes/codebook has shape \(5, 4\).*needs \(7, 4\)",
    ),
    (
      lambda c: c["parts"]["lam"]["model"].update(colour=1),
      "colour is not a field of Lam",
    ),
    (
      lambda c: c["parts"]["lam"]["model"].pop("code_dim"),
      "code_dim is missing",
    ),
    (
      lambda c: c["parts"]["tokenizer"]["model"]["encoder"].update(widht=3),
      r"widht is not a field of STTransformer.*did you mean 'width'",
    ),
    (
      lambda c: c["parts"]["tokenizer"]["model"]["encoder"].pop("dtype"),
      r"encoder\.dtype is missing",
    ),
    (
      lambda c: c["parts"]["tokenizer"]["model"]["encoder"].update(dtype="f"),
      "dtype='f' is unknown",
    ),
    (
      lambda c: c["parts"]["tokenizer"]["model"]["encoder"].update(width=20),
      "has shape",
    ),
    (
      lambda c: c["parts"]["dynamics"]["model"].update(
        actions_enter="multiply"
      ),
      "actions_enter='multiply' is unknown",
    ),
    (
      lambda c: c["parts"]["dynamics"]["model"].update(
        last_frame=True, last_frame_reach=9
      ),
      "last_frame_reach=9 must be an integer from 0 to 8",
    ),
    (
      lambda c: c["parts"]["dynamics"]["model"].update(last_frame_reach=1),
      "last_frame_reach=1 needs config.model.last_frame=True",
    ),
  ],
  ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_config_that_does_not_fit_raises_a_one_line_error(
  folder, change, message
):
  edit(folder, change)
  with pytest.raises(errors.UserError, match=message) as raised:
    store.load(folder)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda f: f.pop("lam/action_token"), "lacks tensor lam/action_token"),
    (
      lambda f: f.update({"lam/more": np.zeros(1, np.float32)}),
      "has an unknown tensor lam/more",
    ),
    (
      lambda f: f.update({"lam/action_token": np.zeros(3, np.float32)}),
      r"lam/action_token has shape \(3,\).*needs \(16,\)",
    ),
    (
      lambda f: [f.pop(n) for n in list(f) if n.startswith("dynamics/")],
      "lacks tensor dynamics/",
    ),
  ],
  ids=["missing", "unknown", "shape", "part"],
)
def test_tensors_that_do_not_fit_raise_a_one_line_error(
  folder, change, message
):
  edit_tensors(folder, change)
  with pytest.raises(errors.UserError, match=message) as raised:
    store.load(folder)
  assert "\n" not in str(raised.value)


def test_missing_and_damaged_files_raise_a_one_line_error(folder, tmp_path):
  with pytest.raises(errors.UserError, match="does not exist"):
    store.load(tmp_path / "nowhere")
  weights = folder / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  with pytest.raises(errors.UserError, match="not a whole safetensors file"):
    store.load(folder)
  weights.unlink()
  with pytest.raises(errors.UserError, match=r"model.safetensors does not"):
    store.load(folder)
  (folder / "config.json").write_text("[]")
  with pytest.raises(errors.UserError, match="must be a group of fields"):
    store.load(folder)


@pytest.mark.parametrize(
  "name, model, message",
  [
    ("lam", {"shrink": 4}, "shrink=4 does not divide the frame of 6 x 8"),
    ("lam", {"predict": "all"}, "predict='all' is unknown"),
    ("lam", {"quantizer": FSQ}, "set the fields of the group config.quantizer"),
    (
      "tokenizer",
      {"encoder": {**tiny_models.STACK, "remat": "som"}},
      "remat='som' is unknown",
    ),
    (
      "tokenizer",
      {"decoder": {**tiny_models.STACK, "head_dim": 7}},
      "head_dim=7 is odd",
    ),
  ],
)
def test_invalid_model_fields_are_refused(name, model, message):
  with pytest.raises(errors.UserError, match=message):
    getattr(build, name)(tiny_models.fields(name, **model))


def test_shapes_of_the_largest_model_need_no_memory():
  from genie_jax.scaling import table

  shapes = store.abstract_params(
    "dynamics",
    {"world": table.WORLD, "model": table.model(table.find("10.1B"))},
  )
  stack = shapes["stack"]["layers"]["space"]["qkv"]["kernel"].value
  assert stack.shape == (48, 5120, 3, 36, 128)
