"""Writes metrics, and measures the speed of a run."""

import contextlib
import errno
import functools
import io
import json
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from etils import epath
from tensorboardX import event_file_writer
from tensorboardX import summary as summaries
from tensorboardX.proto import event_pb2

from genie_jax.core import buckets, errors, files
from genie_jax.sharding import hosts
from genie_jax.train import goodput

FILE = "metrics.jsonl"
_protos: Any = event_pb2  # Its classes are made when it is imported.
# What makes the summary of an event for TensorBoard, its step and its time.
_Event = tuple[Callable[[], Any], int, float]
_WAITING_EVENTS = 1000
_FLUSH_SECONDS = 120.0
# Uploading a file to a bucket takes a while; a disk that hangs takes for ever.
_CLOSE_SECONDS = 60.0


class Writer(Protocol):
  """Writes the metrics and images of a step."""

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    """Writes named numbers; None for a number that is unknown."""

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, 3]."""

  def close(self) -> None:
    """Flushes and closes the files."""


class JsonLines:
  """Writes one JSON object per line, with step, time and metrics.

  A line that cannot be written, for example on a full disk, does not end the
  run: it is written together with the next one that can be.
  """

  def __init__(self, workdir: epath.Path, resumed_step: int):
    """Opens the file, and drops lines of steps that will be repeated.

    Args:
      workdir: Folder of metrics.jsonl.
      resumed_step: Last step whose line is kept.
    """
    self._path = workdir / FILE
    self._kept = lines(workdir, resumed_step)
    self._waiting: list[str] = []  # Lines that are not on disk yet.
    self._failed = False  # Whether the last write failed.
    self._file: io.FileIO | None = None
    if buckets.is_remote(self._path):
      # Objects in a bucket cannot be appended to, so each new line rewrites
      # the file, which has a megabyte after some thousand lines.
      self._write_all()
      return
    if self._path.exists() and len(self._path.read_text().splitlines()) != len(
      self._kept
    ):
      self._write_all()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    # Open until `close` at the end of the run. Without a buffer, so that a
    # kill loses no line; there are only a few per minute.
    self._file = io.FileIO(os.fspath(self._path), "a")

  def _write_all(self) -> None:
    files.write_atomic(self._path, "".join(line + "\n" for line in self._kept))

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    finite = {
      name: value if value is not None and math.isfinite(value) else None
      for name, value in values.items()
    }
    line = json.dumps(
      {"step": step, "time": round(time.time(), 3), **finite}, allow_nan=False
    )
    self._waiting.append(line)
    self._write_waiting()

  def _write_waiting(self) -> None:
    try:
      if self._file is None:
        self._kept += self._waiting
        self._waiting = []
        self._write_all()
      else:
        self._append("".join(line + "\n" for line in self._waiting))
        self._waiting = []
      self._failed = False
    except OSError as error:
      if not self._failed:
        logging.warning(
          "%s cannot be written (%s); training goes on, and the lines are "
          "written as soon as that is possible.",
          self._path,
          error,
        )
      self._failed = True

  def _append(self, text: str) -> None:
    """Appends to the file on disk, completely or not at all."""
    assert self._file is not None
    data, size = text.encode(), os.fstat(self._file.fileno()).st_size
    try:
      if self._file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
      os.ftruncate(self._file.fileno(), size)
      raise

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Does nothing: images are written to separate files."""

  def close(self) -> None:
    if self._waiting or self._failed:
      self._write_waiting()
    if self._failed:
      logging.warning("The last lines of %s are lost.", self._path)
    if self._file is not None:
      self._file.close()


def step_of(line: str) -> float:
  """Returns a line's step; infinity for one that was cut short or damaged."""
  try:
    step = json.loads(line)["step"]
  except (ValueError, KeyError, TypeError, RecursionError):
    return math.inf
  return step if isinstance(step, int) else math.inf


def lines(workdir: epath.Path, last_step: int) -> list[str]:
  """Returns the whole lines of a workdir's log up to a step."""
  path = workdir / FILE
  if not path.exists():
    return []
  return [
    line for line in path.read_text().splitlines() if step_of(line) <= last_step
  ]


def evaluated(workdir: epath.Path, step: int) -> bool:
  """Returns whether a workdir's log has the held-out metrics of a step."""
  return any(
    step_of(line) == step
    and any(name.startswith("eval/") for name in json.loads(line))
    for line in lines(workdir, step)
  )


class TensorBoard:
  """Event files for TensorBoard.

  A thread writes them, and training never waits for it. What cannot be written,
  or not fast enough, is left out: metrics.jsonl has all numbers.
  """

  def __init__(self, workdir: epath.Path, resumed_step: int):
    """Starts a new file, in which steps after `resumed_step` count.

    Raises:
      UserError: The driver for a bucket is missing.
    """
    self._folder = workdir / "tensorboard"
    if not buckets.is_remote(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
    try:
      events = event_file_writer.EventsWriter(str(self._folder / "events"))
    except ImportError as error:
      # tensorboardX has its own drivers for buckets.
      raise errors.UserError(
        f"TensorBoard cannot write to {self._folder} ({error}); install "
        "google-cloud-storage for gs:// or boto3 for s3://."
      ) from error
    start = _protos.SessionLog(status=_protos.SessionLog.START)
    events.write_event(
      _protos.Event(
        step=resumed_step + 1, wall_time=time.time(), session_log=start
      )
    )
    self._queue: queue.Queue[_Event | None] = queue.Queue(_WAITING_EVENTS)
    self._complete, self._saying = True, threading.Lock()
    self._thread = threading.Thread(
      target=self._write, args=(events,), name="tensorboard", daemon=True
    )
    self._thread.start()

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
      if value is not None and math.isfinite(value):
        self._put(functools.partial(summaries.scalar, name, value), step)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    make = functools.partial(summaries.image, name, picture, dataformats="HWC")
    self._put(make, step)

  def _put(self, make: Callable[[], Any], step: int) -> None:
    try:
      self._queue.put_nowait((make, step, time.time()))
    except queue.Full:
      self._incomplete("they are written too slowly or not at all")

  def _incomplete(self, why: object) -> None:
    with self._saying:  # Both threads may find a fault at the same moment.
      first, self._complete = self._complete, False
    if first:
      logging.warning(
        "The files in %s are incomplete from here on (%s); training goes on, "
        "and %s has all numbers.",
        self._folder,
        why,
        FILE,
      )

  def _write(self, events: event_file_writer.EventsWriter) -> None:
    """Writes events until there is None, or until one cannot be written."""
    try:
      flushed = time.monotonic()
      while (event := self._queue.get()) is not None:
        make, step, moment = event
        events.write_event(
          _protos.Event(step=step, wall_time=moment, summary=make())
        )
        if time.monotonic() - flushed > _FLUSH_SECONDS:
          events.flush()
          flushed = time.monotonic()
      events.close()
    except Exception as error:  # Of a disk or of a bucket's driver.
      self._incomplete(error)

  def close(self) -> None:
    end = time.monotonic() + _CLOSE_SECONDS
    while self._thread.is_alive() and time.monotonic() < end:
      try:
        self._queue.put(None, timeout=0.1)
        break
      except queue.Full:
        pass
    self._thread.join(max(end - time.monotonic(), 0.0))
    if self._thread.is_alive():
      self._incomplete("they were not written when the run ended")


class Many:
  """Passes everything to several writers."""

  def __init__(self, writers: list[Writer]):
    self._writers = writers

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    for writer in self._writers:
      writer.scalars(step, values)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    for writer in self._writers:
      writer.image(step, name, picture)

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def open_writers(workdir: epath.Path, resumed_step: int) -> Writer:
  """Returns the writer of a run, which writes only on process 0."""
  if jax.process_index() != 0:
    return Many([])
  return Many(
    [JsonLines(workdir, resumed_step), TensorBoard(workdir, resumed_step)]
  )


class Meter:
  """Measures the speed of training, excluding all other work."""

  def __init__(
    self,
    clips_per_step: int,
    flops_per_clip: float,
    peak: float | None,
    clock: goodput.Clock,
  ):
    """Starts measuring.

    Args:
      clips_per_step: Clips of the global batch.
      flops_per_clip: Model FLOPs of a clip, forward and backward.
      peak: Peak FLOPs per second of all devices together, None if unknown.
      clock: Adds up the seconds of steps and of excluded work.
    """
    self._clips = clips_per_step
    self._flops = flops_per_clip
    self._peak = peak
    self._clock = clock
    self._reset()

  def _reset(self) -> None:
    self._begin = time.perf_counter()
    self._steps, self._excluded, self._waited, self._host = 0, 0.0, 0.0, 0.0
    self._settled = 0.0, 0.0

  def step(self, waited: float, host: float = 0.0) -> None:
    """Counts a step.

    Args:
      waited: Seconds in which the device waited for data.
      host: Seconds in which this host read and prepared the batch.
    """
    self._steps += 1
    self._waited += waited
    self._host += host

  @contextlib.contextmanager
  def excluded(self, kind: str) -> Iterator[None]:
    """Excludes the time inside the context; it is lost, see `goodput`."""
    begin = time.perf_counter()
    try:
      with self._clock.count_lost(kind):
        yield
    finally:
      self._excluded += time.perf_counter() - begin

  def _settle(self) -> float:
    """Updates the clock; returns the seconds since the last reading."""
    seconds = time.perf_counter() - self._begin - self._excluded
    if self._steps:
      worked = max(seconds - self._waited, 0.0), self._waited
      before, self._settled = self._settled, worked
      self._clock.productive += worked[0] - before[0]
      self._clock.lost["data_wait"] += worked[1] - before[1]
    return seconds

  def note(self) -> dict[str, Any]:
    """Returns the clock for a checkpoint; call it after a step."""
    self._settle()
    return self._clock.note()

  def read(self) -> dict[str, float | None]:
    """Returns the speed since the last reading; call it after a step.

    Returns:
      steps_per_second, clips_per_second, model_flops_per_second; mfu, the
      share of the devices' peak FLOPs, None if that is unknown; data_wait, the
      share of time in which the device was idle because the next batch was not
      ready (an upper bound, measured on the host); with several processes,
      slowest_host, the process that needs most time to read and prepare a
      batch, slowest_host_seconds, its time, and host_seconds, that of the
      median; and, for the whole run, goodput and lost_seconds/<kind>, see
      `goodput`.
    """
    seconds = self._settle()
    hosts_read = self._compare_hosts()
    rate = self._steps / seconds if self._steps else None
    flops = rate and rate * self._clips * self._flops
    values = {
      "steps_per_second": rate,
      "clips_per_second": rate and rate * self._clips,
      "model_flops_per_second": flops,
      "mfu": flops / self._peak if flops and self._peak else None,
      "data_wait": self._waited / seconds if self._steps else None,
      **hosts_read,
      **self._clock.read(),
    }
    self._reset()
    return values

  def _compare_hosts(self) -> dict[str, float]:
    """Returns what `read` says of several processes, which all call this.

    The chips of all hosts take every step together, so the hosts differ only in
    the time that each needs for its share of a batch.
    """
    if jax.process_count() == 1:
      return {}
    seconds = hosts.gather(self._host / max(self._steps, 1))
    return {
      "slowest_host": int(seconds.argmax()),
      "slowest_host_seconds": float(seconds.max()),
      "host_seconds": float(np.median(seconds)),
    }


def summary(step: int, steps: int, values: Mapping[str, Any]) -> str:
  """Returns a human-readable summary of a step, in one line."""
  parts = [f"step {step}/{steps}"]
  for name, text in (
    ("loss", "loss {:.5g}"),
    ("learning_rate", "lr {:.3g}"),
    ("steps_per_second", "{:.3g} steps/s"),
    ("clips_per_second", "{:.3g} clips/s"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait", "data wait {:.0%}"),
    ("goodput", "goodput {:.0%}"),
  ):
    value = values.get(name)
    if value is not None:
      parts.append(text.format(value))
    elif name == "mfu":
      parts.append("MFU unknown")
  if "slowest_host" in values:
    parts.append(
      f"slowest host {values['slowest_host']} "
      f"({values['slowest_host_seconds']:.2g} s a batch, median "
      f"{values['host_seconds']:.2g} s)"
    )
  return ", ".join(parts)
