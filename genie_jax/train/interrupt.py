"""SIGTERM and Ctrl-C as a question that the loop asks after each step."""

import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
  """Context that notes the first signal; a second one acts as usual.

  With many processes JAX catches SIGTERM itself and agrees on a step at which
  all of them stop; Ctrl-C is noted only where one process runs.

  Attributes:
    signal: Number of the signal that came, or None.
  """

  def __init__(self):
    self.signal: int | None = None
    self._before = {}

  def __enter__(self) -> Self:
    # Python lets only the main thread handle signals.
    if jax.process_count() == 1 and (
      threading.current_thread() is threading.main_thread()
    ):
      for number in _SIGNALS:
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *error) -> None:
    self._restore()

  def _restore(self) -> None:
    while self._before:
      signal.signal(*self._before.popitem())

  def _note(self, number: int, frame) -> None:
    del frame
    self.signal = number
    self._restore()

  def asked(self, step: int) -> bool:
    """Returns True where the run should save and stop after `step`."""
    if jax.process_count() > 1 and (
      multihost_utils.reached_preemption_sync_point(step)
    ):
      self.signal = signal.SIGTERM
    return self.signal is not None
