"""Tests of the search over layouts; nothing is compiled."""

import math

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.nn import st_transformer
from genie_jax.scaling import search, topology
from tests.cli.test_main import CONFIGS

PLACE = topology.parse("v5p:2x2x2")


def config(batch_size=16):
  found = config_lib.load(f"{CONFIGS / 'dynamics.py'}:smoke").unlock()
  found.data.batch_size = batch_size
  return found


def test_every_candidate_uses_all_devices_and_splits_the_batch():
  found = search.candidates(config(), PLACE)
  assert found
  for candidate in found:
    mesh = candidate.mesh
    assert math.prod(mesh.values()) == 8
    assert 16 % (mesh["data"] * mesh["fsdp"] * candidate.accumulate) == 0
    assert config().data.num_frames % mesh["frame"] == 0
  kinds = {(tuple(x.mesh.values()), x.remat, x.accumulate) for x in found}
  assert len(kinds) == len(found)
  assert {x.remat for x in found} == set(st_transformer.REMAT_POLICIES)


def test_whole_clips_come_before_split_layers():
  first = search.candidates(config(), PLACE)[0]
  assert first.mesh["tensor"] == first.mesh["frame"] == 1
  assert first.accumulate == 1


def test_replicas_are_a_multiple_of_the_slices():
  place = topology.parse("v5p:2x2x1", slices=2)
  for candidate in search.candidates(config(), place):
    assert candidate.mesh["data"] % 2 == 0


def test_a_candidate_changes_a_copy():
  before = config()
  candidate = next(x for x in search.candidates(before, PLACE)
                   if x.accumulate == 2 and x.remat == "full")
  changed = candidate.apply(before)
  assert changed.optimizer.accumulate == 2
  assert changed.model.transformer.remat == "full"
  assert dict(changed.mesh) == candidate.mesh
  assert before.model.transformer.remat != "full"
  for name, size in candidate.mesh.items():
    assert f"--config.mesh.{name}={size}" in candidate.flags


def test_what_fits_and_is_fast_comes_first_and_the_refused_last():
  answers = iter([
      {"fits": False, "step_seconds": None}, {"fits": True, "step_seconds": 2},
      None, {"fits": True, "step_seconds": 1}])

  def make(changed, place):
    del changed, place
    answer = next(answers)
    if answer is None:
      raise errors.UserError("Dimension 1 does not split.")
    return {**answer, "hbm_gib_per_chip": 1.0, "mfu": 0.5}, ""

  rows = search.run(config(), PLACE, 4, make)
  assert [row["step_seconds"] for row in rows] == [1, 2, None, None]
  assert [("refused" in row) for row in rows].count(True) == 1
  text = search.render(rows)
  assert "does not split" in text and "too large" in text
  assert max(map(len, text.splitlines())) <= 95
