"""Does jobs with Apache Beam, in a process of its own.

That process runs `beam_program`. Beam writes much to stderr, which goes to a
log file, and its workers end with it.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from genie_jax.core import errors

_POLL_SECONDS = 0.3


def run(
  function: str,
  jobs: Sequence[dict[str, Any]],
  weights: Sequence[float],
  workers: int,
  beam_options: Sequence[str],
  log: pathlib.Path,
  tick: Callable[[], object] = lambda: None,
) -> None:
  """Does jobs, and returns when all are done.

  Args:
    function: "module:name"; called as function(job, nursery).
    jobs: JSON values.
    weights: How long each job will take, in any unit.
    workers: Processes on this machine, where `beam_options` name no runner.
    beam_options: Options of Beam, such as "--runner=FlinkRunner".
    log: File for what Beam says.
    tick: Called several times a second.

  Raises:
    UserError: Beam knows no such option or runner.
    OSError: A job could not write its files.
    RunFailed: A worker was killed, or Beam failed.
  """
  if not jobs:
    return
  workers = max(1, min(workers, len(jobs)))
  elements = [[job] for job in jobs]
  if not names_a_runner(beam_options):
    elements = share_out(jobs, weights, workers)
  request = {
    "function": function,
    "elements": elements,
    "workers": workers,
    "beam_options": list(beam_options),
  }
  log.parent.mkdir(parents=True, exist_ok=True)
  with (
    open(log, "ab") as errors_to,
    subprocess.Popen(
      [sys.executable, "-m", "data_pipelines.videos.beam_program"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors_to,
      # Its workers are of its group, and end with it.
      start_new_session=True,
      env={
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
      },
    ) as process,
  ):
    try:
      assert process.stdin is not None and process.stdout is not None
      with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
      while process.poll() is None:
        tick()
        time.sleep(_POLL_SECONDS)
    finally:
      # Also those whom it left behind.
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    answer = process.stdout.read().decode("utf-8", "replace")
  tick()
  _judge(answer, log)


def names_a_runner(beam_options: Sequence[str]) -> bool:
  """Returns whether Beam's options say where a pipeline runs."""
  return any(option.partition("=")[0] == "--runner" for option in beam_options)


def share_out(
  jobs: Sequence[dict[str, Any]], weights: Sequence[float], workers: int
) -> list[list[dict[str, Any]]]:
  """Returns a list of jobs for each worker, all of about the same weight.

  Beam's runner for one machine gives each process its elements at the start, by
  their number. The longest job goes first, to the worker with the least so far.
  """
  shares: list[list[dict[str, Any]]] = [[] for _ in range(workers)]
  sums = [0.0] * workers
  for place in sorted(range(len(jobs)), key=lambda k: (-weights[k], k)):
    least = sums.index(min(sums))
    shares[least].append(jobs[place])
    sums[least] += weights[place]
  return shares


def _judge(answer: str, log: pathlib.Path) -> None:
  """Raises where the engine's last line says that something failed."""
  lines = [line for line in answer.splitlines() if line.startswith("{")]
  result = json.loads(lines[-1]) if lines else {}
  if result.get("done"):
    return
  if "stopped" in result:
    raise OSError(
      f"{result['stopped']}; finished shards are kept, so mend it and run the "
      "same command again"
    )
  if "refused" in result:
    raise errors.UserError(result["refused"])
  said = result.get("failed", "it was killed (out of memory?)")
  raise errors.RunFailed(
    f"Beam did not finish: {said}; finished shards are kept, so run the same "
    f"command again ({log} has Beam's own words)."
  )
