"""Tests of the tokenizer that is stored in a token folder."""

import dataclasses

import jax
import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.data import manifest
from genie_jax.models import store
from genie_jax.stages import registry, rollouts
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
