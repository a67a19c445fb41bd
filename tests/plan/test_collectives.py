"""Tests of the seconds of collectives, by hand."""

import dataclasses
import itertools

import pytest

from genie_jax.core import chips
from genie_jax.plan.cost import collectives
from tests.plan import programs

GB = 1e9
FAST = dataclasses.replace(
  programs.CHIP, link_bandwidth=100 * GB, dcn_bandwidth=10 * GB, devices=1
)
HOP = collectives.HOP_SECONDS


def box(*dims, wrap=(True, True, True), chip=FAST):
  return collectives.Network(
    tuple(
      collectives.Place(c, 0) for c in itertools.product(*map(range, dims))
    ),
    dims,
    wrap,
    chip,
  )


def whole(network):
  return [list(range(len(network.places)))]


def test_a_ring_carries_both_ways_and_a_line_one_way():
  ring, line = box(8, 1, 1), box(8, 1, 1, wrap=(False,) * 3)
  share = 7 / 8
  assert ring.seconds("all-gather", 8 * GB, whole(ring)) == pytest.approx(
    share * 8 / 200 + 4 * HOP
  )
  assert line.seconds("all-gather", 8 * GB, whole(line)) == pytest.approx(
    share * 8 / 100 + 7 * HOP
  )


def test_more_torus_dimensions_are_faster_in_proportion():
  cube = box(8, 8, 4)
  assert cube.seconds("all-gather", GB, whole(cube)) == pytest.approx(
    (255 / 256) / 600 + 10 * HOP
  )
  # A group along one dimension has that one's links.
  column = [i * 4 for i in range(8)]  # Coordinates (0, 0..7, 0).
  assert cube.seconds("all-gather", GB, [column]) == pytest.approx(
    (7 / 8) / 200 + 4 * HOP
  )


def test_a_sum_passes_twice_and_a_scatter_once():
  ring = box(4, 1, 1)
  gather = ring.seconds("all-gather", GB, whole(ring))
  assert ring.seconds("reduce-scatter", GB, whole(ring)) == gather
  assert ring.seconds("all-reduce", GB, whole(ring)) == pytest.approx(
    2 * gather
  )


def test_an_exchange_of_all_with_all_is_bound_by_the_middle():
  ring, line = box(8, 1, 1), box(8, 1, 1, wrap=(False,) * 3)
  # Each half sends half of its 4 GB over two links that way round, twice.
  assert ring.seconds("all-to-all", GB, whole(ring)) == pytest.approx(
    8 / (8 * 100) + 4 * HOP
  )
  assert line.seconds("all-to-all", GB, whole(line)) == pytest.approx(
    8 / (4 * 100) + 7 * HOP
  )


def test_a_group_with_gaps_shares_its_links_with_its_neighbours():
  ring = box(8, 1, 1)
  assert ring.seconds("all-gather", GB, [[0, 2, 4, 6]]) == pytest.approx(
    (3 / 4) / 100 + 4 * HOP
  )


def test_two_devices_of_a_chip_in_two_groups_halve_the_links():
  two = dataclasses.replace(FAST, devices=2)
  places = tuple(
    collectives.Place((x, 0, 0), 0) for x in range(4) for _ in range(2)
  )
  network = collectives.Network(places, (4, 1, 1), (True, False, False), two)
  together = network.seconds("all-gather", GB, [list(range(8))])
  apart = network.seconds("all-gather", GB, [[0, 2, 4, 6], [1, 3, 5, 7]])
  assert apart - 2 * HOP == pytest.approx(2 * (together - 2 * HOP))


def test_slices_add_what_crosses_the_data_centre():
  network = programs.ring(4, FAST, slices=2)
  inside = 2 * (3 / 4) / 200 + 2 * 2 * HOP
  # A chip owns a quarter; of it half crosses, there and back.
  outside = 2 * (1 / 4) * (1 / 2) / 10
  assert network.seconds("all-reduce", GB, whole(network)) == pytest.approx(
    inside + outside
  )
  only = network.seconds("all-reduce", GB, [[0, 4]])
  assert only == pytest.approx(2 * (1 / 2) / 10)


def test_a_permutation_takes_its_longest_way():
  ring = box(8, 1, 1)
  assert ring.seconds(
    "collective-permute", GB, [[0, 1], [0, 6]]
  ) == pytest.approx(2 * (1 / 100 + HOP))


@pytest.mark.parametrize(
  "text, expected",
  [
    ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
    (
      "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, dimensions={0}",
      [[0, 2], [1, 3]],
    ),
    (
      "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, x",
      [[0, 1], [2, 3]],
    ),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=4,'b'=1] {'a':(2)2}, x", [[0, 1], [2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x",
      [[0, 2], [1, 3]],
    ),
    ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ("to_apply=%add", [[0, 1, 2, 3]]),
    ("source_target_pairs={{0,1},{1,0}}, x", [[0, 1], [1, 0]]),
  ],
)
def test_groups_are_read_in_every_notation(text, expected):
  assert collectives.groups(text, 4) == expected


def test_an_unknown_notation_is_refused():
  with pytest.raises(ValueError, match="notation"):
    collectives.groups("replica_groups=whatever", 4)


def test_moved_bytes_leave_out_what_a_device_has():
  assert collectives.moved_bytes("all-gather", 8.0, 4) == 6.0
  assert collectives.moved_bytes("all-reduce", 8.0, 4) == 12.0
  assert collectives.moved_bytes("collective-permute", 8.0, 2) == 8.0


def test_every_chip_has_links_and_room():
  for chip in chips.CHIPS.values():
    assert chip.link_count in (4, 6)
    assert 14 < chip.hbm_gib < 200
    # A matrix unit a cycle: the clock and the peak are of one size.
    products = chip.peak_flops / chip.clock / (2 * chip.matrix_tile**2)
    assert products == pytest.approx(round(products), rel=0.05)
    assert (
      chip.hbm_bandwidth > 5 * chip.link_bandwidth > (5 * chip.dcn_bandwidth)
    )
