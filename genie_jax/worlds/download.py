"""Downloads worlds, checks them, and stores them in the user's cache."""

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import http.client
import ipaddress
import os
import pathlib
import shutil
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from absl import logging

from genie_jax.core import cache, errors, files
from genie_jax.worlds import shipped, world_manifest

# Scheme -> the fsspec driver that etils uses for it.
_BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}
_SCHEMES = ("https", *_BUCKETS)
_HUB = "hf"
# Unencrypted addresses are accepted only here: elsewhere, a world could be
# replaced in transit.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_BLOCK_BYTES = 1 << 20
_MANIFEST_BYTES = 16 << 20
_TIMEOUT_S = 60
# A download may be silent or slow for as long as the timeout; from then on, it
# must have had this many bytes in each second. 5 GB may take two days.
_LEAST_RATE = 1 << 15
_POLL_S = 1.0
_LOG_S = 30.0

_Loaded = TypeVar("_Loaded")
_Result = TypeVar("_Result")


def read(
  folder_or_url: files.PathLike, load: Callable[[pathlib.Path], _Loaded]
) -> _Loaded:
  """Loads a world, and downloads it again if its cached copy is damaged.

  `load` hashes every file. Hashing them before as well would take seconds for
  large worlds, so the cached copy is checked only after `load` has failed.

  Args:
    folder_or_url: As in `local`.
    load: Reads the folder; raises UserError if it is damaged.

  Returns:
    The result of `load`.

  Raises:
    UserError: See `local`; also raised if `load` fails on an undamaged folder.
  """
  folder = local(folder_or_url)
  try:
    return load(folder)
  except errors.UserError:
    if "://" not in os.fspath(folder_or_url) or _intact(folder):
      raise
  return load(_fetched(os.fspath(folder_or_url), lambda folder: False))


def local(folder_or_url: files.PathLike) -> pathlib.Path:
  """Returns the folder of a world, after downloading it if necessary.

  A cached copy is downloaded again if a file is missing or has the wrong size.
  Other damage is handled by `read`.

  Args:
    folder_or_url: A folder, the name of a world that ships with genie_jax, or
      the address of a folder (or of its manifest.json).

  Raises:
    UserError: There is no such folder or name; the address has an unsupported
      scheme or cannot be reached; or the downloaded files are not a world, or
      differ from its manifest.
  """
  text = os.fspath(folder_or_url)
  if "://" not in text:
    return shipped.find(text)
  return _fetched(text, _complete)


def _fetched(text: str, good: Callable[[pathlib.Path], bool]) -> pathlib.Path:
  """Returns the cached folder of an address, downloaded again if not `good`."""
  source = _source(text)
  url = source.url
  content = _timed(source, lambda: source.manifest(_MANIFEST_BYTES))
  manifest = world_manifest.check_manifest(
    f"{url}/{world_manifest.MANIFEST}", content
  )
  # The manifest has the hashes of all files, so a changed world gets another
  # folder.
  target = cache_folder() / hashlib.sha256(content).hexdigest()[:32]
  replace = target.is_dir()
  if replace and _same(target, content) and good(target):
    return target
  if replace:
    logging.warning("%s is damaged; downloading %s again.", target, url)
  with _disk_errors(url):
    _download(source, manifest, content, target, replace)
  return target


def cache_folder(environ: Mapping[str, str] | None = None) -> pathlib.Path:
  """Returns the folder that downloaded worlds are stored in.

  Args:
    environ: Environment variables; those of this process by default.
  """
  return cache.user_folder(environ) / "worlds"


class _Source(Protocol):
  """A world at an address.

  Attributes:
    url: The address, for messages.
  """

  url: str

  def manifest(self, limit: int) -> bytes:
    """Returns the bytes of manifest.json, at most `limit`."""
    ...

  def download(
    self, stated: Mapping[str, Mapping[str, Any]], folder: pathlib.Path
  ) -> dict[str, str]:
    """Writes the files that a manifest lists; returns their SHA-256."""
    ...

  def stop(self) -> None:
    """Ends a `manifest` or `download` in another thread where it can."""
    ...


class _Web:
  """A folder on a web server or in a bucket."""

  def __init__(self, url: str):
    self.url = url
    self._stopped = threading.Event()
    _check(url)

  def manifest(self, limit: int) -> bytes:
    return b"".join(self._blocks(world_manifest.MANIFEST, limit))

  def stop(self) -> None:
    self._stopped.set()

  def download(
    self, stated: Mapping[str, Mapping[str, Any]], folder: pathlib.Path
  ) -> dict[str, str]:
    digests = {}
    for name in stated:
      path, digest = folder / name, hashlib.sha256()
      path.parent.mkdir(exist_ok=True)
      with open(path, "wb") as file:
        for block in self._blocks(name, stated[name]["bytes"]):
          digest.update(block)
          file.write(block)
      digests[name] = digest.hexdigest()
    return digests

  def _blocks(self, name: str, limit: int) -> Iterator[bytes]:
    """Yields a file's bytes; raises UserError if there are more than `limit`.

    Also raises after `stop`.
    """
    url, done = f"{self.url}/{name}", 0
    with _open(url) as file:
      while block := _read(url, file):
        if self._stopped.is_set():
          raise errors.UserError(f"The download of {url} was stopped.")
        done += len(block)
        if done > limit:
          raise errors.UserError(
            f"{url} is longer than the limit of {limit} bytes; try again, or "
            "ask its publisher."
          )
        yield block


def _source(text: str) -> _Source:
  """Returns the source for the address of a folder or of a manifest.json."""
  url = text.removesuffix(world_manifest.MANIFEST).rstrip("/")
  if _split(url).scheme != _HUB:
    return _Web(url)
  try:
    # Imported late: an extra that other addresses do not need.
    from genie_jax.worlds import hub
  except ModuleNotFoundError as error:
    if error.name != "huggingface_hub":
      raise
    raise errors.UserError(
      f"{url} needs a package that is not installed; `pip install "
      "huggingface_hub`."
    ) from error
  repository = hub.Repository(url)
  if not _encrypted(_split(repository.endpoint)):
    raise errors.UserError(
      f"HF_ENDPOINT is {repository.endpoint}, which is not encrypted, so a "
      "world could be replaced in transit; use one that begins with https://."
    )
  return repository


def _download(
  source: _Source,
  manifest: Mapping[str, Any],
  content: bytes,
  target: pathlib.Path,
  replace: bool,
) -> None:
  """Downloads a world next to `target`, and renames it when it is complete.

  Args:
    source: The world.
    manifest: Its manifest.
    content: The bytes of its manifest.json.
    target: The folder to write.
    replace: Whether `target` exists and is damaged. It is replaced after the
      download is complete.
  """
  temporary = files.temporary_sibling(target)
  damaged = files.temporary_sibling(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  total = sum(stated["bytes"] for stated in manifest["files"].values())
  free = shutil.disk_usage(target.parent).free
  if total > free:
    raise errors.UserError(
      f"{source.url} has {total / 1e6:,.1f} MB, but only {free / 1e6:,.1f} MB "
      f"are free in {target.parent}; free some space, or set XDG_CACHE_HOME "
      "to another folder."
    )
  temporary.mkdir()
  logging.info("Downloading %s, %.1f MB.", source.url, total / 1e6)
  try:
    digests = _timed(
      source,
      lambda: source.download(manifest["files"], temporary),
      lambda: _size(temporary),
    )
    for name, stated in manifest["files"].items():
      if digests[name] != stated["sha256"]:
        raise errors.UserError(
          f"{source.url}/{name} is not the file that "
          f"{world_manifest.MANIFEST} describes (its SHA-256 differs); try "
          "again, or ask its publisher."
        )
    files.write_atomic(temporary / world_manifest.MANIFEST, content)
    if replace:
      with contextlib.suppress(FileNotFoundError):
        os.replace(target, damaged)
    try:
      os.replace(temporary, target)
    except OSError as error:
      # Another process has just written the same world.
      if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
        raise
  finally:
    for path in (temporary, damaged):
      shutil.rmtree(path, ignore_errors=True)


def _timed(
  source: _Source,
  work: Callable[[], _Result],
  written: Callable[[], int] = lambda: 0,
) -> _Result:
  """Runs `work` in a thread, and gives up if it is too slow.

  A timeout of the connection is not enough: a server that sends a byte a second
  never reaches it.

  Args:
    source: What `work` reads.
    work: Reads from the source.
    written: Returns how many bytes were downloaded so far.

  Returns:
    The result of `work`.

  Raises:
    UserError: See `_LEAST_RATE`.
  """
  done: concurrent.futures.Future[_Result] = concurrent.futures.Future()

  def run() -> None:
    try:
      done.set_result(work())
    except BaseException as error:  # Raised where it is waited for.
      done.set_exception(error)

  # A daemon: where the thread does not end, the process still can.
  threading.Thread(target=run, name="download", daemon=True).start()
  began = logged = time.monotonic()
  try:
    while not concurrent.futures.wait([done], _POLL_S).done:
      now, size = time.monotonic(), written()
      if size < (now - began - _TIMEOUT_S) * _LEAST_RATE:
        raise errors.UserError(
          f"{source.url} is too slow: {size} bytes in {now - began:.0f} s; try "
          "again later, or ask its publisher for another address."
        )
      if now - logged > _LOG_S:
        logging.info("%.1f MB of %s so far.", size / 1e6, source.url)
        logged = now
    return done.result()
  except BaseException:  # Also Ctrl-C.
    source.stop()
    raise


def _size(folder: pathlib.Path) -> int:
  """Returns the bytes of all files in a folder that is being written."""
  found = 0
  for path in folder.rglob("*"):
    with contextlib.suppress(OSError):  # Renamed or deleted meanwhile.
      found += path.stat().st_size
  return found


def _same(folder: pathlib.Path, content: bytes) -> bool:
  """Returns whether a cached manifest has these bytes."""
  path = folder / world_manifest.MANIFEST
  return path.is_file() and path.read_bytes() == content


def _complete(folder: pathlib.Path) -> bool:
  """Returns whether all files exist with the right sizes; reads none."""
  stated = world_manifest.read_manifest(folder)["files"]
  return all(
    (folder / name).is_file()
    and (folder / name).stat().st_size == stated[name]["bytes"]
    for name in stated
  )


def _intact(folder: pathlib.Path) -> bool:
  """Returns whether every byte agrees with the manifest."""
  try:
    world_manifest.check_files(folder, world_manifest.read_manifest(folder))
  except errors.UserError:
    return False
  return True


@contextlib.contextmanager
def _disk_errors(url: str) -> Iterator[None]:
  """Raises UserError for errors of the disk that the cache is on."""
  try:
    yield
  except OSError as error:
    raise errors.UserError(
      f"{url} cannot be stored in {cache_folder()} ({error.strerror}); free "
      "some space, or set XDG_CACHE_HOME to another folder."
    ) from error


def _encrypted(parts: urllib.parse.SplitResult) -> bool:
  """Returns whether the content of an address is safe in transit."""
  return parts.scheme == "https" or (
    parts.scheme == "http" and parts.hostname in _LOOPBACK
  )


def _split(url: str) -> urllib.parse.SplitResult:
  """Returns the parts of an address; raises UserError if it is malformed."""
  try:
    parts = urllib.parse.urlsplit(url)
    parts.port  # noqa: B018  Parsed when it is read.
    return parts
  except ValueError as error:
    raise errors.UserError(
      f"{url} is not a valid address ({error}); check it."
    ) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Checks where a server redirects to before anything is sent there."""

  def redirect_request(
    self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
  ) -> urllib.request.Request | None:
    parts = _split(newurl)
    if not _encrypted(parts):
      why = "it is not encrypted"
    elif _inside(parts.hostname) and not _inside(_split(req.full_url).hostname):
      # Otherwise, a public server could send requests into a local network.
      why = "it leads from a public server into a local network"
    else:
      return super().redirect_request(req, fp, code, msg, headers, newurl)
    raise errors.UserError(
      f"{req.full_url} is redirected to {newurl:.200}, which is refused: "
      f"{why}; ask its publisher for another address."
    )


def _inside(host: str | None) -> bool:
  """Returns whether a host has an address that is not public.

  A host that this machine cannot resolve is not; a proxy may resolve it.
  """
  try:
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
  except (OSError, UnicodeError):
    return False
  numbers = (ipaddress.ip_address(one.partition("%")[0]) for one in found)
  return not all(
    (getattr(one, "ipv4_mapped", None) or one).is_global for one in numbers
  )


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
  return urllib.request.build_opener(_Redirects)


def _check(url: str) -> None:
  """Raises UserError unless this module can load from an address."""
  parts = _split(url)
  if parts.scheme == "http" and _encrypted(parts):
    return
  if parts.scheme not in _SCHEMES or not parts.netloc:
    raise errors.UserError(
      f"{url} cannot be loaded"
      f"{errors.closest(parts.scheme, (*_SCHEMES, _HUB))}; give a folder, or "
      "an address that begins with https://, gs://, s3:// or hf://."
    )
  if parts.query or parts.fragment:
    raise errors.UserError(
      f"{url} has a query, which cannot be used for the other files of the "
      "world; give the address of a folder."
    )


def _read(url: str, file: Any) -> bytes:
  # What has arrived, so that `stop` has an effect on slow servers.
  read = getattr(file, "read1", file.read)
  try:
    return read(_BLOCK_BYTES)
  except (OSError, http.client.HTTPException) as error:
    raise _unreachable(url, error) from error


@contextlib.contextmanager
def _open(url: str) -> Iterator[Any]:
  scheme = urllib.parse.urlsplit(url).scheme
  try:
    if scheme in _BUCKETS:
      # Imported late: slow, and needed only for buckets.
      from etils import epath

      file = epath.Path(url).open("rb")
    else:
      file = _opener().open(
        urllib.parse.quote(url, safe=":/%[]@"), timeout=_TIMEOUT_S
      )
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
