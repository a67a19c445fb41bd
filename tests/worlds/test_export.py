"""Tests of the export: any mesh, bounded memory, complete or not at all."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genie_jax.checkpoints import reader
from genie_jax.core import errors, files
from genie_jax.data import sources
from genie_jax.models import store
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import tensor_files
from genie_jax.worlds import export, world_folder
from tests.fixtures import tiny_world

WORLD = {"num_codes": 16, "num_latent_actions": 6}


@pytest.fixture(scope="module")
def parts():
  """Models whose sizes can be split over eight devices."""
  return {
    name: tiny_world.make_part(name, **WORLD)
    for name in ("tokenizer", "dynamics")
  }


@pytest.fixture(scope="module")
def runs(parts, tmp_path_factory):
  """Workdirs written by eight devices, and the saved models."""
  folder = tmp_path_factory.mktemp("runs")
  mesh = mesh_lib.make(dict(data=1, fsdp=4, tensor=2, frame=1))
  place = world_folder.placement.make(None, mesh)
  store.save(folder / "saved", parts)
  placed = store.load(folder / "saved", place=place).parts
  kernel = placed["dynamics"].params["stack"]["layers"]["mlp_in"]["kernel"]
  assert len(kernel.sharding.device_set) == 8
  for name, part in placed.items():
    model = tiny_world.MODELS[name]
    write_run(folder / name, name, model, part.params)
  return folder


@pytest.fixture(scope="module")
def runs_of_one(parts, tmp_path_factory):
  """Workdirs written by one device."""
  folder = tmp_path_factory.mktemp("runs_of_one")
  for name, part in parts.items():
    params = jax.device_put(part.params, jax.devices()[0])
    write_run(folder / name, name, tiny_world.MODELS[name], params)
  return folder


def write_run(folder, stage, model, params):
  before = tiny_world.WORLD
  tiny_world.WORLD = {**before, **WORLD}
  try:
    tiny_world.write_workdir(folder, stage, model, params)
  finally:
    tiny_world.WORLD = before


@pytest.fixture(scope="module")
def logits(parts):
  """A function from the dynamics model's parameters to its logits."""
  random = np.random.default_rng(0)
  tokens = random.integers(0, WORLD["num_codes"], (3, 4, 2, 3), np.int32)
  actions = random.integers(0, WORLD["num_latent_actions"], (3, 3), np.int32)
  hidden = random.random(tokens.shape) < 0.5
  assert hidden.any() and not hidden.all()
  return jax.jit(
    lambda params: parts["dynamics"].module.apply(
      {"params": params}, tokens, actions, hidden
    )
  )


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("written_by", ("runs_of_one", "runs"))
def test_a_checkpoint_of_one_or_eight_devices_is_exported_bit_for_bit(
  written_by, dtype, parts, logits, tmp_path, request
):
  runs = request.getfixturevalue(written_by)
  export.export(
    [runs / "tokenizer", runs / "dynamics"],
    tmp_path / "w",
    dtype=dtype,
    shard_bytes=4000,
  )
  stored = tensor_files.read(tmp_path / "w")
  assert {str(tensor.dtype) for tensor in stored.values()} == {dtype}
  found = world_folder.load(tmp_path / "w").world.parts
  wanted = {
    name: jax.tree.map(
      lambda x: x.astype(jnp.dtype(dtype)).astype(np.float32), part.params
    )
    for name, part in parts.items()
  }
  for name, params in wanted.items():
    jax.tree.map(np.testing.assert_array_equal, found[name].params, params)
  np.testing.assert_array_equal(
    logits(found["dynamics"].params), logits(wanted["dynamics"])
  )


def test_a_checkpoint_larger_than_memory_is_read_group_by_group(runs, parts):
  sizes = [x.nbytes for x in jax.tree.leaves(parts["dynamics"].params)]
  params, config = reader.lazy_params(runs / "dynamics", group_bytes=max(sizes))
  assert config["stage"] == "dynamics"
  leaves = jax.tree.leaves(params)
  assert all(isinstance(leaf, tensor_files.Deferred) for leaf in leaves)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(np.asarray(x), y),
    params,
    parts["dynamics"].params,
  )


def test_a_group_stays_in_memory_until_another_is_read(monkeypatch):
  read = []

  def load(path, like):
    read.append(sorted(like))
    return {name: np.zeros(1) for name in like}, {}

  monkeypatch.setattr(reader, "load", load)
  one = np.zeros(1)
  groups = reader._Groups("", [{"a": one, "b": one}, {"c": one}])
  for name in ("a", "b", "c", "a"):
    groups.get(name)
  assert read == [["a", "b"], ["c"], ["a", "b"]]


@pytest.fixture
def world(runs, tmp_path):
  export.export(
    [runs / "tokenizer", runs / "dynamics"], tmp_path / "w", name="first"
  )
  return tmp_path / "w"


def everything(folder):
  return {
    path.relative_to(folder): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


@pytest.mark.parametrize(
  "error, raised, match",
  [
    (KeyboardInterrupt(), KeyboardInterrupt, None),
    (
      OSError(errno.ENOSPC, "No space left on device"),
      errors.UserError,
      "cannot be written .No space left on device.; free some space",
    ),
    (
      OSError(errno.EROFS, "Read-only file system"),
      errors.UserError,
      "Read-only file system",
    ),
  ],
)
@pytest.mark.parametrize("at", ("model.safetensors", "manifest.json"))
def test_an_export_that_fails_does_not_change_the_older_world(
  runs, world, tmp_path, monkeypatch, error, raised, match, at
):
  before = everything(world)
  replace = os.replace

  def fail(source, target):
    if os.path.basename(target) == at:
      raise error
    replace(source, target)

  monkeypatch.setattr(os, "replace", fail)
  for out in (world, tmp_path / "new"):
    with pytest.raises(raised, match=match):
      export.export([runs / "tokenizer", runs / "dynamics"], out)
  assert everything(world) == before
  assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_a_name_that_loaders_reject_is_refused_at_once(tmp_path):
  with pytest.raises(errors.UserError, match="another --name"):
    export.export([tmp_path / "none"], tmp_path / "w", name="a\nb")
  assert not list(tmp_path.iterdir())


def test_a_world_that_cannot_be_renamed_leaves_the_older_one(
  runs, world, tmp_path, monkeypatch
):
  before, replace = everything(world), os.replace

  def fail(source, target):
    if (
      os.fspath(target) == os.fspath(world)
      and ".w." in str(source)
      and (not failed)
    ):
      failed.append(source)
      raise OSError(errno.EPERM, "Operation not permitted")
    replace(source, target)

  failed = []
  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(errors.UserError, match="Operation not permitted"):
    export.export([runs / "tokenizer", runs / "dynamics"], world)
  assert failed and everything(world) == before
  assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_the_folder_of_a_killed_export_is_not_a_world(runs, tmp_path):
  left = files.temporary_sibling(tmp_path / "w")
  tensor_files.write(left, {"dynamics/x": np.zeros(3, np.float32)})
  with pytest.raises(errors.UserError, match="is not a world"):
    world_folder.load(left)


def test_a_full_disk_is_detected_before_anything_is_written(
  runs, tmp_path, monkeypatch
):
  usage = type("Usage", (), {"free": 10})
  monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(errors.UserError, match=r"needs 0 MB and .* left"):
    export.export([runs / "tokenizer", runs / "dynamics"], tmp_path / "w")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", [None, "h264"])
def test_prompts_come_from_clips_however_they_are_stored(tmp_path, codec):
  clips = tiny_world.write_clips(
    tmp_path / "clips", {"validation": [7, 8]}, actions=False, codec=codec
  )
  found = export._first_frames(clips, tiny_world.SHAPE, 4)
  source = sources.WindowSource(clips, "validation", 1, keys=("frames",))
  assert found.shape == (4, *tiny_world.SHAPE)
  np.testing.assert_array_equal(found[0], source[0]["frames"][0])
