"""Runs jobs in several processes, with one progress bar and a clean stop."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import process
from typing import Any

Tick = Callable[[int], object]

_POLL_SECONDS = 0.2


def run(
  function: Callable[[Any, Tick], None],
  jobs: Sequence[Any],
  workers: int,
  tick: Tick,
) -> None:
  """Calls function(job, tick) for each job.

  Args:
    function: Does one job, and calls its tick with the amount of work since
      the last call; must be picklable.
    jobs: Picklable arguments of `function`.
    workers: Number of processes; with one, all jobs run in this process.
    tick: Called in this process with the amount of work done by all workers.

  Raises:
    ChildProcessError: A worker was killed.
  """
  if min(workers, len(jobs)) < 2:
    for job in jobs:
      function(job, tick)
    return
  # Spawned, not forked: the game is not fork-safe.
  context = multiprocessing.get_context("spawn")
  counter, stop = context.Value("q", 0), context.Event()
  shown = 0
  with concurrent.futures.ProcessPoolExecutor(
    min(workers, len(jobs)), context, _start, (counter, stop)
  ) as pool:
    try:
      waiting = {pool.submit(_work, function, job) for job in jobs}
      while waiting:
        ended, waiting = concurrent.futures.wait(
          waiting, _POLL_SECONDS, concurrent.futures.FIRST_COMPLETED
        )
        for future in ended:
          future.result()  # Raises what the job raised.
        now = counter.value
        tick(now - shown)
        shown = now
    except process.BrokenProcessPool as error:
      raise ChildProcessError(
        "A worker was killed (out of memory?); run the same command again: it "
        "keeps finished files."
      ) from error
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)


def _start(counter: Any, stop: Any) -> None:
  """Stores a worker's shared objects, and ends the worker with its parent."""
  global _shared
  _shared = counter, stop
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent stops workers.

  def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # Workers are spawned.
    parent.join()
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def _work(function: Callable[[Any, Tick], None], job: Any) -> None:
  counter, stop = _shared

  def tick(count: int) -> None:
    if stop.is_set():
      raise InterruptedError("The parent process stopped.")
    with counter.get_lock():
      counter.value += count

  function(job, tick)
