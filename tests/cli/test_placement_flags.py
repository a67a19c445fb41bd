"""Tests of `--dtype` and `--tensor` of `genie play` and `genie sample`."""

import jax
import numpy as np
import PIL.Image
import pytest

import genie_jax
from genie_jax.cli import main
from genie_jax.weights import int8
from tests.fixtures import tiny_world


def write(folder, **world):
  return tiny_world.write_world(
    folder,
    {
      name: tiny_world.make_part(name, **world)
      for name in ("tokenizer", "dynamics")
    },
  )


@pytest.fixture(scope="module")
def even(tmp_path_factory):
  """A world whose sizes divide by two."""
  return write(tmp_path_factory.mktemp("even") / "w", num_codes=16)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
  """A world of 13 codes."""
  return write(tmp_path_factory.mktemp("odd") / "w")


@pytest.fixture()
def loaded(monkeypatch):
  """Records the worlds that are loaded."""
  found, load = [], genie_jax.load_world

  def remember(*words, **options):
    found.append(load(*words, **options))
    return found[-1]

  monkeypatch.setattr(genie_jax, "load_world", remember)
  return found


def kernel(world):
  return world.parts["dynamics"].params["stack"]["layers"]["mlp_in"]["kernel"]


def sample(world, out, *flags):
  code = main.main(
    [
      "sample",
      "--world",
      str(world),
      "--actions",
      "0,3,1",
      "--scale",
      "1",
      "--out",
      str(out),
      *flags,
    ]
  )
  assert code == 0
  with PIL.Image.open(out) as film:
    return film.n_frames


def test_sample_splits_a_world_over_devices_and_keeps_integers(
  even, tmp_path, loaded
):
  frames = sample(even, tmp_path / "a.gif", "--tensor", "2", "--dtype", "int8")
  assert 2 <= frames <= 4  # GIF joins equal frames.
  [world] = loaded
  held = kernel(world)
  assert isinstance(held, int8.Int8) and held.values.dtype == np.int8
  assert held.values.sharding.device_set == set(jax.local_devices()[:2])
  [part, _] = held.values.addressable_shards
  assert part.data.size == held.values.size / 2


def test_sample_uses_dtype_on_one_device(even, tmp_path, loaded):
  sample(even, tmp_path / "b.gif", "--dtype", "bfloat16")
  [world] = loaded
  assert kernel(world).dtype == jax.numpy.bfloat16
  assert len(kernel(world).sharding.device_set) == 1


@pytest.mark.parametrize(
  "command", [("play", "--port", "0"), ("sample", "--actions", "0")]
)
@pytest.mark.parametrize(
  "flags, reason",
  [
    (("--dtype", "bfloat"), "did you mean 'bfloat16'"),
    (("--dtype", "int4"), "give one of float32, bfloat16, int8"),
    (("--tensor", "0"), "--tensor 0: give a number of devices"),
    (("--tensor", "two"), "--tensor: invalid int value"),
    (("--tensor", "9"), "--tensor 9: this machine has 8 cpu devices"),
    (("--tensor", "2"), "is 13, which does not split over 2 devices"),
  ],
)
def test_errors_are_one_line(capsys, odd, command, flags, reason):
  code = main.main([command[0], "--world", str(odd), *command[1:], *flags])
  err = capsys.readouterr().err
  assert code == 2 and len(err.splitlines()) == 1 and "config" not in err, err
  assert reason.lower() in err.lower()
