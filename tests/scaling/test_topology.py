"""Tests of reading a topology's name."""

import pytest

from genie_jax.core import chips, errors
from genie_jax.scaling import topology


@pytest.mark.parametrize("text, name, chips_, devices", [
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
    ("tpu7x:4x4x4", "v7x:4x4x4", 64, 128)])
def test_names_are_read_in_any_order_of_dimensions(
    text, name, chips_, devices
):
  found = topology.parse(text)
  assert found.name == name
  assert (found.num_chips, found.num_devices) == (chips_, devices)


def test_slices_multiply():
  found = topology.parse("v5p:4x4x4", slices=3)
  assert found.num_chips == 192 and found.dims == (4, 4, 4)


@pytest.mark.parametrize("text, wrap", [
    ("v5p:4x8x8", (True, True, True)), ("v5p:2x4x4", (False,) * 3),
    ("v4:4x4x4", (True, True, True)), ("v5e:8x16", (False, True, False)),
    ("v5e:16x16", (True, True, False)), ("v5e:8x8", (False,) * 3),
    ("v2:16x16", (True, True, False)), ("v3:16x16", (False,) * 3)])
def test_only_long_enough_dimensions_close_to_rings(text, wrap):
  assert topology.parse(text).wrap == wrap


def test_an_unknown_chip_lists_the_known_ones():
  with pytest.raises(errors.UserError) as raised:
    topology.parse("v9:4x4")
  for name in chips.CHIPS:
    assert name in str(raised.value)
  with pytest.raises(errors.UserError, match="did you mean 'v5p'"):
    topology.parse("v5q:2x2x1")


@pytest.mark.parametrize("text, reason", [
    ("v5p", "write CHIP:AxB"), ("v5p-256", "write CHIP:AxB"),
    ("v5p:", "write CHIP:AxB"), ("v5p:4xfour", "write CHIP:AxB"),
    ("v5e:4x4x4", "2 dimensions"), ("v5p:4", "3 dimensions"),
    ("v5e:32x32", "largest v5e slice has 256"),
    ("v5e:3x3", "do not tile"), ("v5p:0x4x4", "3 dimensions")])
def test_a_wrong_shape_is_one_line_with_an_example(text, reason):
  with pytest.raises(errors.UserError, match=reason) as raised:
    topology.parse(text)
  assert "for example" in str(raised.value) or "slices" in str(raised.value)


def test_no_slices_are_refused():
  with pytest.raises(errors.UserError, match="--slices=0"):
    topology.parse("v5p:4x4x4", slices=0)
