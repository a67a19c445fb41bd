"""Tests of parsing topologies, and of their devices."""

import math

import pytest

from genie_jax.core import chips, errors
from genie_jax.plan import topology
from genie_jax.plan.cost import collectives
from tests.plan import tpu_compiler


@pytest.mark.parametrize(
  "text, name, chips_, devices",
  [
    ("v5p:8x8x4", "v5p:4x8x8", 256, 256),
    ("v5p:4x8x8", "v5p:4x8x8", 256, 256),
    ("v5p:1x2x2", "v5p:2x2x1", 4, 4),
    ("v5p:2x2", "v5p:2x2x1", 4, 4),
    ("v4:8x4x4", "v4:4x4x8", 128, 128),
    ("v5e:16x8", "v5e:8x16", 128, 128),
    ("v6e:4x4x1", "v6e:4x4", 16, 16),
    ("V5litepod:2x4", "v5e:2x4", 8, 8),
    ("v5e:1x1", "v5e:1x1", 1, 1),
    ("v2:8x8", "v2:8x8", 64, 128),
    ("v3:16x16", "v3:16x16", 256, 512),
    ("tpu7x:4x4x4", "v7x:4x4x4", 64, 128),
  ],
)
def test_topologies_are_parsed_in_any_order_of_dimensions(
  text, name, chips_, devices
):
  found = topology.parse(text)
  assert found.name == name
  assert (found.num_chips, found.num_devices) == (chips_, devices)


@pytest.mark.parametrize(
  "text, name, chips_",
  [
    # The number counts TensorCores, of which a chip has two.
    ("v5p-8", "v5p:2x2x1", 4),
    ("v5p-128", "v5p:4x4x4", 64),
    ("v5p-384", "v5p:4x4x12", 192),
    ("v5p-512", "v5p:4x8x8", 256),
    ("v5p-2048", "v5p:8x8x16", 1024),
    ("v5p-12288", "v5p:16x16x24", 6144),
    ("v4-32", "v4:2x2x4", 16),
    ("v3-256", "v3:8x16", 128),
    ("v2-8", "v2:2x2", 4),
    ("tpu7x-128", "v7x:4x4x4", 64),
    # The number counts chips.
    ("v5e-256", "v5e:16x16", 256),
    ("v5litepod-8", "v5e:2x4", 8),
    ("v6e-1", "v6e:1x1", 1),
    # A name with the dimensions, as in recipes for GKE.
    ("tpu7x-4x4x4", "v7x:4x4x4", 64),
  ],
)
def test_the_names_of_the_cloud_give_the_shape_that_is_rented(
  text, name, chips_
):
  found = topology.parse(text)
  assert (found.name, found.num_chips) == (name, chips_)


@pytest.mark.parametrize(
  "text, reason",
  [
    ("v5p-9", "counts TensorCores"),
    ("v5p-200", "counts TensorCores"),
    ("v5p-16384", "up to 6144 chips"),
    ("v5e-512", "counts chips"),
    ("v6e-2", "counts chips"),
    ("v5p:4x6x8", "multiples of 4x4x4"),
    ("v5p:2x2x8", "multiples of 4x4x4"),
    ("v4:1x1x1", "multiples of 4x4x4"),
    ("v5e:2x8", "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
    ("v3:8x32", "32x32"),
  ],
)
def test_a_slice_that_cannot_be_rented_is_refused_in_one_line(text, reason):
  with pytest.raises(errors.UserError, match="cannot be rented") as raised:
    topology.parse(text)
  assert reason in str(raised.value) and "\n" not in str(raised.value)


def test_every_shape_that_is_listed_is_a_topology():
  for chip in chips.CHIPS.values():
    for dims in chip.shapes:
      text = f"{chip.name}:{'x'.join(map(str, dims))}"
      assert topology.parse(text).dims == dims
      number = chip.name_units * math.prod(dims)
      assert topology.parse(f"{chip.name}-{number}").dims == dims


def test_slices_multiply_the_number_of_chips():
  found = topology.parse("v5p:4x4x4", slices=3)
  assert found.num_chips == 192 and found.dims == (4, 4, 4)


@pytest.mark.parametrize(
  "text, wrap",
  [
    ("v5p:4x8x8", (True, True, True)),
    ("v5p:2x4x4", (False,) * 3),
    ("v4:4x4x4", (True, True, True)),
    ("v5e:8x16", (False, True, False)),
    ("v5e:16x16", (True, True, False)),
    ("v5e:8x8", (False,) * 3),
    ("v2:16x16", (True, True, False)),
    ("v3:16x16", (False,) * 3),
  ],
)
def test_only_dimensions_of_sufficient_length_form_rings(text, wrap):
  assert topology.parse(text).wrap == wrap


@tpu_compiler.required
@pytest.mark.parametrize(
  "text",
  [
    "v2:4x4",
    "v3:4x4",
    "v4:2x2x4",
    "v4:4x4x4",
    "v5e:4x4",
    "v5e:1x1",
    "v5p:4x4x4",
    "v6e:2x4",
    "v6e:16x16",
    "v7x:2x2x1",
    "v7x:4x4x4",
  ],
)
@pytest.mark.parametrize("slices", [1, 2])
def test_the_compiler_supports_every_chip(library, text, slices):
  parsed = topology.parse(text, slices)
  devices = topology.devices(parsed)
  assert len(devices) == parsed.num_devices
  kind = chips.of_device(devices[0].device_kind)
  assert kind is not None and kind.name == parsed.chip.name
  network = collectives.network(devices, parsed.dims, parsed.wrap, parsed.chip)
  assert network.num_slices == slices
  coords = [x.coords for x in network.positions if x.slice_index == 0]
  assert len(set(coords)) * parsed.chip.devices == len(coords)
  # The coordinates span the dimensions, in the same order.
  spans = [max(c[axis] for c in coords) + 1 for axis in range(3)]
  assert spans == list((*parsed.dims, 1)[:3])


def test_the_test_above_covers_every_chip():
  marks = test_the_compiler_supports_every_chip.pytestmark
  [tested] = [m.args[1] for m in marks if m.args and m.args[0] == "text"]
  assert {text.partition(":")[0] for text in tested} == set(chips.CHIPS)


def test_the_error_for_an_unknown_chip_lists_the_known_ones():
  with pytest.raises(errors.UserError) as raised:
    topology.parse("v9:4x4")
  for name in chips.CHIPS:
    assert name in str(raised.value)
  with pytest.raises(errors.UserError, match="did you mean 'v5p'"):
    topology.parse("v5q:2x2x1")


@pytest.mark.parametrize(
  "text, reason",
  [
    ("v5p", "write CHIP:AxB"),
    ("v5p:4x4-256", "write CHIP:AxB"),
    ("v5p:", "write CHIP:AxB"),
    ("v5p:4xfour", "write CHIP:AxB"),
    ("v5e:4x4x4", "2 dimensions"),
    ("v5p:4", "3 dimensions"),
    ("v5e:32x32", "largest v5e slice has 256"),
    ("v5e:3x3", "do not tile"),
    ("v5p:0x4x4", "3 dimensions"),
  ],
)
def test_the_error_for_an_invalid_shape_has_an_example(text, reason):
  with pytest.raises(errors.UserError, match=reason) as raised:
    topology.parse(text)
  assert "for example" in str(raised.value) or "slices" in str(raised.value)


def test_the_examples_in_errors_are_valid_topologies():
  for text in ("v5p:4", "v5p:3x3x3", "v5e:4x4x4"):
    with pytest.raises(errors.UserError) as raised:
      topology.parse(text)
    examples = str(raised.value).partition("for example ")[2].rstrip(".")
    for example in examples.replace(" or ", ", ").split(", "):
      assert topology.parse(example).name == example


def test_zero_slices_are_rejected():
  with pytest.raises(errors.UserError, match="--slices=0"):
    topology.parse("v5p:4x4x4", slices=0)
