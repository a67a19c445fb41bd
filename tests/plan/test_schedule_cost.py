"""Tests of the seconds of a program, by hand."""

import pytest

from genie_jax.core import chips
from genie_jax.plan.cost import kernels, schedule
from genie_jax.plan.hlo import op_names
from tests.plan import programs

CHIP = programs.CHIP
RING = programs.ring(4)
GATHER = (3 / 4) * programs.GATHERED_BYTES / (2 * CHIP.link_bandwidth) + 2e-6


def test_cycles_are_summed_over_loops_calls_and_the_longest_branch():
  found = schedule.of(programs.LOOPS, RING)
  assert found.compute == pytest.approx(programs.LOOPS_CYCLES / CHIP.clock)
  assert found.kernels == found.exposed == 0
  assert not found.unknown_loops
  assert found.total == found.compute


def test_seconds_are_told_apart_by_the_part_of_the_model():
  found = schedule.of(programs.LOOPS, RING)
  assert found.parts["mlp", "forward"] == pytest.approx(100 / CHIP.clock)
  assert sum(found.parts.values()) == pytest.approx(found.compute)


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  text = programs.LOOPS.replace(
    "s32[]{:T(128)} constant(3)", "s32[]{:T(128)} parameter(7)"
  )
  found = schedule.of(text, RING)
  assert found.unknown_loops == ["loop"]
  cycles = programs.LOOPS_CYCLES - 2 * (10 + 5 * 7 + 2)
  assert found.compute == pytest.approx(cycles / CHIP.clock)


def test_a_gather_hides_behind_what_is_scheduled_beside_it():
  long = schedule.of(programs.gather(between=10_000_000), RING)
  assert long.exposed == 0
  [(kind, row)] = long.collectives.items()
  assert kind == "all-gather" and row.count == 1
  assert row.bytes == pytest.approx(0.75 * programs.GATHERED_BYTES)
  assert row.seconds == pytest.approx(GATHER)


def test_what_is_not_hidden_of_a_gather_is_exposed():
  cycles = 10_000
  found = schedule.of(programs.gather(cycles), RING)
  assert found.compute == pytest.approx(cycles / CHIP.clock)
  assert found.exposed == pytest.approx(GATHER - cycles / CHIP.clock)
  assert found.total == pytest.approx(GATHER)


def test_a_collective_without_an_end_of_its_own_is_exposed():
  found = schedule.of(programs.reduced(), RING)
  assert found.exposed == pytest.approx(2 * GATHER)
  assert found.collectives["all-reduce"].exposed == found.exposed


def test_two_gathers_share_the_links():
  found = schedule.of(programs.two_gathers(1000), RING)
  assert found.collectives["all-gather"].count == 2
  assert found.total == pytest.approx(2 * GATHER)


def test_a_plain_start_and_done_are_read_alike():
  found = schedule.of(programs.plain_gather(10_000), RING)
  assert found.collectives["all-gather"].seconds == pytest.approx(GATHER)
  assert found.total == pytest.approx(GATHER)
  assert schedule.of(programs.plain_gather(10_000_000), RING).exposed == 0


def test_a_transfer_between_slices_hides_behind_work():
  two = programs.ring(4, slices=2)
  seconds = programs.GATHERED_BYTES / CHIP.dcn_bandwidth  # Half, both ways.
  cycles = 1_000_000
  found = schedule.of(programs.sent(cycles), two)
  row = found.collectives["between slices: all-reduce"]
  assert row.count == 1 and row.seconds == pytest.approx(seconds)
  assert found.compute == pytest.approx(cycles / CHIP.clock)
  assert found.exposed == pytest.approx(seconds - cycles / CHIP.clock)
  assert schedule.of(programs.sent(10**9), two).exposed == 0


def test_a_copy_from_hbm_is_waited_for_as_compute():
  seconds = programs.GATHERED_BYTES / CHIP.hbm_bandwidth
  found = schedule.of(programs.copied(10), RING)
  assert found.compute == pytest.approx(seconds)
  assert found.exposed == 0
  hidden = schedule.of(programs.copied(1_000_000), RING)
  assert hidden.compute == pytest.approx(1_000_000 / CHIP.clock)


def test_a_slice_goes_to_the_host_at_the_speed_of_its_link():
  moved = 2 * 1024 * 4096
  found = schedule.of(programs.offloaded(10), RING)
  assert found.host_bytes == moved
  assert found.compute == pytest.approx(moved / chips.HOST_BANDWIDTH)
  hidden = schedule.of(programs.offloaded(10_000_000), RING)
  assert hidden.compute == pytest.approx(10_000_000 / CHIP.clock)


def test_a_kernel_is_never_free_and_counts_in_every_turn_of_a_loop():
  found = schedule.of(programs.kernel(), RING)
  assert found.unknown_kernels == {"mystery"}
  assert found.kernels > 0 and found.kernel_seconds["mystery"] == found.kernels
  bound = kernels.unknown(
    [*_arrays("bf16[64,128]")], [*_arrays("bf16[64,128]")]
  )
  assert found.kernels == pytest.approx(
    3
    * max(
      bound.flops / (CHIP.peak_flops / 2),
      bound.vector_operations / CHIP.vector_rate,
      2 * 2 * 64 * 128 / CHIP.hbm_bandwidth,
    )
  )


def test_what_an_author_states_of_a_kernel_counts_if_it_is_more():
  stated = (
    ',"cost_estimate":{"flops":"4590000000000",'
    '"transcendentals":"0","bytes_accessed":"0"}'
  )
  found = schedule.of(programs.kernel(stated=stated), RING)
  assert found.kernels == pytest.approx(3 * 2 * 0.01)


def test_slower_kernels_make_a_slower_step():
  found = schedule.of(programs.kernel(), RING)
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
def test_paths_name_parts(path, expected):
  assert op_names.of(path) == expected


def _arrays(text):
  from genie_jax.plan.hlo import parse

  return parse.arrays(text + "{1,0:T(8,128)(2,1)}")
