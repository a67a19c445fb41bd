"""Downloads files of the Python package index, with pip."""

import os
import pathlib
import subprocess
import sys


class DownloadError(Exception):
  """A package cannot be downloaded; says what pip said."""


def download(
  requirement: str, folder: pathlib.Path, *flags: str, **environment: str
) -> pathlib.Path:
  """Downloads one package without its dependencies, and installs nothing.

  The caller checks the file's hash.

  Args:
    requirement: Name and version, such as "procgen-mirror==0.10.7".
    folder: An existing folder without packages, to write to.
    *flags: Further flags of `pip download`.
    **environment: Variables in addition to those of this process.

  Returns:
    The path of the package.

  Raises:
    DownloadError: pip failed.
  """
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "pip",
      "download",
      "--quiet",
      "--no-deps",
      "--disable-pip-version-check",
      "--dest",
      str(folder),
      *flags,
      requirement,
    ],
    capture_output=True,
    text=True,
    env={**os.environ, **environment},
    check=False,
  )
  found = [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]
  if done.returncode or not found:
    said = done.stderr.strip().splitlines() or ["pip said nothing"]
    raise DownloadError(said[-1])
  return found[0]
