"""Tests of the time of collectives, against values computed by hand."""

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
      collectives.Position(c, 0) for c in itertools.product(*map(range, dims))
    ),
    dims,
    wrap,
    chip,
  )


def all_devices(network):
  return [list(range(network.num_devices))]


def test_a_ring_carries_data_both_ways_and_a_line_one_way():
  ring, line = box(8, 1, 1), box(8, 1, 1, wrap=(False,) * 3)
  share = 7 / 8
  assert ring.seconds("all-gather", 8 * GB, all_devices(ring)) == pytest.approx(
    share * 8 / 200 + 4 * HOP
  )
  assert line.seconds("all-gather", 8 * GB, all_devices(line)) == pytest.approx(
    share * 8 / 100 + 7 * HOP
  )


def test_bandwidth_is_proportional_to_the_number_of_torus_dimensions():
  cube = box(8, 8, 4)
  assert cube.seconds("all-gather", GB, all_devices(cube)) == pytest.approx(
    (255 / 256) / 600 + 10 * HOP
  )
  # A group along one dimension uses the links of that dimension only.
  column = [i * 4 for i in range(8)]  # Coordinates (0, 0..7, 0).
  assert cube.seconds("all-gather", GB, [column]) == pytest.approx(
    (7 / 8) / 200 + 4 * HOP
  )


def test_groups_along_other_dimensions_use_other_links():
  cube = box(4, 4, 4)
  row = [[x * 16 for x in range(4)]]  # Coordinates (0..3, 0, 0).
  plane = [[y * 4 + z for y in range(4) for z in range(4)]]  # (0, 0..3, 0..3).
  assert cube.links("all-gather", row) == {(0, -1), (0, 1)}
  assert cube.links("all-reduce", plane) == {
    (axis, way) for axis in (1, 2) for way in (-1, 1)
  }
  assert len(cube.links("all-to-all", all_devices(cube))) == 6
  # Devices of one chip use no link.
  assert cube.links("all-gather", [[5]]) == frozenset()


def test_a_permutation_uses_one_direction_of_the_shortest_way():
  ring, line = box(4, 1, 1), box(4, 1, 1, wrap=(False,) * 3)
  forth = [(i, (i + 1) % 4) for i in range(4)]
  back = [(b, a) for a, b in forth]
  links = lambda network, pairs: network.links("collective-permute", pairs)
  assert links(ring, forth) == {(0, 1)}
  assert links(ring, back) == {(0, -1)}
  # Half of the ring is as far in both directions.
  assert links(ring, [(0, 2)]) == {(0, -1), (0, 1)}
  # On a line the last one sends back along all the others.
  assert links(line, forth) == {(0, -1), (0, 1)}
  longer = box(8, 1, 1)
  assert links(longer, [(0, 7)]) == {(0, -1)}
  assert links(longer, [(6, 1)]) == {(0, 1)}


def test_an_all_reduce_takes_twice_as_long_as_a_reduce_scatter():
  ring = box(4, 1, 1)
  gather = ring.seconds("all-gather", GB, all_devices(ring))
  assert ring.seconds("reduce-scatter", GB, all_devices(ring)) == gather
  assert ring.seconds("all-reduce", GB, all_devices(ring)) == pytest.approx(
    2 * gather
  )


def test_an_all_to_all_is_bound_by_the_links_in_the_middle():
  ring, line = box(8, 1, 1), box(8, 1, 1, wrap=(False,) * 3)
  # Each half of the ring has 4 GB and sends half of it to the other half, over
  # two links in each direction.
  assert ring.seconds("all-to-all", GB, all_devices(ring)) == pytest.approx(
    8 / (8 * 100) + 4 * HOP
  )
  assert line.seconds("all-to-all", GB, all_devices(line)) == pytest.approx(
    8 / (4 * 100) + 7 * HOP
  )


def test_groups_of_alternating_chips_share_links():
  ring = box(8, 1, 1)
  assert ring.seconds("all-gather", GB, [[0, 2, 4, 6]]) == pytest.approx(
    (3 / 4) / 100 + 4 * HOP
  )


def test_two_groups_on_the_same_chips_share_the_bandwidth():
  two = dataclasses.replace(FAST, devices=2)
  positions = tuple(
    collectives.Position((x, 0, 0), 0) for x in range(4) for _ in range(2)
  )
  network = collectives.Network(positions, (4, 1, 1), (True, False, False), two)
  together = network.seconds("all-gather", GB, [list(range(8))])
  apart = network.seconds("all-gather", GB, [[0, 2, 4, 6], [1, 3, 5, 7]])
  assert apart - 2 * HOP == pytest.approx(2 * (together - 2 * HOP))


def test_slices_add_the_time_on_the_data_centre_network():
  network = programs.ring(4, FAST, slices=2)
  inside = 2 * (3 / 4) / 200 + 2 * 2 * HOP
  # A chip owns a quarter of the array. Half of it crosses, in two passes.
  outside = 2 * (1 / 4) * (1 / 2) / 10
  assert network.seconds(
    "all-reduce", GB, all_devices(network)
  ) == pytest.approx(inside + outside)
  only = network.seconds("all-reduce", GB, [[0, 4]])
  assert only == pytest.approx(2 * (1 / 2) / 10)


def test_the_time_of_a_permutation_is_that_of_its_longest_path():
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
def test_every_notation_of_groups_is_parsed(text, expected):
  assert collectives.parse_groups(text, 4) == expected


def test_an_unknown_notation_is_rejected():
  with pytest.raises(ValueError, match="notation"):
    collectives.parse_groups("replica_groups=whatever", 4)


def test_received_bytes_exclude_the_devices_own_part():
  assert collectives.received_bytes("all-gather", 8.0, 4) == 6.0
  assert collectives.received_bytes("all-reduce", 8.0, 4) == 12.0
  assert collectives.received_bytes("collective-permute", 8.0, 2) == 8.0


def test_the_specification_of_every_chip_is_plausible():
  for chip in chips.CHIPS.values():
    assert chip.link_count in (4, 6)
    assert 14 < chip.hbm_gib < 200
    # The peak rate is about a whole number of matrix units at this clock.
    units = chip.peak_flops / chip.clock / (2 * chip.matrix_tile**2)
    assert units == pytest.approx(round(units), rel=0.05)
    assert chip.hbm_bandwidth > 5 * chip.link_bandwidth > 5 * chip.dcn_bandwidth
