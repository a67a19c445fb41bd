"""Tests that the ctypes client plays like gym3, and of its error messages."""

import ctypes
import hashlib
import os
import subprocess
import types

import numpy as np
import pytest

from data_pipelines.procgen import client as procgen_client
from genie_jax.core import errors

# SHA-256 over frame, first flag and float32 reward of 1,000 steps in each of
# levels 0, 1, 7 and 10003, recorded with gym3 0.3.3 and procgen-mirror 0.10.7
# (num=1, num_levels=1, start_level=level, num_threads=0, rand_seed=0) and the
# actions default_rng([0, level]).integers(0, 15, 1000, dtype=int32).
_GYM3 = {
  "hard": "dcbe872b87854e61430720ca3e16fd4b3a586411c7ec816ccffdb2bf513cd073",
  "easy": "1ad633e184121b01f63de8146ed0117113530231f9848fe608ccd451a74fe756",
}


@pytest.mark.parametrize("mode", ["hard", "easy"])
def test_frames_flags_and_rewards_are_bit_identical_to_gym3(procgen, mode):
  digest = hashlib.sha256()
  for level in (0, 1, 7, 10003):
    actions = np.random.default_rng([0, level]).integers(
      0, 15, 1000, dtype=np.int32
    )
    with procgen.Env("coinrun", level, mode) as game:
      for action in actions.tolist():
        reward, first = game.observe()
        digest.update(game.frame.tobytes())
        digest.update(bytes([first]) + np.float32(reward).tobytes())
        game.act(action)
  assert digest.hexdigest() == _GYM3[mode]


def _frames(procgen, actions: list[int], level: int = 7) -> list[bytes]:
  frames = []
  with procgen.Env("coinrun", level) as game:
    for action in actions:
      game.observe()
      frames.append(game.frame.tobytes())
      game.act(action)
  return frames


def test_actions_9_to_14_do_exactly_what_action_4_does(procgen):
  from data_pipelines.procgen import collect

  actions = np.random.default_rng(1).integers(0, 15, 300).tolist()
  merged = [
    collect.action_aliases("coinrun").get(action, action) for action in actions
  ]
  assert merged != actions
  assert _frames(procgen, actions) == _frames(procgen, merged)
  # Other actions are not aliases: they change the frames.
  assert _frames(procgen, [7] * 20) != _frames(procgen, [4] * 20)


def test_every_reset_starts_the_same_level_with_the_same_frame(procgen):
  starts = []
  with procgen.Env("coinrun", 33) as game:
    for action in np.random.default_rng(0).integers(0, 9, 600).tolist():
      _, first = game.observe()
      if first:
        starts.append(game.frame.copy())
      game.act(action)
  assert len(starts) > 1
  assert all((start == starts[0]).all() for start in starts)


@pytest.fixture
def unloaded():
  """Clears the cache of `load` before and after a test."""
  procgen_client.load.cache_clear()
  yield
  procgen_client.load.cache_clear()


def test_a_missing_libgl_gives_the_install_command(
  procgen, unloaded, monkeypatch
):
  def fail(path, mode):
    raise OSError("libGL.so.1: cannot open shared object file")

  monkeypatch.setattr(ctypes, "CDLL", fail)
  with pytest.raises(errors.UserError) as caught:
    procgen.load()
  assert "libGL.so.1" in str(caught.value)
  assert "apt-get install -y libgl1 libglib2.0-0" in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_wrong_genie_procgen_is_named(monkeypatch, tmp_path):
  monkeypatch.setenv("GENIE_PROCGEN", str(tmp_path))
  with pytest.raises(errors.UserError, match=r"GENIE_PROCGEN=.*unset it"):
    procgen_client.folder()


def test_genie_procgen_is_used_instead_of_the_cache(
  procgen, monkeypatch, tmp_path
):
  (tmp_path / "unpacked").symlink_to(procgen.folder())
  monkeypatch.setenv("GENIE_PROCGEN", str(tmp_path / "unpacked"))
  assert procgen_client.folder() == tmp_path / "unpacked"


def _pip(monkeypatch, tmp_path, code: int, content: bytes | None) -> None:
  """Replaces pip by a stub that exits with `code` and writes `content`."""
  monkeypatch.delenv("GENIE_PROCGEN", raising=False)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

  def run(command, **options):
    if content is not None:
      folder = command[command.index("--dest") + 1]
      with open(os.path.join(folder, "p.whl"), "wb") as file:
        file.write(content)
    return types.SimpleNamespace(returncode=code, stderr="a\nno network\n")

  monkeypatch.setattr(subprocess, "run", run)


def test_without_a_network_the_error_has_pips_message_and_a_remedy(
  monkeypatch, tmp_path
):
  _pip(monkeypatch, tmp_path, 1, None)
  with pytest.raises(errors.UserError, match=r"no network.*GENIE_PROCGEN"):
    procgen_client.folder()
  assert not list((tmp_path / "genie_jax").iterdir())


def test_a_wheel_with_another_checksum_is_not_unpacked(monkeypatch, tmp_path):
  _pip(monkeypatch, tmp_path, 0, b"not the wheel")
  with pytest.raises(errors.UserError, match=r"has sha256 .* is needed"):
    procgen_client.folder()
  assert not list((tmp_path / "genie_jax").iterdir())


def test_the_error_on_other_machines_names_the_supported_one(monkeypatch):
  monkeypatch.setattr(procgen_client.platform, "machine", lambda: "aarch64")
  with pytest.raises(errors.UserError, match="x86-64 Linux only"):
    procgen_client.folder()
