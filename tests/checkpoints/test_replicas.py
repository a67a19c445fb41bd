"""Tests of the comparison of copies."""

import jax
import numpy as np
import pytest

from genie_jax.checkpoints import replicas
from genie_jax.train import loop
from tests.fixtures import toy_stage


def corrupt(x, *devices, bit=0):
  """Returns the array with one bit flipped in the copies of some devices."""
  copies = []
  for shard in x.addressable_shards:
    block = np.array(shard.data)
    if shard.device.id in devices:
      block.view(np.uint32).reshape(-1)[-1] ^= np.uint32(1 << bit)
    copies.append(jax.device_put(block, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, copies)


@pytest.fixture(scope="module")
def tree():
  changes = dict(mesh__data=2, mesh__fsdp=2, mesh__tensor=2)
  _, _, _, state, _ = toy_stage.built(toy_stage.config(**changes))
  return state.fields()


def test_equal_copies_pass(tree):
  replicas.check(tree, 1)


@pytest.mark.parametrize("bit", [0, 31])
def test_one_flipped_bit_is_found_and_its_chip_named(tree, bit):
  # The bias is split over tensor, so each part has 4 copies.
  params = tree["params"]
  up = dict(params["up"], bias=corrupt(params["up"]["bias"], 5, bit=bit))
  damaged = dict(tree, params=dict(params, up=up))
  with pytest.raises(replicas.Differ, match="params/up/bias") as error:
    replicas.check(damaged, 7)
  assert "step 7" in str(error.value) and "1 of " in str(error.value)
  assert f"odd are {jax.devices()[5]} of process 0. " in str(error.value)


def test_both_of_two_copies_that_differ_are_named(tree):
  params = tree["params"]
  # The kernel is split over fsdp and tensor, so each part has 2 copies.
  up = dict(params["up"], kernel=corrupt(params["up"]["kernel"], 6))
  damaged = dict(tree, params=dict(params, up=up))
  with pytest.raises(replicas.Differ) as error:
    replicas.check(damaged, 7)
  assert str(error.value).count("of process") == 2


def test_a_run_does_not_save_copies_that_differ(tmp_path, monkeypatch):
  advance = loop._Run._advance

  def strike(self, state, batches, number, compiles):
    state = advance(self, state, batches, number, compiles)
    if number == 3:
      params = state.params
      up = dict(params["up"], bias=corrupt(params["up"]["bias"], 1))
      state = state.replace(params=dict(params, up=up))
    return state

  monkeypatch.setattr(loop._Run, "_advance", strike)
  fields = toy_stage.config(mesh__data=-1, mesh__fsdp=1)
  with pytest.raises(replicas.Differ) as error:
    loop.train(
      toy_stage.make_stage(), fields, tmp_path, *toy_stage.makers(fields)
    )
  assert error.value.code == 1  # A restart resumes from step 2.
  assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir()] == [2]
