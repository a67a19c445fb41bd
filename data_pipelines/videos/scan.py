"""Says of each file whether it is a film: its digest, size and duration."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from data_pipelines.videos import contained
from data_pipelines.videos import options as options_lib
from data_pipelines.videos import sources as sources_lib
from genie_jax.core import buckets, errors, files

PROBE = "data_pipelines.videos.probe:job"
CACHE = ".films.json"
# Files that one element of the pipeline scans.
_FILES = 32
_PROBE_SECONDS = 120.0


def jobs(
  listed: Sequence[sources_lib.File],
  folder: pathlib.Path,
  limits: options_lib.Limits,
) -> list[dict[str, Any]]:
  """Returns one job for some files each; equal files give equal jobs.

  Args:
    listed: The files.
    folder: Where results are kept.
    limits: Of the child that looks at a film.
  """
  found = []
  for start in range(0, len(listed), _FILES):
    some = listed[start : start + _FILES]
    stamps = [_stamp(file) for file in some]
    content = {
      "files": [[file.path, file.name, file.actions] for file in some],
      "stamps": stamps,
    }
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
    found.append(
      {
        **content,
        "result": str(folder / f"{key}.json"),
        "memory_mb": limits.memory_mb,
      }
    )
  return found


def _stamp(file: sources_lib.File) -> list[int]:
  """Returns what changes with a film's or its actions' content.

  Nothing is read for it. It is empty for a file that is not there.
  """
  stamp = []
  for path in filter(None, (file.path, file.actions)):
    status = sources_lib.status_of(path)
    if isinstance(status, str):
      return []
    stamp += [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
  return stamp


def run(job: dict[str, Any], nursery: contained.Nursery) -> None:
  """Does one job and writes its result; runs in any process."""
  if os.path.exists(job["result"]):
    return
  rows = [
    dataclasses.asdict(_scan(path, name, actions, nursery, job["memory_mb"]))
    for path, name, actions in job["files"]
  ]
  files.write_json(job["result"], rows)


def results(jobs: Sequence[dict[str, Any]]) -> list[sources_lib.Source]:
  """Returns the films of all jobs, in order.

  Raises:
    UserError: A result is missing.
  """
  return [
    _source(row) for job in jobs for row in files.read_json(job["result"], list)
  ]


def size_of(jobs: Sequence[dict[str, Any]]) -> int:
  """Returns the bytes of all files."""
  return sum(stamp[0] for job in jobs for stamp in job["stamps"] if stamp)


def _source(row: dict[str, Any]) -> sources_lib.Source:
  return sources_lib.Source(**{**row, "labels": tuple(row["labels"])})


class Cache:
  """What an earlier call found out of films, for files that did not change.

  It is kept beside the shards as a hidden file, which may be removed.
  """

  def __init__(self, folder: pathlib.Path):
    """Reads it if there is one; what it cannot use is found out again."""
    self._path = folder / CACHE
    self._rows: dict[str, tuple[list[int], sources_lib.Source]] = {}
    self._new: dict[str, Any] = {}
    try:
      found = files.read_json(self._path)
    except errors.UserError:
      return  # There is none, or it is damaged.
    for path, known in found.items() if isinstance(found, dict) else ():
      # Another version of this program may have had other fields.
      with contextlib.suppress(KeyError, TypeError):
        self._rows[path] = known["stamp"], _source(known["row"])

  def get(self, file: sources_lib.File) -> sources_lib.Source | None:
    """Returns an unchanged file's row, as `results` does."""
    stamp, row = self._rows.get(file.path, ([], None))
    return row if stamp and stamp == _stamp(file) else None

  def put(self, file: sources_lib.File, row: sources_lib.Source) -> None:
    """Remembers a file's row; `write` stores it."""
    self._new[file.path] = {
      "stamp": _stamp(file),
      "row": dataclasses.asdict(row),
    }

  def digests(self) -> dict[str, str]:
    """Returns the SHA-256 of each film of the earlier call, by its name."""
    return {row.name: row.sha256 for _, row in self._rows.values()}

  def write(self) -> None:
    """Stores what was put."""
    files.write_json(self._path, self._new)


def _scan(
  path: str,
  name: str,
  actions: str,
  nursery: contained.Nursery,
  memory_mb: int,
) -> sources_lib.Source:
  row = sources_lib.Source(0, path, name, actions=actions)
  bad = lambda reason: dataclasses.replace(
    row, status=sources_lib.BAD, reason=reason
  )
  status = sources_lib.status_of(path)
  if isinstance(status, str):
    if buckets.is_remote(name):
      status = "is an address; copy the film to a disk, and name that file"
    return bad(status)
  row = dataclasses.replace(row, size=status.st_size)
  if not status.st_size:
    return bad("is empty")
  try:
    row = dataclasses.replace(row, sha256=files.sha256(path))
  except OSError as error:
    return bad(error.strerror or "cannot be read")
  film = {}
  if actions:
    try:
      film["actions_sha256"] = files.sha256(actions)
    except OSError as error:
      film["actions_problem"] = error.strerror or "cannot be read"
  try:
    for header, _ in nursery.run(
      PROBE,
      {"path": path, "actions": actions},
      memory_mb=memory_mb,
      seconds=_PROBE_SECONDS,
      stalled_seconds=_PROBE_SECONDS,
    ):
      film |= header.get("film", {})
  except contained.Failure as error:
    return bad(sources_lib.printable(str(error)))
  if "actions_problem" in film:  # It names the file.
    film["actions_problem"] = sources_lib.printable(film["actions_problem"])
  return _source({**dataclasses.asdict(row), **film})
