"""One run at a time in a workdir.

A second run in the same folder would remove the checkpoints that the first one
is writing, and replace its metrics. On a disk, the operating system locks
WORKDIR/running.json, also between hosts that share the disk, and a lock ends
with its process. Buckets have no locks: there, a run writes the same file once
a minute, and the file of a run that was killed is recognised by its silence.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from genie_jax.core import buckets, errors
from genie_jax.sharding import hosts

FILE = "running.json"
# Seconds between two signs of life in a bucket.
_BEAT = 60.0
# A run that was silent for so long is not watched before it is replaced. Longer
# than the clocks of two hosts differ.
_DEAD = 600.0
# How long to wait before reading back what another start may have replaced.
_SETTLE = 2.0
# Of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)

_Release = Callable[[], None]


@contextlib.contextmanager
def hold(workdir: epath.Path) -> Iterator[None]:
  """Holds a workdir for this run; process 0 does so for all.

  Args:
    workdir: The run's folder, see `buckets.run_folder`.

  Raises:
    UserError: Another run holds it.
  """
  release = hosts.together(lambda: _acquire(workdir))
  try:
    yield
  finally:
    release()


def _acquire(workdir: epath.Path) -> _Release:
  if jax.process_index() != 0:
    return lambda: None
  if buckets.is_remote(workdir):
    return _acquire_in_bucket(workdir / FILE)
  return _acquire_on_disk(workdir / FILE)


def _owner() -> dict[str, Any]:
  return {
    "host": socket.gethostname(),
    "process": os.getpid(),
    "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
  }


def _in_use(path: epath.Path, text: str) -> errors.UserError:
  try:
    owner = json.loads(text)
    who = (
      f"the run of process {owner['process']} on host {owner['host']}, "
      f"started {owner['started']}"
    )
  except (ValueError, KeyError, TypeError):
    who = "another run"
  return errors.UserError(
    f"{path.parent} is in use by {who}; stop that run first, or use another "
    "workdir."
  )


def _acquire_on_disk(path: epath.Path) -> _Release:
  path.parent.mkdir(parents=True, exist_ok=True)
  # Open as long as the lock is held. The file stays, because removing it could
  # remove that of another start.
  file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    text = file.read()
    file.close()
    raise _in_use(path, text) from None
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise
    logging.warning(
      "The file system of %s has no locks (%s); do not start a second run in "
      "this workdir.",
      path.parent,
      error,
    )
  file.truncate(0)
  file.write(json.dumps(_owner()) + "\n")
  file.flush()
  return file.close


def _acquire_in_bucket(path: epath.Path) -> _Release:
  _wait_for_silence(path)
  name = uuid.uuid4().hex
  owner = {**_owner(), "name": name}
  beat = lambda: path.write_text(json.dumps({**owner, "beat": time.time()}))
  beat()
  # Of two runs that start at the same moment, the one that wrote last stays.
  time.sleep(_SETTLE)
  text = path.read_text()
  if _field(text, "name") != name:
    raise _in_use(path, text)
  ended = threading.Event()

  def beats() -> None:
    while not ended.wait(_BEAT):
      with contextlib.suppress(Exception):  # The next one may succeed.
        beat()

  thread = threading.Thread(target=beats, name="workdir lock", daemon=True)
  thread.start()

  def release() -> None:
    ended.set()
    thread.join(_BEAT)
    with contextlib.suppress(Exception):  # It then ends by its silence.
      path.unlink()

  return release


def _wait_for_silence(path: epath.Path) -> None:
  """Returns when no run shows signs of life; raises UserError if one does."""
  if not path.exists():
    return
  text = path.read_text()
  if time.time() - (_field(text, "beat") or 0.0) > _DEAD:
    return
  seconds = 2.5 * _BEAT
  logging.warning(
    "%s says that a run is active; watching it for %.0f s.", path, seconds
  )
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    time.sleep(min(5.0, _BEAT))
    try:
      now = path.read_text()
    except FileNotFoundError:  # It has just ended.
      return
    if now != text:
      raise _in_use(path, now)


def _field(text: str, name: str) -> Any:
  """Returns a field of the file; None if it has another content."""
  try:
    return json.loads(text)[name]
  except (ValueError, KeyError, TypeError):
    return None
