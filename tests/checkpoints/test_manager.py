"""Tests of checkpoints: complete, verified, and of the right model."""

import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from genie_jax.checkpoints import fingerprint, manager, reader
from genie_jax.core import errors
from genie_jax.sharding import hosts
from genie_jax.train import state as state_lib
from tests.fixtures import toy_stage

# Orbax leaves coroutines and event loops behind when a load fails.
pytestmark = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
]

NOTE = {"config": {"stage": "toy", "model": {"hidden": 16}}, "stage": "toy"}

# So wide that OCDBT does not store arrays in its index, which has a checksum.
WIDE = 2048


def flip(folder, bit=3):
  """Flips one bit in each data file of a checkpoint."""
  data = [path for path in folder.glob("state/**/d/*") if path.is_file()]
  assert data
  for path in data:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(bytes(content))


def truncate(folder):
  for path in folder.glob("state/**/d/*"):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit_note(folder):
  path = folder / "_CHECKPOINT_METADATA"
  text = path.read_text()
  path.write_text(text.replace('"next": ', '"next": 1'))


def lose_files(folder):
  shutil.rmtree(folder / "state" / "d")


@pytest.fixture(autouse=True)
def collect_what_orbax_leaves():
  """Collects Orbax's leftovers, so that they do not warn in later tests."""
  yield
  gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with steps 1, 2 and 3, and their states on the host."""
  workdir = tmp_path_factory.mktemp("run")
  fields = toy_stage.config(mesh__fsdp=4, mesh__tensor=2)
  _, _, like, state, step = toy_stage.built(
    fields, toy_stage.make_stage(hidden=WIDE)
  )
  batches = toy_stage.Batches(16, hosts.Share())
  checkpoints = manager.Checkpoints(workdir, keep=3)
  states = {}
  for number in (1, 2, 3):
    batch = next(batches)
    batch.pop("source")
    state, _ = step(state, batch)
    checkpoints.save(state.fields(), batches, NOTE)
    states[number] = jax.device_get(
      state.replace(rng=jax.random.key_data(state.rng))
    )
  checkpoints.close()
  return workdir, like, states


@pytest.fixture
def copy(saved, tmp_path):
  workdir, like, states = saved
  shutil.copytree(workdir, tmp_path / "run")
  return tmp_path / "run", like, states


def assert_equal(state, wanted):
  state = state.replace(rng=jax.random.key_data(state.rng))
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_array_equal(a, b)


def restore(workdir, like):
  batches = toy_stage.Batches(16, hosts.Share())
  checkpoints = manager.Checkpoints(workdir, keep=3)
  fields, note = checkpoints.restore(like.fields(), batches)
  checkpoints.close()
  return state_lib.TrainState(**fields), note, batches


def test_restores_everything_bit_for_bit(saved):
  workdir, like, states = saved
  state, note, batches = restore(workdir, like)
  assert_equal(state, states[3])
  assert note["config"] == NOTE["config"]
  assert batches.get_state() == {"next": 3}


def test_restores_to_any_mesh(saved):
  workdir, _, states = saved
  fields = toy_stage.config(mesh__data=2, mesh__fsdp=1)
  like = toy_stage.built(
    fields, toy_stage.make_stage(hidden=WIDE), devices=jax.devices()[:2]
  )[2]
  state, _, _ = restore(workdir, like)
  assert_equal(state, states[3])
  assert len(state.step.sharding.device_set) == 2


def test_keeps_only_the_newest(tmp_path):
  _, _, _, state, _ = toy_stage.built(toy_stage.config())
  checkpoints = manager.Checkpoints(tmp_path, keep=2)
  for number in (1, 2, 3):
    checkpoints.save(
      state.replace(step=jnp.int32(number)).fields(),
      toy_stage.Batches(16, hosts.Share()),
      NOTE,
    )
  checkpoints.close()
  assert reader.valid_steps(tmp_path) == [2, 3]


def test_every_nth_step_is_kept_in_addition_to_the_newest(tmp_path):
  _, _, _, state, _ = toy_stage.built(toy_stage.config())
  checkpoints = manager.Checkpoints(tmp_path, keep=2, keep_every=3)
  for number in (1, 2, 3, 4, 5, 6, 7, 8):
    checkpoints.save(
      state.replace(step=jnp.int32(number)).fields(),
      toy_stage.Batches(16, hosts.Share()),
      NOTE,
    )
  checkpoints.close()
  assert reader.valid_steps(tmp_path) == [3, 6, 7, 8]


@pytest.mark.parametrize("keep, every", [(0, 0), (1, -1)])
def test_an_invalid_policy_raises_a_clear_error(tmp_path, keep, every):
  with pytest.raises(errors.UserError, match=r"config\.keep_"):
    manager.Checkpoints(tmp_path, keep, every)


@pytest.mark.parametrize("damage", [flip, truncate, edit_note, lose_files])
def test_a_damaged_checkpoint_is_logged_and_the_one_before_is_used(
  copy, damage, caplog
):
  workdir, like, states = copy
  damage(workdir / "checkpoints" / "3")
  with caplog.at_level("WARNING"):
    state, _, batches = restore(workdir, like)
  assert_equal(state, states[2])
  assert batches.get_state() == {"next": 2}
  assert "step 3 is damaged" in caplog.text
  assert (workdir / "damaged" / "3").is_dir()  # Nothing is deleted.


def test_a_flipped_bit_that_orbax_does_not_notice_is_detected(copy):
  workdir, like, states = copy
  folder = workdir / "checkpoints" / "3"
  assert flip_silently(folder, states[3].params)
  with pytest.raises(errors.UserError, match="bits of params/"):
    reader.load_params(workdir, step=3)
  assert_equal(restore(workdir, like)[0], states[2])


def flip_silently(folder, params):
  """Flips a bit of a parameter that Orbax does not notice."""
  paths = [path for path in folder.glob("state/**/d/*") if path.is_file()]
  for path in sorted(paths, key=lambda path: -path.stat().st_size):
    whole = path.read_bytes()
    for offset in range(50, len(whole), 4999):
      path.write_bytes(
        whole[:offset] + bytes([whole[offset] ^ 16]) + whole[offset + 1 :]
      )
      try:
        found = ocp.load_checkpointables(folder)["state"]["params"]
      except (KeyError, ValueError):  # Orbax noticed this flip.
        continue
      if not all(
        np.array_equal(a, b)
        for a, b in zip(
          jax.tree.leaves(found), jax.tree.leaves(params), strict=True
        )
      ):
        return True
    path.write_bytes(whole)
  return False


def test_a_damaged_step_can_be_written_again(copy):
  workdir, like, _ = copy
  flip(workdir / "checkpoints" / "3")
  batches = toy_stage.Batches(16, hosts.Share())
  checkpoints = manager.Checkpoints(workdir, keep=3)
  fields, _ = checkpoints.restore(like.fields(), batches)
  checkpoints.save({**fields, "step": jnp.int32(3)}, batches, NOTE)
  checkpoints.close()
  assert reader.valid_steps(workdir) == [1, 2, 3]


def test_if_all_checkpoints_are_damaged_a_clear_error_is_raised(copy):
  workdir, like, _ = copy
  for step in (1, 2, 3):
    flip(workdir / "checkpoints" / str(step))
  with pytest.raises(errors.UserError, match=r"are damaged .*new workdir"):
    restore(workdir, like)
  assert reader.valid_steps(workdir) == [1, 2, 3]  # They are not moved.


def test_unfinished_checkpoints_are_ignored(copy):
  workdir, like, states = copy
  folder = workdir / "checkpoints"
  (folder / "9").mkdir()
  shutil.copytree(folder / "3", folder / "7")
  (folder / "7" / "commit_success.txt").unlink()
  assert reader.valid_steps(workdir) == [1, 2, 3]
  state, _, batches = restore(workdir, like)
  assert_equal(state, states[3])
  # Orbax alone would consider 9 the newest and refuse to write 4.
  checkpoints = manager.Checkpoints(workdir, keep=3)
  checkpoints.save(state.replace(step=jnp.int32(4)).fields(), batches, NOTE)
  checkpoints.close()
  assert reader.valid_steps(workdir) == [2, 3, 4]


def test_checkpoint_of_another_model_names_path_and_shapes(copy):
  workdir, _, _ = copy
  like = toy_stage.built(toy_stage.config(), toy_stage.make_stage(hidden=32))[2]
  message = (
    r"another model.*params/down/kernel as float32\[2048,8\]"
    r".*needs float32\[32,8\]"
  )
  with pytest.raises(errors.UserError, match=message):
    restore(workdir, like)
  assert reader.valid_steps(workdir) == [1, 2, 3]


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(copy, monkeypatch):
  workdir, like, _ = copy
  monkeypatch.setattr(reader, "FORMAT", 0)
  message = "has format 1 of checkpoints, and this program reads up to 0"
  with pytest.raises(errors.UserError, match=message) as caught:
    restore(workdir, like)
  assert len(str(caught.value).splitlines()) == 1
  with pytest.raises(errors.UserError, match=message):
    reader.load_params(workdir)
  with pytest.raises(errors.UserError, match=message):
    reader.sealed_config(workdir)
  assert reader.valid_steps(workdir) == [1, 2, 3]


def test_load_params_needs_no_mesh_and_no_optimizer(saved):
  workdir, _, states = saved
  params, extra, config = reader.load_params(workdir, step=2)
  assert config == NOTE["config"]
  assert isinstance(params["up"]["kernel"], np.ndarray)
  np.testing.assert_array_equal(
    params["up"]["kernel"], states[2].params["up"]["kernel"]
  )
  assert int(extra["seen"]) == int(states[2].extra["seen"])
  np.testing.assert_array_equal(
    extra["codes"]["mean"], states[2].extra["codes"].mean
  )


def test_load_params_falls_back_unless_a_step_is_requested(copy):
  workdir, _, states = copy
  flip(workdir / "checkpoints" / "3")
  params, _, _ = reader.load_params(workdir)
  np.testing.assert_array_equal(
    params["up"]["bias"], states[2].params["up"]["bias"]
  )
  with pytest.raises(errors.UserError, match="3 is damaged"):
    reader.load_params(workdir, step=3)


def test_load_params_without_a_checkpoint_raises_a_clear_error(tmp_path, saved):
  with pytest.raises(errors.UserError, match="no checkpoint"):
    reader.load_params(tmp_path)
  with pytest.raises(errors.UserError, match=r"of step 8.*1, 2, 3"):
    reader.load_params(saved[0], step=8)


def test_a_checkpoint_that_cannot_be_written_raises_a_helpful_error(
  copy, monkeypatch
):
  workdir, like, _ = copy
  state, _, batches = restore(workdir, like)

  class Full:
    def save_checkpointables_async(self, *_, **__):
      raise OSError(28, "No space left on device")

  checkpoints = manager.Checkpoints(workdir, keep=3)
  monkeypatch.setattr(checkpoints, "_open", Full)
  with pytest.raises(
    errors.RunFailed, match=r"No space left.*resumes from step 3"
  ):
    checkpoints.save(state.replace(step=jnp.int32(4)).fields(), batches, NOTE)


def test_after_a_failed_save_closing_raises_nothing_else(copy, monkeypatch):
  workdir, like, _ = copy
  state, _, batches = restore(workdir, like)
  checkpoints = manager.Checkpoints(workdir, keep=3)

  class Full:
    def save_checkpointables_async(self, *_, **__):
      raise ValueError("Failed to write: No space left on device")

    def close(self):
      raise ValueError("Failed to write: No space left on device")

  monkeypatch.setattr(checkpoints, "_open", lambda: checkpoints._orbax)
  checkpoints._orbax = Full()
  with pytest.raises(errors.RunFailed, match="No space left"):
    checkpoints.save(state.replace(step=jnp.int32(4)).fields(), batches, NOTE)
  checkpoints.close()
  checkpoints = manager.Checkpoints(workdir, keep=3)
  checkpoints._orbax = Full()
  with pytest.raises(ValueError, match="No space left"):
    checkpoints.close()


def test_fingerprint_depends_on_bits_and_positions_but_not_on_the_mesh():
  x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  base = fingerprint.arrays({"x": x})
  _, _, like, _, _ = toy_stage.built(
    toy_stage.config(mesh__fsdp=4, mesh__tensor=2)
  )
  split = jax.device_put(x, like.params["up"]["kernel"].sharding)
  assert fingerprint.arrays({"x": split}) == base
  assert fingerprint.arrays({"x": jnp.asarray(x)}) == base
  for bit in range(32):
    other = x.view(np.uint32).copy()
    other[5, 2] ^= np.uint32(1 << bit)
    assert fingerprint.arrays({"x": other.view(np.float32)}) != base
  assert fingerprint.arrays({"x": x[[1, 0, *range(2, 8)]]}) != base


def test_a_note_is_json_with_a_checksum_of_its_content():
  note = reader.seal({"a": (1, 2)})
  assert json.loads(json.dumps(note)) == note
  assert note["a"] == [1, 2] and len(note["seal"]) == 64
