"""Ends a process whose training hangs, so that a launcher can start it again.

A mounted bucket that does not answer, a data worker that waits for itself or a
collective that one host never enters would otherwise hold a whole pod until a
person looks. Each process watches itself. The processes of a run wait for each
other in every step, so if one hangs, all find it at about the same time, and
each reports what its own threads were doing.
"""

import contextlib
import dataclasses
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import jax
from absl import logging

# 128 + SIGALRM. XPK restarts only after codes from 127 on.
CODE = 142
SECONDS = 600.0
# A part may last this many times its median.
_FACTOR = 10.0
_REMEMBERED = 101  # Lengths from which the median is computed.
# Until another process that hangs as well has reported its own threads.
_GRACE_SECONDS = 15.0


@dataclasses.dataclass
class _Watch:
  """A part of the loop that is running.

  Attributes:
    part: Its name, for the message.
    bound: Seconds that it may last.
    waited: Seconds that it has lasted, as the watching thread has counted.
  """

  part: str
  bound: float
  waited: float = 0.0


class Watchdog:
  """Context in which parts of the loop may not last much longer than usual.

  A part may last `seconds`, or ten times the median of its earlier lengths if
  that is more. If it lasts longer, the stacks of all threads are written to
  stderr, and the process ends at once with code CODE. Nothing is saved: what
  hangs may be the save.

  A hang that also holds Python's interpreter lock is not found.
  """

  def __init__(
    self,
    seconds: float,
    leave: Callable[[int], None] = os._exit,
    poll: float | None = None,
  ):
    """Watches nothing yet.

    Args:
      seconds: What every part may last; 0 turns the watchdog off.
      leave: Ends the process; called with the exit code.
      poll: Seconds between two looks; by default a tenth of `seconds`, at most
        one.
    """
    self._seconds = seconds
    self._leave = leave
    self._poll = poll or min(1.0, seconds / 10)
    self._lengths: dict[str, deque[float]] = {}
    self._watch: _Watch | None = None
    self._ended = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> Self:
    if self._seconds:
      self._thread = threading.Thread(
        target=self._look, name="watchdog", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._ended.set()
    if self._thread is not None:
      self._thread.join()

  @contextlib.contextmanager
  def watch(self, part: str, compiles: bool = False) -> Iterator[None]:
    """Watches the body of the `with` statement.

    Args:
      part: Name of the part of the loop.
      compiles: The body compiles a program, for which there is no bound; its
        length is not remembered.
    """
    lengths = self._lengths.setdefault(part, deque(maxlen=_REMEMBERED))
    self._watch = None if compiles else _Watch(part, self._bound(lengths))
    begin = time.perf_counter()
    try:
      yield
    finally:
      self._watch = None
      if not compiles:
        lengths.append(time.perf_counter() - begin)

  def _bound(self, lengths: deque[float]) -> float:
    usual = statistics.median(lengths) if lengths else 0.0
    return max(self._seconds, _FACTOR * usual)

  def _look(self) -> None:
    before = time.monotonic()
    while not self._ended.wait(self._poll):
      now = time.monotonic()
      watch = self._watch
      if watch is not None:
        # A process that was stopped (SIGSTOP, a debugger) did not hang.
        watch.waited += min(now - before, 2 * self._poll)
        if watch.waited > watch.bound:
          self._end(watch)
          return
      before = now

  def _end(self, watch: _Watch) -> None:
    logging.error(
      "%s has lasted %.0f s, more than the %.0f s of config.watchdog_seconds "
      "or ten times as long as usual; it hangs, or the bound is too low. The "
      "stacks of all threads follow. The process ends with code %d; run the "
      "same command again to resume from the last checkpoint.",
      watch.part,
      math.ceil(watch.waited),
      watch.bound,
      CODE,
    )
    stream = sys.__stderr__ or sys.stderr
    faulthandler.dump_traceback(stream, all_threads=True)
    if jax.process_count() > 1:
      time.sleep(_GRACE_SECONDS)
    self._leave(CODE)
