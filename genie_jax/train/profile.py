"""Traces of a few steps, for `xprof` or TensorBoard's profile page."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from etils import epath

from genie_jax.core import buckets, files

FOLDER = "profile"


class Profiler:
  """Traces a range of steps on process 0 into WORKDIR/profile."""

  def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None):
    """Prepares to trace the first to the last of `steps`; None for no trace."""
    self._target = workdir / FOLDER
    self._steps = steps if jax.process_index() == 0 else None
    self._local: contextlib.ExitStack | None = None

  @contextlib.contextmanager
  def step(self, number: int) -> Iterator[None]:
    """Traces the context's body if `number` is in the range."""
    if self._steps is None:
      yield
      return
    first, last = self._steps
    # A run that resumes within the range traces the rest of the range.
    if first <= number <= last and self._local is None:
      self._start()
    with jax.profiler.StepTraceAnnotation("train", step_num=number):
      yield

  def after(self, number: int, metrics: Any) -> None:
    """Ends the trace after its last step; waits for that step's metrics."""
    if self._steps and self._local is not None and number >= self._steps[1]:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    """Ends the current trace, if any."""
    if self._local is None:
      return
    local, self._local = self._local, None
    self._steps = None
    jax.profiler.stop_trace()
    with local:
      self._upload()
    logging.info(
      "The trace is stored in %s; open it with `xprof` or TensorBoard.",
      self._target,
    )

  def _start(self) -> None:
    # The tracer of jaxlib can only write to a disk.
    self._local = contextlib.ExitStack()
    self._folder = pathlib.Path(os.fspath(self._target))
    if buckets.is_remote(self._target):
      self._folder = pathlib.Path(
        self._local.enter_context(tempfile.TemporaryDirectory())
      )
    jax.profiler.start_trace(self._folder)

  def _upload(self) -> None:
    if not buckets.is_remote(self._target):
      return
    for path in sorted(self._folder.rglob("*")):
      if path.is_file():
        name = path.relative_to(self._folder).as_posix()
        files.write_atomic(self._target / name, path.read_bytes())
