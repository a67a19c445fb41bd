"""Records SIGTERM and Ctrl-C, so that the loop can poll between steps."""

import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
  """Context that records the first signal; a second one acts as usual.

  With several processes, JAX catches SIGTERM itself, and the processes agree on
  a step at which all of them stop. Ctrl-C is recorded only if there is one
  process.

  Attributes:
    signal: Number of the received signal, or None.
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

  def requested(self, step: int) -> bool:
    """Returns True if the run should save and stop after `step`."""
    if jax.process_count() > 1 and (
      multihost_utils.reached_preemption_sync_point(step)
    ):
      self.signal = signal.SIGTERM
    return self.signal is not None
