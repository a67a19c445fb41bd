"""Where numbers go, and how fast a run is."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
import tensorboardX

from genie_jax.core import files

FILE = "metrics.jsonl"

# Peak dense bfloat16 FLOPs a second of one device, by `device_kind`. TPUs:
# Cloud TPU documentation, "System architecture", one page a version. GPUs:
# NVIDIA's data sheets of A100, H100, H200, B200 and L4 without sparsity.
# JAX shows a v4 or later chip as one device (megacore).
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device: jax.Device) -> float | None:
  """Returns a device's peak FLOPs a second, or None where it is unknown."""
  return PEAK_FLOPS.get(device.device_kind)


class Writer(Protocol):
  """Takes numbers and pictures of a step."""

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    """Keeps named numbers; None where a number is unknown."""

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Keeps a picture, uint8 [H, W, 3]."""

  def close(self) -> None:
    """Brings everything to disk."""


class JsonLines:
  """One JSON object a line: step, time, and the numbers."""

  def __init__(self, workdir: files.PathLike, resumed_step: int):
    """Opens the file, and drops lines of steps that will be made again.

    Args:
      workdir: Folder of metrics.jsonl.
      resumed_step: Last step whose line stays.
    """
    path = pathlib.Path(workdir) / FILE
    if path.exists():
      lines = path.read_text().splitlines()
      kept = [line for line in lines if _step_of(line) <= resumed_step]
      if len(kept) != len(lines):
        files.write_atomic(path, "".join(line + "\n" for line in kept))
    # Open as long as the run; `close` ends it.
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    finite = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in values.items()}
    line = {"step": step, "time": round(time.time(), 3), **finite}
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    # A killed run keeps its lines; they come a few times a minute.
    self._file.flush()

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Pictures have files of their own."""

  def close(self) -> None:
    self._file.close()


def _step_of(line: str) -> float:
  """Returns a line's step; infinity for one that a kill cut short."""
  try:
    return json.loads(line)["step"]
  except (json.JSONDecodeError, KeyError, TypeError):
    return math.inf


class TensorBoard:
  """Event files for TensorBoard."""

  def __init__(self, workdir: files.PathLike, resumed_step: int):
    self._writer = tensorboardX.SummaryWriter(
        str(pathlib.Path(workdir) / "tensorboard"),
        purge_step=resumed_step + 1)

  def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
      if value is not None:
        self._writer.add_scalar(name, value, step)

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    self._writer.add_image(name, picture, step, dataformats="HWC")

  def close(self) -> None:
    self._writer.close()


class Many:
  """Passes everything to several writers; to none on processes but 0."""

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


def open_writers(workdir: files.PathLike, resumed_step: int) -> Writer:
  """Returns the writers of a run; only process 0 writes."""
  if jax.process_index() != 0:
    return Many([])
  return Many([
      JsonLines(workdir, resumed_step), TensorBoard(workdir, resumed_step)])


class Meter:
  """Speed of a run, without what is no training.

  Attributes:
    started: Unix time when the run's first process began, over restarts.
    productive: Seconds of training that are in the present state; steps lost
      by a kill are not among them.
  """

  def __init__(
      self,
      clips_per_step: int,
      flops_per_clip: float,
      peak: float | None,
      started: float,
      productive: float,
  ):
    """Starts the clock.

    Args:
      clips_per_step: Clips of the global batch.
      flops_per_clip: Model FLOPs of a clip, forward and backward.
      peak: Peak FLOPs a second of all devices together, None when unknown.
      started: See the attribute.
      productive: See the attribute.
    """
    self.started = started
    self.productive = productive
    self._clips = clips_per_step
    self._flops = flops_per_clip
    self._peak = peak
    self._reset()

  def _reset(self) -> None:
    self._begin = time.perf_counter()
    self._steps, self._aside, self._waited = 0, 0.0, 0.0

  def step(self, waited: float) -> None:
    """Counts a step; `waited` seconds of it the device had no data."""
    self._steps += 1
    self._waited += waited

  @contextlib.contextmanager
  def aside(self) -> Iterator[None]:
    """Leaves out what runs inside: compiling, evaluation, saving."""
    begin = time.perf_counter()
    try:
      yield
    finally:
      self._aside += time.perf_counter() - begin

  def read(self) -> dict[str, float | None]:
    """Returns the speed since the last reading; call it when steps are done.

    Returns:
      steps_per_second, clips_per_second, model_flops_per_second; mfu, the
      share of the devices' peak, None where that is unknown; data_wait, the
      share of time in which the device had nothing to do as the next batch
      was not there (at most, as seen by the host); goodput, the share of the
      time since `started` that went into steps that were kept.
    """
    seconds = time.perf_counter() - self._begin - self._aside
    rate = self._steps / seconds if self._steps else None
    flops = rate and rate * self._clips * self._flops
    self.productive += seconds if self._steps else 0.0
    values = {
        "steps_per_second": rate,
        "clips_per_second": rate and rate * self._clips,
        "model_flops_per_second": flops,
        "mfu": flops / self._peak if flops and self._peak else None,
        "data_wait": self._waited / seconds if self._steps else None,
        "goodput": self.productive / max(time.time() - self.started, 1e-9),
    }
    self._reset()
    return values


def summary(step: int, steps: int, values: Mapping[str, Any]) -> str:
  """Returns the line of a step for people."""
  parts = [f"step {step}/{steps}"]
  for name, text in (
      ("loss", "loss {:.5g}"), ("learning_rate", "lr {:.3g}"),
      ("steps_per_second", "{:.3g} steps/s"),
      ("clips_per_second", "{:.3g} clips/s"), ("mfu", "MFU {:.1%}"),
      ("data_wait", "data wait {:.0%}")):
    value = values.get(name)
    if value is not None:
      parts.append(text.format(value))
    elif name == "mfu":
      parts.append("MFU unknown")
  return ", ".join(parts)
