"""Writes metrics, and measures the speed of a run."""

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tensorboardX
from etils import epath

from genie_jax.core import buckets, errors, files
from genie_jax.train import goodput

FILE = "metrics.jsonl"


class Writer(Protocol):
  """Writes the metrics and images of a step."""

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    """Writes named numbers; None for a number that is unknown."""

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes an image, uint8 [H, W, 3]."""

  def close(self) -> None:
    """Flushes and closes the files."""


class JsonLines:
  """Writes one JSON object per line, with step, time and metrics."""

  def __init__(self, workdir: epath.Path, resumed_step: int):
    """Opens the file, and drops lines of steps that will be repeated.

    Args:
      workdir: Folder of metrics.jsonl.
      resumed_step: Last step whose line is kept.
    """
    self._path = workdir / FILE
    lines = []
    if self._path.exists():
      lines = self._path.read_text().splitlines()
    self._kept = [line for line in lines if step_of(line) <= resumed_step]
    self._file = None
    if buckets.is_remote(self._path):
      # Objects in a bucket cannot be appended to, so each new line rewrites
      # the file, which has a megabyte after some thousand lines.
      self._write_all()
      return
    if len(self._kept) != len(lines):
      self._write_all()
    self._path.parent.mkdir(parents=True, exist_ok=True)
    # Open until `close` at the end of the run.
    self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115

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
    if self._file is None:
      self._kept.append(line)
      self._write_all()
      return
    self._file.write(line + "\n")
    # Flushed, so that a kill loses no line; there are only a few per minute.
    self._file.flush()

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Does nothing: images are written to separate files."""

  def close(self) -> None:
    if self._file is not None:
      self._file.close()


def step_of(line: str) -> float:
  """Returns a line's step; infinity for a line that a kill cut short."""
  try:
    return json.loads(line)["step"]
  except (json.JSONDecodeError, KeyError, TypeError):
    return math.inf


class TensorBoard:
  """Event files for TensorBoard."""

  def __init__(self, workdir: epath.Path, resumed_step: int):
    folder = workdir / "tensorboard"
    try:
      self._writer = tensorboardX.SummaryWriter(
        str(folder), purge_step=resumed_step + 1
      )
    except ImportError as error:
      # tensorboardX has its own drivers for buckets.
      raise errors.UserError(
        f"TensorBoard cannot write to {folder} ({error}); install "
        "google-cloud-storage for gs:// or boto3 for s3://."
      ) from error

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
      if value is not None:
        self._writer.add_scalar(name, value, step)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    self._writer.add_image(name, picture, step, dataformats="HWC")

  def close(self) -> None:
    self._writer.close()


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
    self._steps, self._excluded, self._waited = 0, 0.0, 0.0
    self._settled = 0.0, 0.0

  def step(self, waited: float) -> None:
    """Counts a step in which the device waited for data, in seconds."""
    self._steps += 1
    self._waited += waited

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
      ready (an upper bound, measured on the host); and, for the whole run,
      goodput and lost_seconds/<kind>, see `goodput`.
    """
    seconds = self._settle()
    rate = self._steps / seconds if self._steps else None
    flops = rate and rate * self._clips * self._flops
    values = {
      "steps_per_second": rate,
      "clips_per_second": rate and rate * self._clips,
      "model_flops_per_second": flops,
      "mfu": flops / self._peak if flops and self._peak else None,
      "data_wait": self._waited / seconds if self._steps else None,
      **self._clock.read(),
    }
    self._reset()
    return values


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
  return ", ".join(parts)
