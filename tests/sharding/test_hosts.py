"""Tests of the rows that each process reads, and of global arrays."""

import types

import numpy as np
import pytest

from genie_jax.core import errors
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib


def fake_mesh(owners, **shape):
  """Returns a mesh whose devices belong to the processes in `owners`."""
  shape = dict(data=1, fsdp=1, tensor=1, frame=1) | shape
  devices = np.empty(len(owners), object)
  devices[:] = [types.SimpleNamespace(process_index=o) for o in owners]
  return types.SimpleNamespace(
    shape=shape, devices=devices.reshape(tuple(shape.values()))
  )


def test_one_process_reads_every_row():
  assert hosts.share(fake_mesh([0] * 8, data=4, frame=2)) == hosts.Share()
  assert hosts.Share().rows(8) == 8


def test_processes_that_split_the_batch_read_different_rows():
  mesh = fake_mesh([1, 1, 0, 0], fsdp=4)
  assert hosts.share(mesh) == hosts.share(mesh, 0) == hosts.Share((2, 3), 4)
  assert hosts.share(mesh, 1) == hosts.Share((0, 1), 4)
  assert hosts.share(mesh).rows(8) == 4


def test_processes_that_split_a_clip_read_the_same_rows():
  mesh = fake_mesh([0, 1, 0, 1, 2, 3, 2, 3], data=4, tensor=2)
  for process, parts in enumerate([(0, 1), (0, 1), (2, 3), (2, 3)]):
    assert hosts.share(mesh, process) == hosts.Share(parts, 4)


def test_a_host_whose_devices_are_not_neighbours_reads_the_rows_of_each():
  mesh = fake_mesh([0, 1, 0, 1], data=4)
  assert hosts.share(mesh, 0) == hosts.Share((0, 2), 4)
  assert hosts.share(mesh, 1) == hosts.Share((1, 3), 4)


def test_rows_of_separate_parts_reach_their_devices():
  mesh = mesh_lib.make(dict(data=4, fsdp=1, tensor=1, frame=2))
  layout = mesh_lib.sharding(mesh, ("act_batch", None))
  whole = np.arange(32).reshape(8, 4)
  # This process has all devices, so it must provide all parts, in any order.
  parts = (2, 0, 3, 1)
  rows = np.concatenate([np.split(whole, 4)[part] for part in parts])
  found = hosts._assemble(rows, layout, hosts.Share(parts, 4))
  np.testing.assert_array_equal(found, whole)


def test_a_global_batch_has_its_rows_in_order_and_is_split():
  mesh = mesh_lib.make(dict(data=2, fsdp=2, tensor=1, frame=2))
  layout = {"x": mesh_lib.sharding(mesh, ("act_batch", "act_time"))}
  x = np.arange(32).reshape(8, 4)
  out = hosts.to_global({"x": x, "source": x}, layout, hosts.Share())
  assert set(out) == {"x"}
  np.testing.assert_array_equal(out["x"], x)
  assert out["x"].addressable_shards[0].data.shape == (2, 2)


def test_with_one_process_together_returns_the_value_or_raises():
  assert hosts.together(lambda: 3) == 3
  hosts.check_same(1, "The step", "fix it.")

  def fail():
    raise errors.UserError("no data")

  with pytest.raises(errors.UserError, match="no data"):
    hosts.together(fail)
