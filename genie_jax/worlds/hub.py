"""Downloads worlds from repositories on the Hugging Face Hub.

Needs huggingface_hub (`pip install 'genie_jax[hf]'`), which also reads
HF_ENDPOINT and the user's token.
"""

import contextlib
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from genie_jax.core import errors, files
from genie_jax.worlds import world_manifest

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?")
# Folder in which the library records its downloads.
_RECORDS = ".cache"


class Repository:
  """One commit of a repository.

  Attributes:
    url: hf://owner/name[@revision].
    endpoint: Address of the hub.
  """

  def __init__(self, url: str):
    """Parses an address, without connecting to the hub.

    Args:
      url: hf://owner/name[@revision].

    Raises:
      UserError: The address has another form.
    """
    match = _ADDRESS.fullmatch(url)
    if match is None:
      raise errors.UserError(
        f"{url} does not name a repository; give hf://owner/name or "
        "hf://owner/name@revision."
      )
    self.url = url
    self.endpoint = constants.ENDPOINT
    self._name, self._revision = match.groups()
    self._commit: str | None = None
    self._sizes: dict[str, int | None] = {}

  def manifest(self, limit: int) -> bytes:
    """Returns the bytes of manifest.json at the revision.

    Args:
      limit: Maximum number of bytes.

    Raises:
      UserError: The file is missing or longer, or the hub cannot be reached.
    """
    api = huggingface_hub.HfApi(endpoint=self.endpoint)
    with self._network_errors(), tempfile.TemporaryDirectory() as folder:
      found: Any = api.repo_info(
        self._name, revision=self._revision, files_metadata=True
      )
      # All later reads use this commit, even if the branch changes.
      self._commit = found.sha
      self._sizes = {one.rfilename: one.size for one in found.siblings or ()}
      self._check_size(world_manifest.MANIFEST, limit)
      path = huggingface_hub.hf_hub_download(
        self._name,
        world_manifest.MANIFEST,
        revision=self._commit,
        endpoint=self.endpoint,
        local_dir=folder,
      )
      return pathlib.Path(path).read_bytes()

  def download(
    self, stated: Mapping[str, Mapping[str, Any]], folder: pathlib.Path
  ) -> dict[str, str]:
    """Downloads files of the commit whose manifest was read.

    Args:
      stated: The manifest's files: name -> {"bytes": ...}.
      folder: The folder to write to.

    Returns:
      Name -> SHA-256 of the downloaded file.

    Raises:
      UserError: A file is missing or too long, or the hub cannot be reached.
      OSError: A file cannot be written.
    """
    for name in stated:
      self._check_size(name, stated[name]["bytes"])
    with self._network_errors():
      huggingface_hub.snapshot_download(
        self._name,
        revision=self._commit,
        endpoint=self.endpoint,
        local_dir=folder,
        allow_patterns=list(stated),
      )
    shutil.rmtree(folder / _RECORDS, ignore_errors=True)
    return {name: files.sha256(folder / name) for name in stated}

  def stop(self) -> None:
    """Does nothing: the library's downloads cannot be ended."""

  def _check_size(self, name: str, limit: int) -> None:
    if name not in self._sizes:
      raise errors.UserError(
        f"{self.url} has no {name}; give a repository that contains a world "
        "folder, or ask its publisher."
      )
    size = self._sizes[name]
    if size is None or size > limit:
      raise errors.UserError(
        f"{self.url}/{name} is longer than the limit of {limit} bytes; ask "
        "its publisher."
      )

  @contextlib.contextmanager
  def _network_errors(self) -> Iterator[None]:
    """Raises UserError for errors of the library, but not of the disk."""
    try:
      yield
    except errors.UserError:
      raise
    except (
      OSError,
      ValueError,
      # The base class of the errors of the HTTP client that the hub uses.
      hub_errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
      hub_errors.EntryNotFoundError,
      hub_errors.RevisionResolutionError,
      hub_errors.XetDownloadError,
    ) as error:
      if isinstance(error, OSError) and error.errno is not None:
        raise  # An error of the local disk.
      why = " ".join(str(error).split())[:120] or type(error).__name__
      raise errors.UserError(
        f"{self.url} cannot be read from {self.endpoint} ({why}); check the "
        "name, the revision, your token and the network."
      ) from error
