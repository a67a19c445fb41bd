"""Tests of the rows that hosts of TPU pods read, with libtpu's devices."""

import collections

import numpy as np
import pytest

from genie_jax.core import config as config_lib
from genie_jax.plan import topology
from genie_jax.sharding import hosts
from genie_jax.sharding import mesh as mesh_lib
from tests.plan import tpu_compiler

# (config, topology, slices, changes of mesh axes): the rows of the table in
# README.md, the other stages, and two slices.
PODS = (
  ("platformers/tokenizer.py", "v5p:4x4x8", 1, {}),
  ("platformers/lam.py", "v5p:4x8x8", 1, {}),
  ("platformers/dynamics.py", "v5p:4x8x8", 1, {}),
  ("platformers/joint.py", "v5p:4x8x8", 1, {}),
  ("platformers/dynamics.py", "v5p:8x8x8", 1, {}),
  ("platformers/dynamics.py", "v5p:8x8x16", 1, dict(fsdp=32, frame=2)),
  ("platformers/dynamics.py", "v5p:4x8x8", 2, {}),
  ("scaling/dynamics.py:2.7B", "v5p:4x4x8", 1, {}),
  ("coinrun/dynamics.py", "v5e:4x4", 1, {}),
  ("coinrun/dynamics.py", "v5e:2x2", 1, dict(tensor=2)),
)


@tpu_compiler.required
@pytest.mark.parametrize("name, shape, slices, axes", PODS)
def test_every_host_of_a_pod_reads_the_rows_of_its_chips(
  library, name, shape, slices, axes
):
  config = config_lib.load(f"experiments/{name}").unlock()
  config.mesh.update(axes)
  devices = topology.devices(topology.parse(shape, slices))
  mesh = mesh_lib.make(config.mesh, devices)
  ways = mesh_lib.batch_ways(mesh)
  groups = mesh.devices.reshape(ways, -1)
  processes = collections.Counter(device.process_index for device in devices)
  readers = collections.Counter()
  for process in processes:
    share = hosts.share(mesh, process)
    parts = share.parts if share.count == ways else range(ways)
    readers.update(parts)
    owned = {
      part
      for part in range(ways)
      for device in groups[part]
      if device.process_index == process
    }
    assert set(parts) == owned
    assert share.rows(config.data.batch_size) > 0
  # Every row is read, once by each host that has it.
  assert set(readers) == set(range(ways))
  assert readers == {
    part: len({device.process_index for device in groups[part]})
    for part in range(ways)
  }


@tpu_compiler.required
def test_the_parts_of_a_host_need_not_be_neighbours(library):
  config = config_lib.load("experiments/platformers/dynamics.py")
  devices = topology.devices(topology.parse("v5p:4x8x8"))
  share = hosts.share(mesh_lib.make(config.mesh, devices), 0)
  assert len(share.parts) == 4 and (np.diff(share.parts) > 1).any()
