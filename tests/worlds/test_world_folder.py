"""Tests of world folders: round trips, shards, meshes, and invalid folders."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genie_jax
from genie_jax.core import config as config_lib
from genie_jax.core import errors, files
from genie_jax.models import store
from genie_jax.ports.stablehlo import runtime
from genie_jax.sharding import mesh
from genie_jax.weights import int8, param_tree, tensor_files
from genie_jax.worlds import validation, world_folder, world_manifest
from tests.fixtures import tiny_world

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 13, (2, 4, 2, 3), dtype=np.int32)
ACTIONS = RNG.integers(0, 5, (2, 3), dtype=np.int32)
HIDDEN = RNG.random(TOKENS.shape) < 0.5


def write(folder, parts, **fields):
  fields = {"num_prompts": 2, "sampling": {"refinements": 3}, **fields}
  tiny_world.write_world(folder, parts, **fields)
  return folder


def logits(part, params=None):
  params = int8.dequantize(part.params if params is None else params)
  run = jax.jit(
    lambda p: part.module.apply({"params": p}, TOKENS, ACTIONS, HIDDEN)
  )
  return np.asarray(run(params))


def equal(found, wanted):
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


def rounded(params, dtype=ml_dtypes.bfloat16):
  return jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), params)


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
  folder = tmp_path_factory.mktemp("worlds") / "noise"
  write(folder, parts)
  return folder


@pytest.fixture
def folder(written, tmp_path):
  """A copy that a test may damage."""
  return shutil.copytree(written, tmp_path / "noise")


def test_load_world_gives_the_world_its_name_manifest_and_prompts(
  written, parts
):
  world = genie_jax.load_world(written)
  assert world.name == "noise" and len(world.prompts) == 2
  assert world.manifest["fingerprint"] == world.fingerprint
  assert world.fingerprint == store.load(written).fingerprint
  equal(world.parts["dynamics"].params, parts["dynamics"].params)
  np.testing.assert_array_equal(
    logits(world.parts["dynamics"]), logits(parts["dynamics"])
  )


def test_a_bfloat16_world_is_the_checkpoint_cast_to_bfloat16(parts, tmp_path):
  write(tmp_path / "w", parts, dtype="bfloat16")
  found = world_folder.load(tmp_path / "w").world.parts["dynamics"]
  wanted = rounded(parts["dynamics"].params)
  equal(found.params, wanted)
  np.testing.assert_array_equal(
    logits(found), logits(parts["dynamics"], wanted)
  )
  # Matrices in bfloat16 give the same products in float32.
  held = world_folder.load(tmp_path / "w", dtype="bfloat16").world.parts[
    "dynamics"
  ]
  kernel = held.params["stack"]["layers"]["mlp_in"]["kernel"]
  assert kernel.dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(logits(held), logits(found))


def test_int8_keeps_matrices_as_integers_and_all_else_as_bfloat16(
  parts, tmp_path
):
  write(tmp_path / "w", parts, dtype="int8")
  stored = tensor_files.read(tmp_path / "w")
  name = "dynamics/stack/layers/space/out/kernel"
  assert stored[f"{name}.values"].dtype == np.int8
  assert stored[f"{name}.scales"].shape == (1, 1, 1, 16)
  assert stored["dynamics/token_embedding"].dtype == ml_dtypes.bfloat16
  found = world_folder.load(tmp_path / "w").world.parts["dynamics"].params
  held = world_folder.load(tmp_path / "w", dtype="int8").world
  small = held.parts["dynamics"].params
  assert isinstance(
    small["stack"]["layers"]["space"]["out"]["kernel"], int8.Int8
  )
  equal(int8.dequantize(small), found)
  equal(
    found["token_embedding"],
    rounded(parts["dynamics"].params["token_embedding"]),
  )
  # A matrix quantised on loading equals the one quantised on disk.
  write(tmp_path / "full", parts)
  equal(
    world_folder.load(tmp_path / "full", dtype="int8")
    .world.parts["dynamics"]
    .params["stack"]["layers"],
    jax.tree.map(
      lambda x, y: y if x.ndim < 3 else x,
      small["stack"]["layers"],
      int8.quantize(parts["dynamics"].params)["stack"]["layers"],
    ),
  )


def test_shards_hold_the_same_world(parts, written, tmp_path):
  write(tmp_path / "w", parts, shard_bytes=4000)
  names = sorted(path.name for path in (tmp_path / "w").glob("model*"))
  assert len(names) > 5 and tensor_files.INDEX in names
  whole, cut = world_folder.load(written), world_folder.load(tmp_path / "w")
  assert cut.world.fingerprint == whole.world.fingerprint
  for name, part in whole.world.parts.items():
    equal(cut.world.parts[name].params, part.params)
  (tmp_path / "w" / names[0]).unlink()
  with pytest.raises(errors.UserError, match="is missing, but manifest"):
    world_folder.load(tmp_path / "w")


@functools.cache
def eight():
  return mesh.make(dict(data=1, fsdp=4, tensor=2, frame=1))


def wide_parts():
  """Returns parts whose sizes can be split over the mesh."""
  return {
    name: tiny_world.make_part(name, num_codes=16, num_latent_actions=6)
    for name in ("tokenizer", "dynamics")
  }


@pytest.mark.parametrize("dtype", ("float32", "int8"))
def test_a_world_loads_straight_onto_a_mesh(tmp_path, dtype):
  parts = wide_parts()
  write(tmp_path / "w", parts, dtype=dtype, shard_bytes=4000)
  one = world_folder.load(tmp_path / "w", dtype=dtype).world.parts["dynamics"]
  place = world_folder.placement.make(dtype, eight())
  many = store.load(tmp_path / "w", place=place).parts["dynamics"]
  equal(jax.device_get(many.params), jax.device_get(one.params))
  for part in ("values", "scales") if dtype == "int8" else ("",):
    leaf = many.params["stack"]["layers"]["mlp_in"]["kernel"]
    leaf = leaf if not part else leaf.__dict__[part]
    # [Y, D, mlp]; scales have size 1 on axis D, which is then not split.
    wanted = (1, 1 if part == "scales" else 4, 8)
    assert leaf.sharding.shard_shape(leaf.shape) == wanted
  np.testing.assert_allclose(logits(many), logits(one), rtol=2e-5, atol=2e-6)


def test_a_mesh_that_does_not_fit_is_one_line(written):
  with pytest.raises(errors.UserError, match="does not split over 2 devices"):
    world_folder.load(written, mesh=eight())  # 13 codes.
  other = jax.make_mesh((8,), ("x",))
  with pytest.raises(errors.UserError, match="mesh has the axes x"):
    world_folder.load(written, mesh=other)
  with pytest.raises(errors.UserError, match="dtype='int4' is unknown"):
    genie_jax.load_world(written, dtype="int4")


def test_loading_a_world_imports_no_training_code(written):
  code = (
    "import sys, genie_jax; assert 'jax' not in sys.modules; "
    f"genie_jax.load_world({str(written)!r}); "
    "print([m for m in sys.modules if m.split('.')[0] in ('optax', 'orbax', "
    "'grain') or m.startswith(('genie_jax.train', 'genie_jax.stages', "
    "'genie_jax.data'))])"
  )
  found = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    cwd=pathlib.Path(genie_jax.__file__).parents[1],
  )
  assert found.stdout.strip() == "[]"


def reseal(folder, change):
  """Changes a manifest and gives it a valid seal."""
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text())
  change(manifest)
  manifest.pop("seal", None)
  manifest["seal"] = world_manifest.seal(manifest)
  path.write_text(json.dumps(manifest))


def restate(folder):
  """Updates the hashes and sizes in the manifest."""

  def change(manifest):
    for name, stated in manifest["files"].items():
      stated.update(
        sha256=files.sha256(folder / name), bytes=(folder / name).stat().st_size
      )

  reseal(folder, change)


def one_line(folder, match):
  with pytest.raises(errors.UserError, match=match) as raised:
    world_folder.load(folder)
  assert "\n" not in str(raised.value)


STATED = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
  "name",
  (
    "../secret",
    "/etc/passwd",
    "prompts/../../x.png",
    "prompts/a/b.png",
    "model.pkl",
    "setup.py",
    "prompts\\x.png",
    "",
    "prompts/..png\n",
  ),
)
def test_a_manifest_lists_no_path_out_of_its_world_and_no_code(folder, name):
  reseal(folder, lambda m: m["files"].update({name: STATED}))
  one_line(folder, "is not part of a world")


@pytest.mark.parametrize(
  "change, match",
  [
    (lambda m: m.update(files=[]), "files=.* is not a dict"),
    (lambda m: m.update(name=3), "name=3 is not a str"),
    (lambda m: m.update(name="\ud800"), "not printable text"),
    (lambda m: m.update(name="a\nb"), "not printable text"),
    (lambda m: m.update(name="x" * 201), "not printable text"),
    (lambda m: m["files"].update({"config.json": 3}), "a valid SHA-256"),
    (lambda m: m["files"]["config.json"].update(bytes=-1), "a valid SHA-256"),
    (lambda m: m["files"]["config.json"].update(bytes=True), "a valid SHA-256"),
    (lambda m: m["files"].pop("config.json"), "must list config.json"),
    (lambda m: m["files"].pop("model.safetensors"), "json and weights"),
    (lambda m: m["files"]["config.json"].update(sha256="0" * 64), "damaged"),
  ],
)
def test_a_manifest_with_invalid_fields_is_refused(folder, change, match):
  reseal(folder, change)
  one_line(folder, match)


def test_links_out_of_the_folder_are_refused(folder, tmp_path):
  shutil.move(folder / "config.json", tmp_path / "config.json")
  (folder / "config.json").symlink_to(tmp_path / "config.json")
  one_line(folder, "is a link to a file outside its world")


def test_a_link_to_the_whole_folder_is_accepted(folder, tmp_path):
  (tmp_path / "link").symlink_to(folder)
  assert world_folder.load(tmp_path / "link").name == "noise"


def test_weights_that_the_manifest_does_not_list_are_refused(folder):
  shutil.copy(
    folder / "model.safetensors", folder / "model-00001-of-00002.safetensors"
  )
  one_line(folder, "is not listed in manifest.json")


def retensor(folder, change):
  tree, metadata = param_tree.load(folder / "model.safetensors")
  flat = param_tree.flatten(tree)
  change(flat)
  param_tree.save(
    folder / "model.safetensors", param_tree.unflatten(flat), metadata
  )
  restate(folder)


@pytest.mark.parametrize(
  "change, match",
  [
    (lambda f: f.pop("dynamics/hidden_token"), "lacks tensor dynamics/hid"),
    (
      lambda f: f.update({"dynamics/x": np.zeros(1, np.float32)}),
      "unknown tensor dynamics/x",
    ),
    (
      lambda f: f.update({"policy/x": np.zeros(1, np.float32)}),
      "unknown tensor policy/x",
    ),
    (lambda f: f.update({"x": np.zeros(1, np.float32)}), "unknown tensor x"),
    (
      lambda f: f.update(
        {"dynamics/to_logits/bias": np.zeros(13, ml_dtypes.bfloat16)}
      ),
      "bias is bfloat16, but dtype float32",
    ),
  ],
  ids=["missing", "extra", "part", "root", "dtype"],
)
def test_missing_and_unknown_tensors_are_refused(folder, change, match):
  retensor(folder, change)
  one_line(folder, match)


@pytest.mark.parametrize("length", (0, 1 << 40, 2**64 - 1))
def test_headers_of_impossible_length_are_refused(folder, length):
  path = folder / "model.safetensors"
  path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
  restate(folder)
  one_line(folder, "not a whole safetensors file")


def reconfigure(folder, keys, value):
  """Changes a field of config.json, and states the fingerprint that follows."""
  path = folder / "config.json"
  config = json.loads(path.read_text())
  node = config
  for key in keys[:-1]:
    node = node[key]
  node[keys[-1]] = value
  path.write_text(json.dumps(config))
  restate(folder)
  weights = tensor_files.fingerprint(tensor_files.read(folder))
  stated = {"parts": config["parts"], "weights": weights}
  reseal(folder, lambda m: m.update(fingerprint=world_manifest.seal(stated)))


@pytest.mark.parametrize(
  "keys, value, match",
  [
    (("dtype",), "float64", "dtype='float64' is unknown"),
    (("actions",), "joystick", 'must have "actions"'),
    (("sampling",), {"refinements": 0}, "must be at least 1"),
    (("sampling",), {"temperature": "hot"}, "hot.; it must be a number"),
    (("slide",), {"mode": "sideways"}, "slide.mode is 'sideways'"),
    (("parts", "dynamics"), [], "not a group of fields"),
    (("parts", "dynamics", "world", "width"), 10**9, "out of range"),
    (("parts", "dynamics", "world", "fps"), "fast", "fps='fast' is not a"),
    (
      ("parts", "dynamics", "model", "transformer", "num_layers"),
      10**9,
      "out of range",
    ),
    (
      ("parts", "dynamics", "model", "transformer", "width"),
      "16",
      "out of range or of the wrong type",
    ),
    (("parts", "dynamics", "model", "transformer"), None, "out of range"),
  ],
)
def test_invalid_configs_are_refused(folder, keys, value, match):
  reconfigure(folder, keys, value)
  one_line(folder, match)


def restate_world(folder, **sizes):
  """States other sizes in the worlds of all models."""
  path = folder / "config.json"
  config = json.loads(path.read_text())
  for part in config["parts"].values():
    part["world"].update(sizes)
  path.write_text(json.dumps(config))
  restate(folder)


@pytest.mark.parametrize(
  "sizes, match",
  [
    ({"num_frames": 1 << 20}, "has 1048576 frames in the window, more than"),
    ({"num_frames": True}, "num_frames=True is not a whole number above 0"),
    ({"height": 2048, "width": 2048}, "has 262144 tokens in a frame, more"),
    (
      {"height": 256, "width": 256, "num_frames": 4096},
      "16777216 tokens in the window",
    ),
    (
      {"height": 8192, "width": 8192, "token_patch": 1024},
      "values of pixels in the window",
    ),
    (
      {"height": 32, "width": 32, "token_patch": 1, "num_codes": 1 << 20},
      "has 1073741824 logits of a frame",
    ),
    ({"token_patch": 64}, "has shape .* its config.json needs"),
  ],
)
def test_stated_sizes_are_checked_before_a_model_is_made(
  folder, monkeypatch, sizes, match
):
  restate_world(folder, **sizes)
  placed = []
  monkeypatch.setattr(
    world_folder.placement, "make", lambda *_: lambda *leaf: placed.append(leaf)
  )
  one_line(folder, match)
  assert not placed


def test_a_model_with_many_shifts_is_refused(parts, tmp_path):
  write(tmp_path / "w", {**parts, "lam": tiny_world.make_part("lam")})
  reconfigure(
    tmp_path / "w", ("parts", "lam", "model", "reach"), [1 << 19, 1 << 19]
  )
  one_line(tmp_path / "w", "reach=.* must be two whole numbers from 0 to 16")


def test_a_player_that_needs_more_than_all_memory_is_refused(
  folder, monkeypatch
):
  small = {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1000}
  monkeypatch.setattr(validation.os, "sysconf", small.__getitem__)
  one_line(folder, "GB for its caches alone")


def test_many_large_prompts_are_refused(folder, parts, tmp_path, monkeypatch):
  monkeypatch.setattr(world_folder, "_PROMPT_BYTES", 2 * 8 * 12 * 3 - 1)
  one_line(folder, "has 2 prompts of 8 x 12 x 3, more than")
  with pytest.raises(errors.UserError, match="smaller --num-prompts"):
    write(tmp_path / "w", parts)


@pytest.mark.parametrize("change", ("manifest", "config", "weights"))
def test_a_manifest_that_claims_the_content_of_another_world_is_refused(
  folder, change
):
  assert world_folder.load(folder).name == "noise"
  if change == "manifest":
    reseal(folder, lambda m: m.update(fingerprint="0" * 64))
  elif change == "config":
    restate_world(folder, fps=11)
  else:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    restate(folder)
  one_line(folder, "states the fingerprint .*, but its configs and weights")


@pytest.mark.parametrize("name", ("manifest.json", "config.json"))
@pytest.mark.parametrize(
  "value",
  ("[" * 90 + "]" * 90, "[" * 100_000 + "]" * 100_000, "9" * 300, "9" * 10_000),
  ids=("deep", "deeper", "long", "longer"),
)
def test_json_of_any_depth_and_number_length_is_loaded_or_refused_in_one_line(
  folder, name, value
):
  path = folder / name
  text = path.read_text()
  fields = {
    "manifest.json": ('"metrics": {}', '"metrics": {"a": %s}'),
    "config.json": ('"sampling": {', '"sampling": {"temperature": %s, '),
  }
  old, new = fields[name]
  assert text.count(old) == 1
  path.write_text(text.replace(old, new % value))
  if name == "config.json":
    restate(folder)
  one_line(folder, "is not valid JSON|was changed|must be a number")


PATHS = st.sampled_from(
  [
    ("format_version",),
    ("dtype",),
    ("parts",),
    ("actions",),
    ("sampling",),
    ("slide",),
    ("parts", "dynamics"),
    ("parts", "dynamics", "world"),
    ("parts", "dynamics", "model"),
    ("parts", "dynamics", "world", "height"),
    ("parts", "dynamics", "world", "num_frames"),
    ("parts", "dynamics", "world", "fps"),
    ("parts", "dynamics", "model", "transformer", "head_dim"),
    ("parts", "dynamics", "model", "transformer", "num_heads"),
    ("parts", "dynamics", "model", "transformer", "dtype"),
    ("parts", "dynamics", "model", "actions_enter"),
    ("parts", "dynamics", "model", "last_frame"),
  ]
)
VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=2)
    | st.dictionaries(st.text(max_size=5), inner, max_size=2)
  ),
  max_leaves=4,
)


@given(keys=PATHS, value=VALUES)
@settings(max_examples=20, deadline=None)
def test_any_config_is_loaded_or_refused_in_one_line(
  written, tmp_path_factory, keys, value
):
  folder = shutil.copytree(written, tmp_path_factory.mktemp("fuzz") / "w")
  reconfigure(folder, keys, value)
  try:
    world_folder.load(folder)
  except errors.UserError as error:
    assert "\n" not in str(error)


@given(key=st.sampled_from(sorted(world_manifest._FIELDS)), value=VALUES)
@settings(max_examples=200, deadline=None)
def test_any_manifest_is_read_or_refused_in_one_line(written, key, value):
  manifest = json.loads((written / "manifest.json").read_text())
  del manifest["seal"]
  manifest[key] = value
  manifest["seal"] = world_manifest.seal(manifest)
  try:
    world_manifest.check_manifest("m", json.dumps(manifest).encode())
  except errors.UserError as error:
    assert "\n" not in str(error)


@given(content=st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_for_a_manifest_are_refused_in_one_line(content):
  with pytest.raises(errors.UserError) as raised:
    world_manifest.check_manifest("m", content)
  assert "\n" not in str(raised.value)


def test_a_seal_is_the_fingerprint_of_the_canonical_json():
  manifest = {"b": [1, 2.5, "x"], "a": {"c": None}}
  assert world_manifest.seal(manifest) == config_lib.fingerprint(manifest)


def test_the_command_line_refuses_a_broken_world_with_code_2(folder):
  reseal(folder, lambda m: m["files"].update({"../x": STATED}))
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "genie_jax.cli.sample",
      "--world",
      str(folder),
      "--actions",
      "0",
      "--out",
      os.devnull + ".gif",
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(genie_jax.__file__).parents[1],
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1
  assert "is not part of a world" in done.stderr


def test_programs_of_a_world_are_read_only_when_they_are_asked_for(
  tmp_path, monkeypatch
):
  folder = shutil.copytree(
    pathlib.Path(__file__).parents[1] / "golden/v2/worlds/stablehlo",
    tmp_path / "w",
  )
  (folder / "stablehlo/step.stablehlo").write_bytes(b"hostile")
  restate(folder)

  def run(*_):
    raise RuntimeError("a program was read")

  monkeypatch.setattr(runtime.export, "deserialize", run)
  world_folder.load(folder)
  with pytest.raises(RuntimeError, match="a program was read"):
    runtime.load(folder)


@pytest.mark.parametrize("content", (b"", b"hostile", b"\xff" * 4096))
def test_a_program_that_is_none_is_one_line(tmp_path, content):
  folder = shutil.copytree(
    pathlib.Path(__file__).parents[1] / "golden/v2/worlds/stablehlo",
    tmp_path / "w",
  )
  (folder / "stablehlo/encode.stablehlo").write_bytes(content)
  restate(folder)
  with pytest.raises(errors.UserError, match="cannot be read by JAX"):
    runtime.load(folder)
  (folder / "stablehlo/programs.json").write_text("[]")
  restate(folder)
  with pytest.raises(errors.UserError, match="must be a group of fields"):
    runtime.load(folder)


def test_every_parameter_has_axes_that_a_mesh_can_use(parts):
  for name, part in parts.items():
    boxed = param_tree.flatten(store.abstract_params(name, part.config))
    assert all(isinstance(leaf, nn.Partitioned) for leaf in boxed.values())
