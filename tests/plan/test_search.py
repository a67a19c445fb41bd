"""Tests of the search over layouts, without compiling."""

import math
import pathlib

import pytest

from genie_jax.core import config as config_lib
from genie_jax.core import errors
from genie_jax.nn import st_transformer
from genie_jax.plan import topology
from genie_jax.plan.search import analytic, search
from genie_jax.sharding import mesh as mesh_lib
from tests.cli.test_main import CONFIGS

EIGHT_CHIPS = topology.parse("v5p:2x2x2")
EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"
LIMIT = 8  # The default of `genie plan --search`.


def config(batch_size=16):
  found = config_lib.load(f"{CONFIGS / 'dynamics.py'}:smoke").unlock()
  found.data.batch_size = batch_size
  return found


def test_every_candidate_uses_all_devices_and_splits_the_batch():
  found = search.candidates(config(), EIGHT_CHIPS)
  assert found
  for candidate in found:
    mesh = candidate.mesh
    assert math.prod(mesh.values()) == 8
    assert 16 % (mesh["data"] * mesh["fsdp"] * candidate.accumulate) == 0
    assert config().data.num_frames % mesh["frame"] == 0
  kinds = {(tuple(x.mesh.values()), x.remat, x.accumulate) for x in found}
  assert len(kinds) == len(found)
  assert {x.remat for x in found} == set(st_transformer.REMAT_POLICIES)


def test_the_first_candidate_for_a_small_model_is_the_simplest():
  first = search.candidates(config(), EIGHT_CHIPS)[0]
  assert sorted(first.mesh.values()) == [1, 1, 1, 8]
  assert first.mesh["tensor"] == first.mesh["frame"] == 1
  assert (first.remat, first.accumulate) == ("none", 1)


def test_the_layout_of_the_shipped_config_is_among_the_first_candidates():
  shipped = config_lib.load(str(EXPERIMENTS / "platformers/dynamics.py"))
  slice_ = topology.parse("v5p:4x8x8")
  found = search.candidates(shipped, slice_)
  assert len(found) > 1000
  assert (
    search.Candidate(
      mesh_lib.sizes(shipped.mesh, slice_.num_devices),
      shipped.model.transformer.remat,
      shipped.optimizer.accumulate,
    )
    in found[:LIMIT]
  ), found[:LIMIT]


def test_the_first_candidates_differ_in_mesh_and_policy():
  shipped = config_lib.load(str(EXPERIMENTS / "platformers/dynamics.py"))
  first = search.candidates(shipped, topology.parse("v5p:4x8x8"))[:LIMIT]
  assert len({tuple(x.mesh.values()) for x in first}) > 2
  assert len({x.remat for x in first}) > 2
  kinds = {(*x.mesh.values(), x.remat) for x in first}
  assert len(kinds) == len(first)


def test_remat_policies_are_ordered_by_recomputation():
  assert set(analytic.REMAT_POLICIES) == set(st_transformer.REMAT_POLICIES)
  found = analytic.facts(
    config_lib.load(str(EXPERIMENTS / "platformers/dynamics.py"))
  )
  mesh = {"data": 4, "fsdp": 64, "tensor": 1, "frame": 1}
  estimates = [
    analytic.estimate(found, mesh, remat, 2, topology.parse("v5p:4x8x8"))
    for remat in analytic.REMAT_POLICIES
  ]
  seconds = [x.seconds for x in estimates]
  assert seconds == sorted(seconds)
  assert estimates[0].bytes == max(x.bytes for x in estimates)
  assert estimates[-1].bytes == min(x.bytes for x in estimates)


def test_rough_estimates_are_close_to_the_plans_of_the_final_model():
  # Expected values: `genie plan --config experiments/platformers/dynamics.py`
  # on 256 chips, and on 512 with --config.optimizer.accumulate=1.
  found = analytic.facts(
    config_lib.load(str(EXPERIMENTS / "platformers/dynamics.py"))
  )
  mesh = {"data": 4, "fsdp": 64, "tensor": 1, "frame": 1}
  rough = analytic.estimate(
    found, mesh, "products", 2, topology.parse("v5p:4x8x8")
  )
  assert rough.bytes / 2**30 == pytest.approx(79.2, rel=0.05)
  assert rough.seconds == pytest.approx(6.14, rel=0.05)
  mesh["data"] = 8
  rough = analytic.estimate(
    found, mesh, "products", 1, topology.parse("v5p:8x8x8")
  )
  assert rough.bytes / 2**30 == pytest.approx(78.1, rel=0.05)
  assert rough.seconds == pytest.approx(3.07, rel=0.05)


def test_meshes_that_do_not_split_the_heads_are_omitted():
  shipped = config_lib.load(str(EXPERIMENTS / "platformers/dynamics.py"))
  found = search.candidates(shipped, topology.parse("v5p:4x8x8"))
  # The model has 36 heads.
  assert {x.mesh["tensor"] for x in found} == {1, 2, 4}
  mesh = {"data": 4, "fsdp": 8, "tensor": 8, "frame": 1}
  assert "heads" in analytic.layout_error(analytic.facts(shipped), mesh, 1, 1)


def test_the_axis_data_is_a_multiple_of_the_slices():
  two_slices = topology.parse("v5p:2x2x1", slices=2)
  for candidate in search.candidates(config(), two_slices):
    assert candidate.mesh["data"] % 2 == 0


def test_applying_a_candidate_changes_a_copy_of_the_config():
  before = config()
  candidate = next(
    x
    for x in search.candidates(before, EIGHT_CHIPS)
    if x.accumulate == 2 and x.remat == "full"
  )
  changed = candidate.apply(before)
  assert changed.optimizer.accumulate == 2
  assert changed.model.transformer.remat == "full"
  assert dict(changed.mesh) == candidate.mesh
  assert before.model.transformer.remat != "full"
  for name, size in candidate.mesh.items():
    assert f"--config.mesh.{name}={size}" in candidate.flags


def test_plans_are_ranked_by_fit_and_time_with_rejected_ones_last():
  answers = iter(
    [
      {"fits": False, "step_seconds": None},
      {"fits": True, "step_seconds": 2},
      None,
      {"fits": True, "step_seconds": 1},
    ]
  )

  def planner(config, topology):
    del config, topology
    answer = next(answers)
    if answer is None:
      raise errors.UserError("Dimension 1 does not split.")
    return {**answer, "hbm_gib_per_chip": 1.0, "mfu": 0.5}, ""

  rows = search.run(config(), EIGHT_CHIPS, 4, planner)
  assert [row["step_seconds"] for row in rows] == [1, 2, None, None]
  assert [("refused" in row) for row in rows].count(True) == 1
  text = search.render(rows)
  assert "does not split" in text and "too large" in text
  assert max(map(len, text.splitlines())) <= 95
