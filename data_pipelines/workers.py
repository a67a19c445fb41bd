"""Jobs done by several processes, with one progress bar and a clean end."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import process
from typing import Any

Tick = Callable[[int], None]

_POLL_SECONDS = 0.2


def run(
  function: Callable[[Any, Tick], Any],
  jobs: Sequence[Any],
  workers: int,
  tick: Tick,
) -> dict[Any, Any]:
  """Returns {job: function(job, tick)}.

  Args:
    function: Does one job and calls its tick with the work done since; must
      be picklable, as the jobs and results must be.
    jobs: What to do; hashable.
    workers: Processes; one does everything in this process.
    tick: Called here with work done anywhere.

  Raises:
    ChildProcessError: A worker was killed.
  """
  if min(workers, len(jobs)) < 2:
    return {job: function(job, tick) for job in jobs}
  # Spawned, not forked: the game is not fork-safe.
  context = multiprocessing.get_context("spawn")
  counter, stop = context.Value("q", 0), context.Event()
  shown, done = 0, {}
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(jobs)), context, _start, (counter, stop)
  ) as pool:
    futures = {pool.submit(_work, function, job): job for job in jobs}
    try:
      waiting = set(futures)
      while waiting:
        ended, waiting = concurrent.futures.wait(
          waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
        )
        done |= {futures[future]: future.result() for future in ended}
        now = counter.value
        tick(now - shown)
        shown = now
    except process.BrokenProcessPool as error:
      raise ChildProcessError(
        "A worker was killed (out of memory?); run the same command again, "
        "what was finished is kept."
      ) from error
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)
  return done


def _start(counter: Any, stop: Any) -> None:
  """Keeps what a worker shares, and ends it with its parent."""
  global _shared
  _shared = counter, stop
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent stops us.

  def end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _work(function: Callable[[Any, Tick], Any], job: Any) -> Any:
  counter, stop = _shared

  def tick(count: int) -> None:
    if stop.is_set():
      raise InterruptedError("The parent process stopped.")
    with counter.get_lock():
      counter.value += count

  return function(job, tick)
