"""Tests of the estimated time of a program, against hand computations."""

import pytest

from genie_jax.plan.cost import collectives, kernels, schedule
from genie_jax.plan.hlo import op_names, parse
from tests.plan import programs

CHIP = programs.CHIP
RING = programs.ring(4)
GATHER = (3 / 4) * programs.GATHERED_BYTES / (2 * CHIP.link_bandwidth) + 2e-6


def test_cycles_are_summed_over_loops_calls_and_the_slowest_branch():
  found = schedule.estimate(programs.LOOPS, RING)
  assert found.compute == pytest.approx(programs.LOOPS_CYCLES / CHIP.clock)
  assert found.kernels == found.exposed == 0
  assert not found.unknown_loops
  assert found.total == found.compute


def test_seconds_are_attributed_to_parts_of_the_model():
  found = schedule.estimate(programs.LOOPS, RING)
  assert found.parts["mlp", "forward"] == pytest.approx(100 / CHIP.clock)
  assert sum(found.parts.values()) == pytest.approx(found.compute)


def test_a_loop_with_unknown_trip_count_counts_once_and_is_listed():
  text = programs.LOOPS.replace(
    "s32[]{:T(128)} constant(3)", "s32[]{:T(128)} parameter(7)"
  )
  found = schedule.estimate(text, RING)
  assert found.unknown_loops == ["loop"]
  cycles = programs.LOOPS_CYCLES - 2 * (10 + 5 * 7 + 2)
  assert found.compute == pytest.approx(cycles / CHIP.clock)


def test_a_gather_overlaps_with_compute_scheduled_before_its_end():
  long = schedule.estimate(programs.gather(between=10_000_000), RING)
  assert long.exposed == 0
  [(kind, row)] = long.collectives.items()
  assert kind == "all-gather" and row.count == 1
  assert row.bytes == pytest.approx(0.75 * programs.GATHERED_BYTES)
  assert row.seconds == pytest.approx(GATHER)


def test_the_part_of_a_gather_that_does_not_overlap_is_exposed():
  cycles = 10_000
  found = schedule.estimate(programs.gather(cycles), RING)
  assert found.compute == pytest.approx(cycles / CHIP.clock)
  assert found.exposed == pytest.approx(GATHER - cycles / CHIP.clock)
  assert found.total == pytest.approx(GATHER)


def test_a_synchronous_collective_is_exposed():
  found = schedule.estimate(programs.all_reduce(), RING)
  assert found.exposed == pytest.approx(2 * GATHER)
  assert found.collectives["all-reduce"].exposed == found.exposed


def test_two_gathers_use_the_links_one_after_the_other():
  found = schedule.estimate(programs.two_gathers(1000), RING)
  assert found.collectives["all-gather"].count == 2
  assert found.total == pytest.approx(2 * GATHER)


def test_two_gathers_along_different_dimensions_overlap():
  # Four by four chips: the first gather is along the second dimension, and the
  # other one along the first.
  square = collectives.Network(
    tuple(
      collectives.Position((x, y, 0), 0) for x in range(4) for y in range(4)
    ),
    (4, 4, 1),
    (True, True, False),
    CHIP,
  )
  listed = "replica_groups={{0,1,2,3}}"
  rows = "replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}"
  columns = "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}"
  text = programs.two_gathers(1000)
  first, second = text.split("%start2", maxsplit=1)
  assert listed in first and listed in second
  same = text.replace(listed, rows)
  apart = "%start2".join(
    [first.replace(listed, rows), second.replace(listed, columns)]
  )
  assert schedule.estimate(same, square).total == pytest.approx(2 * GATHER)
  found = schedule.estimate(apart, square)
  assert found.total == pytest.approx(GATHER)
  assert found.collectives["all-gather"].seconds == pytest.approx(2 * GATHER)


def test_an_unfused_start_and_done_are_simulated_too():
  found = schedule.estimate(programs.plain_gather(10_000), RING)
  assert found.collectives["all-gather"].seconds == pytest.approx(GATHER)
  assert found.total == pytest.approx(GATHER)
  assert schedule.estimate(programs.plain_gather(10_000_000), RING).exposed == 0


def test_a_transfer_between_slices_overlaps_with_compute():
  two = programs.ring(4, slices=2)
  seconds = programs.GATHERED_BYTES / CHIP.dcn_bandwidth  # Half, both ways.
  cycles = 1_000_000
  found = schedule.estimate(programs.slice_all_reduce(cycles), two)
  row = found.collectives["between slices: all-reduce"]
  assert row.count == 1 and row.seconds == pytest.approx(seconds)
  assert found.compute == pytest.approx(cycles / CHIP.clock)
  assert found.exposed == pytest.approx(seconds - cycles / CHIP.clock)
  assert schedule.estimate(programs.slice_all_reduce(10**9), two).exposed == 0


def test_waiting_for_a_copy_from_hbm_counts_as_compute():
  seconds = programs.GATHERED_BYTES / CHIP.hbm_bandwidth
  found = schedule.estimate(programs.copy_from_hbm(10), RING)
  assert found.compute == pytest.approx(seconds)
  assert found.exposed == 0
  hidden = schedule.estimate(programs.copy_from_hbm(1_000_000), RING)
  assert hidden.compute == pytest.approx(1_000_000 / CHIP.clock)


def test_a_copy_to_the_host_takes_the_bandwidth_of_its_link():
  moved = 2 * 1024 * 4096
  found = schedule.estimate(programs.copy_to_host(10), RING)
  assert found.host_bytes == moved
  assert found.compute == pytest.approx(moved / CHIP.host_bandwidth)
  hidden = schedule.estimate(programs.copy_to_host(10_000_000), RING)
  assert hidden.compute == pytest.approx(10_000_000 / CHIP.clock)


def test_an_unknown_kernel_is_bounded_and_counts_in_every_iteration():
  found = schedule.estimate(programs.kernel(), RING)
  assert found.unknown_kernels == {"mystery"}
  assert found.kernels > 0 and found.kernel_seconds["mystery"] == found.kernels
  bound = kernels.bound_from_shapes(
    _arrays("bf16[64,128]"), _arrays("bf16[64,128]")
  )
  assert found.kernels == pytest.approx(
    3
    * max(
      bound.flops / (CHIP.peak_flops / 2),
      bound.vector_operations / CHIP.vector_rate,
      2 * 2 * 64 * 128 / CHIP.hbm_bandwidth,
    )
  )


def test_the_authors_estimate_of_a_kernel_is_used_if_it_is_larger():
  stated = (
    ',"cost_estimate":{"flops":"4590000000000",'
    '"transcendentals":"0","bytes_accessed":"0"}'
  )
  found = schedule.estimate(programs.kernel(stated=stated), RING)
  assert found.kernels == pytest.approx(3 * 2 * 0.01)


def test_slower_kernels_make_a_slower_step():
  found = schedule.estimate(programs.kernel(), RING)
  assert schedule.step_seconds(found, 2.0) == pytest.approx(
    found.total + found.kernels
  )


@pytest.mark.parametrize(
  "path, expected",
  [
    (
      "jit(step)/jvp(D)/stack/while/body/layers/space/qkv/dot_general",
      ("projections", "forward"),
    ),
    (
      "jit(step)/transpose(jvp(D))/stack/while/body/checkpoint/"
      "rematted_computation/layers/time/exp",
      ("time attention", "recomputed"),
    ),
    (
      "jit(step)/transpose(jvp(D))/layers/space/bnhqt,btnhk",
      ("space attention", "backward"),
    ),
    ("jit(step)/transpose(jvp(D))/layers/mlp_norm/mul", ("norms", "backward")),
    ("jit(step)/mul", ("optimizer and other", "")),
    ("", ("unnamed", "")),
  ],
)
def test_paths_are_mapped_to_parts_and_passes(path, expected):
  assert op_names.classify(path) == expected


def _arrays(text):
  return parse.parse_arrays(text + "{1,0:T(8,128)(2,1)}")
