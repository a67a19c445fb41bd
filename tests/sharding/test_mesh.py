"""Tests of mesh sizes and of the arrangement of devices."""

import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.sharding import rules


def sizes(**axes):
  return mesh_lib.sizes(dict(data=1, fsdp=1, tensor=1, frame=1) | axes, 8)


def test_an_axis_of_minus_one_gets_the_remaining_devices():
  assert sizes(data=2, fsdp=-1, frame=2) == dict(
    data=2, fsdp=2, tensor=1, frame=2
  )


def test_the_mesh_of_one_device_has_all_axes_of_size_one():
  mesh = mesh_lib.make(
    dict(data=1, fsdp=-1, tensor=1, frame=1), jax.devices()[:1]
  )
  assert dict(mesh.shape) == dict.fromkeys(rules.MESH_AXES, 1)
  assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  "axes, message",
  [
    (dict(data=2, fsdp=2), "multiplies to 4 devices, but there are 8"),
    (dict(data=3, fsdp=-1), "multiple of 3 devices, but there are 8"),
    (dict(data=-1, fsdp=-1), "-1 for data and fsdp"),
    (dict(data=0), "config.mesh.data is 0"),
    (dict(tensors=8), "config.mesh.tensors.*did you mean 'tensor'"),
  ],
)
def test_an_invalid_mesh_raises_an_error_of_one_line(axes, message):
  with pytest.raises(errors.UserError, match=message) as error:
    sizes(**axes)
  assert "\n" not in str(error.value)


def test_the_error_for_a_missing_axis_names_it():
  with pytest.raises(errors.UserError, match="lacks the axis 'frame'"):
    mesh_lib.sizes(dict(data=1, fsdp=-1, tensor=1), 8)


def device(slice_index: int, number: int, platform: str = "tpu"):
  return types.SimpleNamespace(
    id=number,
    slice_index=slice_index,
    process_index=slice_index,
    platform=platform,
    device_kind=platform,
    coords=(number % 4, 0, 0),
    core_on_chip=0,
  )


def test_only_the_data_axis_crosses_slices():
  devices = [device(s, 4 * s + i) for s in range(2) for i in range(4)]
  array = mesh_lib.arrange(devices, dict(data=2, fsdp=2, tensor=2, frame=1))
  slices = np.vectorize(lambda d: d.slice_index)(array)
  assert (slices[0] == 0).all() and (slices[1] == 1).all()


def test_a_data_axis_that_does_not_split_over_slices_is_rejected():
  devices = [device(s, 4 * s + i) for s in range(2) for i in range(4)]
  with pytest.raises(errors.UserError, match="does not split over 2 slices"):
    mesh_lib.arrange(devices, dict(data=1, fsdp=8, tensor=1, frame=1))


def test_the_slice_index_of_gpus_is_ignored():
  # XLA gives the GPUs of each host a different slice index.
  devices = [device(i // 4, i, "gpu") for i in range(8)]
  array = mesh_lib.arrange(devices, dict(data=1, fsdp=8, tensor=1, frame=1))
  assert [d.id for d in array.flat] == list(range(8))
