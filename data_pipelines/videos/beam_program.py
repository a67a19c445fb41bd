"""The program that runs a pipeline of Apache Beam; see `engine`.

The pipeline only maps: an element is one or several jobs, whose results are
files, the last of them a receipt. A runner may therefore do an element twice,
give up and begin again elsewhere: the files are the same, and no receipt, no
result.

Which runner does the work, on this machine or on a cluster, is Beam's matter.
By default it is the runner that Beam has for one machine, with as many
processes as there are workers. Beam waits for ever if one of them is killed,
which `main` sees and ends.
"""

import importlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options import pipeline_options
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability import portable_runner
from apache_beam.runners.portability.fn_api_runner import fn_runner

from data_pipelines.videos import contained, engine
from genie_jax.core import errors

_WATCH_SECONDS = 0.5
# Around the one line in an error that went through a runner.
_BEGIN, _END = "<<<genie:", ":genie>>>"


class _Do(beam.DoFn):
  """Does the jobs of one element; see `engine.run`."""

  def __init__(self, function: str, launcher: dict[str, Any]):
    self._function, self._launcher = function, launcher

  def setup(self) -> None:
    _end_with(self._launcher)
    self._nursery = contained.Nursery()
    self._nursery.__enter__()

  def process(self, element: str):  # pyright: ignore
    module, _, name = self._function.partition(":")
    function = getattr(importlib.import_module(module), name)
    try:
      for job in json.loads(element):
        function(job, self._nursery)
    except (OSError, errors.UserError) as error:
      # Runners pass on only the text of an error, among much else.
      raise RuntimeError(f"{_BEGIN}{' '.join(str(error).split())}{_END}") from (
        error
      )
    return ()

  def teardown(self) -> None:
    self._nursery.__exit__(None, None, None)


def build(
  pipeline: beam.Pipeline,
  function: str,
  elements: Sequence[Sequence[dict[str, Any]]],
  launcher: dict[str, Any] | None = None,
) -> None:
  """Adds the jobs to a pipeline.

  Args:
    pipeline: Of any runner.
    function: "module:name" of what is called with each job and a nursery.
    elements: Jobs, JSON values, that one worker does one after the other.
    launcher: With which workers on the same machine end; None for nothing.
  """
  _ = (
    pipeline
    | "Jobs" >> beam.Create([json.dumps(jobs) for jobs in elements])
    | "Spread" >> beam.Reshuffle()
    | "Do" >> beam.ParDo(_Do(function, launcher or {}))
  )


def main() -> None:
  """Runs the pipeline that stdin asks for, and says on stdout how it went."""
  request = json.loads(sys.stdin.readline())
  answer = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # Libraries may print.
  _end_with(_this_process(os.getppid()))

  def say(result: dict[str, Any]) -> None:
    answer.write(json.dumps(result) + "\n")
    answer.flush()

  def lost(args: threading.ExceptHookArgs) -> None:
    sys.__excepthook__(args.exc_type, args.exc_value or SystemExit(), None)
    # Beam would wait for ever for a worker that was killed.
    if "Worker subprocess exited" in str(args.exc_value):
      say({"failed": "a worker was killed (out of memory?)"})
      os._exit(1)

  threading.excepthook = lost

  def failed(
    kind: type[BaseException],
    error: BaseException,
    trace: types.TracebackType | None,
  ) -> None:
    sys.__excepthook__(kind, error, trace)
    say(_explain(error))
    os._exit(1)  # Without waiting for threads that wait for workers.

  sys.excepthook = failed
  _run_pipeline(request)
  say({"done": True})


def _run_pipeline(request: dict[str, Any]) -> None:
  given = request["beam_options"]
  named = engine.names_a_runner(given)
  flags = given if named else [*_local_options(request["workers"]), *given]
  options = pipeline_options.PipelineOptions(flags)
  runner = None if named else local_runner(flags)
  with beam.Pipeline(runner=runner, options=options) as pipeline:
    build(
      pipeline,
      request["function"],
      request["elements"],
      _this_process(os.getpid()),
    )


def local_runner(flags: Sequence[str]) -> fn_runner.FnApiRunner:
  """Returns Beam's runner for one machine, with these options.

  Beam's name for it, DirectRunner, first tries one that it would download.
  """
  options = pipeline_options.PipelineOptions(list(flags))
  encoded = portable_runner.JobServiceHandle.encode_pipeline_options(
    options.get_all_options()
  )
  return fn_runner.FnApiRunner(
    provision_info=fn_runner.ExtendedProvisionInfo(
      beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    )
  )


def _local_options(workers: int) -> list[str]:
  mode = "multi_processing" if workers > 1 else "in_memory"
  return [
    f"--direct_num_workers={workers}",
    f"--direct_running_mode={mode}",
  ]


def _explain(error: BaseException | None) -> dict[str, str]:
  """Returns an error of a pipeline as an answer of `main`."""
  text = str(error)
  if _BEGIN in text:
    return {"stopped": text.partition(_BEGIN)[2].partition(_END)[0]}
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  last = lines[-1] if lines else type(error).__name__
  if isinstance(error, (ValueError, SystemExit)):
    return {"refused": f"--beam-options: {last[:300]}"}
  return {"failed": f"{type(error).__name__}: {last[:300]}"}


def _this_process(pid: int) -> dict[str, Any]:
  return {"host": socket.gethostname(), "pid": pid, "began": _began(pid)}


def _began(pid: int) -> str:
  """Returns when a process began; "" if there is none with this number."""
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return ""
  fields = text.rpartition(")")[2].split()
  return "" if fields[0] in "ZX" else fields[19]


def _end_with(launcher: dict[str, Any]) -> None:
  """Ends this process when another one on the same machine has ended."""
  if (
    not launcher
    or launcher["host"] != socket.gethostname()
    or launcher["pid"] == os.getpid()
  ):
    return

  def watch() -> None:
    while _began(launcher["pid"]) == launcher["began"]:
      time.sleep(_WATCH_SECONDS)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
  main()
