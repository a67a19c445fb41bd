"""Tests of checkpoints that are read a piece at a time."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from genie_jax.checkpoints import fingerprint, manager, reader
from genie_jax.core import errors
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.weights import lazy_array

# Random bits, which cannot be compressed, so that they can be found in files.
KERNEL = (
  np.random.default_rng(0)
  .integers(0, 1 << 32, (4, 64, 2, 24), dtype=np.uint32)
  .view(np.float32)
)
SMALL = np.arange(5, dtype=np.float32)


class Iterator:
  """A data iterator with the one method that a checkpoint needs."""

  def get_state(self):
    return {}


@pytest.fixture
def workdir(tmp_path):
  """A checkpoint that eight devices wrote."""
  mesh = mesh_lib.make(dict(data=1, fsdp=4, tensor=2, frame=1))
  kernel = jax.device_put(
    KERNEL, NamedSharding(mesh, P(None, "fsdp", None, "tensor"))
  )
  opened = manager.Checkpoints(tmp_path, keep=1)
  opened.save(
    dict(
      step=jax.numpy.int32(1),
      params={"layers": {"kernel": kernel}, "small": jax.numpy.asarray(SMALL)},
      extra={},
      opt_state={},
      rng=jax.random.key(0),
    ),
    Iterator(),
    {"config": {}},
  )
  opened.close()
  return tmp_path


def bits(array):
  return np.asarray(array).view(np.uint32)


def change_a_byte(workdir):
  """Flips one bit of the kernel on disk."""
  pattern = KERNEL[:, :16, :, :12].tobytes()[:48]
  changed = 0
  for path in workdir.rglob("d/*"):
    content = bytearray(path.read_bytes())
    at = content.find(pattern)
    while at >= 0:
      content[at + 5] ^= 1
      changed += 1
      at = content.find(pattern)
    path.write_bytes(content)
  assert changed


@pytest.mark.parametrize("piece", (1000, 30_000, 1 << 25))
def test_a_large_array_is_read_in_the_chunks_that_devices_wrote(
  workdir, monkeypatch, piece
):
  monkeypatch.setattr(lazy_array, "PIECE_BYTES", piece)
  monkeypatch.setattr(reader, "_VALUES", 500)
  params, _ = reader.lazy_params(workdir, group_bytes=1000)
  kernel = params["layers"]["kernel"]
  assert kernel.unit == (4, 16, 2, 12)
  chunk = 4 * 16 * 2 * 12 * 4
  sizes = [block.nbytes for _, block in lazy_array.each(kernel)]
  assert max(sizes) <= max(piece, chunk) and sum(sizes) == KERNEL.nbytes
  np.testing.assert_array_equal(bits(kernel), KERNEL.view(np.uint32))
  np.testing.assert_array_equal(
    np.concatenate([bits(x).reshape(-1) for x in kernel.in_order()]),
    KERNEL.view(np.uint32).reshape(-1),
  )
  np.testing.assert_array_equal(np.asarray(params["small"]), SMALL)


def test_fingerprints_of_boxes_can_be_joined_to_that_of_the_array():
  parts = [
    fingerprint.part(KERNEL[box], tuple(one.start for one in box))
    for box in lazy_array.boxes(KERNEL.shape, 700, (3, 5, 2, 7))
  ]
  assert fingerprint.joined(parts) == fingerprint.arrays({"x": KERNEL})["x"]
  swapped = np.flip(KERNEL, 1)
  assert fingerprint.joined([fingerprint.part(swapped, (0, 0, 0, 0))]) != (
    fingerprint.joined(parts)
  )


def test_changed_bits_of_a_large_array_are_detected_before_it_is_used(workdir):
  change_a_byte(workdir)
  with pytest.raises(errors.UserError, match=r"All checkpoints .* are damaged"):
    reader.lazy_params(workdir, group_bytes=1000)


def test_bits_that_change_while_an_array_is_read_are_detected(workdir):
  params, _ = reader.lazy_params(workdir, group_bytes=1000)
  change_a_byte(workdir)
  with pytest.raises(errors.UserError, match="damaged while it was read"):
    np.asarray(params["layers"]["kernel"])


def test_a_missing_array_is_reported_as_a_damaged_checkpoint(workdir):
  path = workdir / "checkpoints" / "1"
  with pytest.raises(reader.Damaged, match="cannot be read"):
    reader._Chunks(path, "params/layers/other", KERNEL)
  with pytest.raises(reader.Damaged, match="the wrong shape"):
    reader._Chunks(path, "params/layers/kernel", KERNEL[:2])
