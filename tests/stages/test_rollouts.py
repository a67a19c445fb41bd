"""Tests of the models that are stored in a token folder."""

import dataclasses

import jax
import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.evals import code_buttons
from genie_jax.models import button_map, store
from genie_jax.stages import dynamics, registry, rollouts
from tests.fixtures import memory_bucket, stage_data


@pytest.fixture
def tokens(tmp_path, monkeypatch):
  """A token folder of the smoke configs, and its address in a bucket."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  config = config_lib.load("experiments/coinrun/tokenizer.py:smoke")
  folder = stage_data.write_tokens(
    tmp_path / "tokens",
    (64, 64, 3),
    grid=(4, 4),
    num_codes=64,
    tokenizer=stage_data.random_part("tokenizer", config),
  )
  dataclasses.replace(
    manifest.Manifest.read(folder),
    tokenizer_fingerprint=store.load(folder / "tokenizer").fingerprint,
  ).write(folder)
  return folder, memory_bucket.upload(folder, f"{memory_bucket.empty()}/tokens")


def test_the_tokenizer_of_tokens_in_a_bucket_equals_that_on_disk(tokens):
  folder, address = tokens
  found, wanted = map(rollouts.tokenizer_of, (address, folder))
  assert found.config == wanted.config
  jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


def test_a_changed_tokenizer_in_the_bucket_is_refused(tokens):
  memory_bucket.flip(f"{tokens[1]}/tokenizer/model.safetensors")
  with pytest.raises(
    errors.UserError, match=f"not the tokenizer that made {tokens[1]};"
  ):
    rollouts.tokenizer_of(tokens[1])


def test_a_stage_reads_its_data_from_a_bucket(tokens):
  folder, address = tokens
  batches = [
    registry.make(
      config_lib.load(
        "experiments/coinrun/dynamics.py:smoke", [f"--config.data.path={where}"]
      )
    )
    .open_source("validation")
    .gather([0, 1])
    for where in (folder, address)
  ]
  jax.tree.map(np.testing.assert_array_equal, *batches)


def press_config(folder, buttons, **changes):
  """Returns a config whose token folder has a LAM with these buttons."""
  lam = config_lib.load("experiments/coinrun/lam.py:smoke")
  part = stage_data.random_part("lam", lam)
  if buttons is not None:
    part = code_buttons.with_buttons(part, buttons)
  store.save(folder / "lam", {"lam": part})
  config = config_lib.load(
    "experiments/coinrun/dynamics.py:smoke", [f"--config.data.path={folder}"]
  )
  config.update(changes)
  return config


def test_presses_are_varied_by_the_buttons_of_the_token_folder(tokens):
  codes = (0, 1, 1, 2, -1, 2, 2, 2)
  buttons = button_map.ButtonMap(("none", "run", "up"), codes, (0, 0, 2), 0)
  recorded = np.array([[1, 2, 2, 1, 1, 1, 0]], np.int32)
  longer = press_config(tokens[0], buttons, press_frames=(4, 4))
  key = jax.random.key(0)
  found = dynamics.presses(longer)(recorded, key)
  assert found.tolist() == [[1, 2, 2, 2, 2, 1, 0]]
  longer.press_frames = (1, 4)
  vary = jax.jit(dynamics.presses(longer))
  lengths = {
    int((vary(recorded, jax.random.key(seed)) == 2).sum()) for seed in range(40)
  }
  assert lengths == {1, 2, 3, 4}
  for field, value in (("press_frames", ()), ("actions", "true")):
    same = longer.copy_and_resolve_references()
    same[field] = value
    assert dynamics.presses(same)(recorded, key) is recorded


def test_codes_without_buttons_are_not_varied(tokens):
  config = press_config(tokens[0], None, press_frames=(1, 8))
  recorded = np.array([[1, 2, 2, 1]], np.int32)
  assert dynamics.presses(config)(recorded, jax.random.key(0)) is recorded


@pytest.mark.parametrize("lengths", [(3,), (0, 2), (4, 3)])
def test_lengths_of_presses_out_of_range_are_refused(lengths):
  config = config_lib.load("experiments/coinrun/dynamics.py:smoke")
  config.press_frames = lengths
  with pytest.raises(errors.UserError, match=r"press_frames=\(.*for example"):
    dynamics.make(config)
