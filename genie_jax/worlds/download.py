"""Worlds at an address: downloaded once, checked, kept in the user's cache."""

import contextlib
import errno
import hashlib
import http.client
import os
import pathlib
import shutil
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from absl import logging

from genie_jax.core import errors, files
from genie_jax.worlds import world_manifest

# Scheme -> the driver of etils and fsspec that serves it.
_BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}
_SCHEMES = ("https", *_BUCKETS)
# Without encryption anyone on the way could give another world.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BLOCK_BYTES = 1 << 20
_MANIFEST_BYTES = 16 << 20
_TIMEOUT_S = 60

_Loaded = TypeVar("_Loaded")


def read(
  folder_or_url: files.PathLike, load: Callable[[pathlib.Path], _Loaded]
) -> _Loaded:
  """Loads a world, which is downloaded anew where its cached copy is damaged.

  `load` hashes every file as it is; hashing them beforehand too would cost
  seconds for large worlds. So only a refusal makes it be asked whether the
  copy is at fault.

  Args:
    folder_or_url: As in `local`.
    load: Reads the folder, and raises UserError where it is damaged.

  Returns:
    What `load` returns.

  Raises:
    UserError: See `local`; and what `load` raises of a whole folder.
  """
  folder = local(folder_or_url)
  try:
    return load(folder)
  except errors.UserError:
    if "://" not in os.fspath(folder_or_url) or _intact(folder):
      raise
  return load(_fetched(os.fspath(folder_or_url), lambda folder: False))


def local(folder_or_url: files.PathLike) -> pathlib.Path:
  """Returns the folder of a world, downloaded first if it is an address.

  A cached copy that lacks a file, or has one of another size, is downloaded
  anew; for one that is damaged otherwise see `read`.

  Args:
    folder_or_url: A folder, or the address of one (or of its manifest.json).

  Raises:
    UserError: The address is of no known kind, cannot be reached, or what
      comes back is no world or not the one that its manifest describes.
  """
  text = os.fspath(folder_or_url)
  if "://" not in text:
    return pathlib.Path(text)
  return _fetched(text, _complete)


def _fetched(text: str, good: Callable[[pathlib.Path], bool]) -> pathlib.Path:
  """Returns the cached folder of an address if it is good, or a new one."""
  url = text.removesuffix(world_manifest.MANIFEST).rstrip("/")
  _check(url)
  content = b"".join(
    _blocks(f"{url}/{world_manifest.MANIFEST}", _MANIFEST_BYTES)
  )
  manifest = world_manifest.check_manifest(
    f"{url}/{world_manifest.MANIFEST}", content
  )
  # Named by all that it holds: a changed world is another folder.
  target = cache_folder() / hashlib.sha256(content).hexdigest()[:32]
  replace = target.is_dir()
  if replace and _same(target, content) and good(target):
    return target
  if replace:
    logging.warning(
      "%s is damaged; downloading %s again in its place.", target, url
    )
  with _one_line(url):
    _download(url, manifest, content, target, replace)
  return target


def cache_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns where downloaded worlds are kept.

  Args:
    environ: Environment variables; those of this process by default.
  """
  environ = os.environ if environ is None else environ
  base = environ.get("XDG_CACHE_HOME")
  base = pathlib.Path(base) if base else pathlib.Path.home() / ".cache"
  return base / "genie_jax" / "worlds"


def _download(
  url: str,
  manifest: Mapping[str, Any],
  content: bytes,
  target: pathlib.Path,
  replace: bool,
) -> None:
  """Downloads a world beside `target`, and renames it there when whole.

  With `replace`, what is there is damaged, and goes once there is better.
  """
  temporary = files.temporary_sibling(target)
  damaged = files.temporary_sibling(target)
  temporary.mkdir(parents=True)
  total = sum(stated["bytes"] for stated in manifest["files"].values())
  logging.info("Downloading %s, %.1f MB.", url, total / 1e6)
  try:
    for name, stated in manifest["files"].items():
      path, digest = temporary / name, hashlib.sha256()
      path.parent.mkdir(exist_ok=True)
      with open(path, "wb") as file:
        for block in _blocks(f"{url}/{name}", stated["bytes"]):
          digest.update(block)
          file.write(block)
      if digest.hexdigest() != stated["sha256"]:
        raise errors.UserError(
          f"{url}/{name} is not the file that {world_manifest.MANIFEST} "
          "describes (its SHA-256 differs); try again, or ask who published it."
        )
    files.write_atomic(temporary / world_manifest.MANIFEST, content)
    if replace:
      with contextlib.suppress(FileNotFoundError):
        os.replace(target, damaged)
    try:
      os.replace(temporary, target)
    except OSError as error:
      # Someone else was faster; theirs is as good.
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
  finally:
    for path in (temporary, damaged):
      shutil.rmtree(path, ignore_errors=True)


def _same(folder: pathlib.Path, content: bytes) -> bool:
  """Returns whether a cached manifest is the one that was just read."""
  path = folder / world_manifest.MANIFEST
  return path.is_file() and path.read_bytes() == content


def _complete(folder: pathlib.Path) -> bool:
  """Returns whether all files are there with their sizes, reading none."""
  stated = world_manifest.read_manifest(folder)["files"]
  return all(
    (folder / name).is_file()
    and (folder / name).stat().st_size == stated[name]["bytes"]
    for name in stated
  )


def _intact(folder: pathlib.Path) -> bool:
  """Returns whether every byte is as the manifest says."""
  try:
    world_manifest.check_files(folder, world_manifest.read_manifest(folder))
  except errors.UserError:
    return False
  return True


@contextlib.contextmanager
def _one_line(url: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f"{url} cannot be kept in {cache_folder()} ({error.strerror}); free "
      "some space, or set XDG_CACHE_HOME to another folder."
    ) from error


def _check(url: str) -> None:
  parts = urllib.parse.urlsplit(url)
  if parts.scheme == "http" and parts.hostname in _LOOPBACK:
    return
  if parts.scheme not in _SCHEMES or not parts.netloc:
    raise errors.UserError(
      f"{url} cannot be loaded"
      f"{errors.closest(parts.scheme, _SCHEMES)}; give a folder, or an "
      "address that begins with https://, gs:// or s3://."
    )
  if parts.query or parts.fragment:
    raise errors.UserError(
      f"{url} has a query, which cannot be carried over to the world's "
      "files; give the address of a folder."
    )


def _blocks(url: str, limit: int) -> Iterator[bytes]:
  """Yields a file's bytes; more than `limit` of them are refused."""
  done = 0
  with _open(url) as file:
    while block := _read(url, file):
      done += len(block)
      if done > limit:
        raise errors.UserError(
          f"{url} is longer than the {limit} bytes it may have; try again, "
          "or ask who published it."
        )
      yield block


def _read(url: str, file: Any) -> bytes:
  try:
    return file.read(_BLOCK_BYTES)
  except (OSError, http.client.HTTPException) as error:
    raise _unreachable(url, error) from error


@contextlib.contextmanager
def _open(url: str) -> Iterator[Any]:
  scheme = urllib.parse.urlsplit(url).scheme
  try:
    if scheme in _BUCKETS:
      # Late: only for buckets, and slow to import.
      from etils import epath

      file = epath.Path(url).open("rb")
    else:
      file = urllib.request.urlopen(
        urllib.parse.quote(url, safe=":/%[]@"), timeout=_TIMEOUT_S
      )
      with contextlib.ExitStack() as stack:
        stack.callback(file.close)
        _check(file.geturl().partition("?")[0])  # Where it was sent on to.
        stack.pop_all()
  except ImportError as error:
    raise errors.UserError(
      f"{url} needs a driver that is not installed; `pip install "
      f"{_BUCKETS[scheme]}`."
    ) from error
  except (OSError, ValueError, http.client.HTTPException) as error:
    if isinstance(error, errors.UserError):
      raise
    raise _unreachable(url, error) from error
  with file:
    yield file


def _unreachable(url: str, error: Exception) -> errors.UserError:
  why = " ".join(str(error).split())[:120] or type(error).__name__
  return errors.UserError(
    f"{url} cannot be read ({why}); check the address and the network."
  )
