"""Tests that whatever a job does ends in a child process."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines.videos import contained
from data_pipelines.videos import nursery as nursery_lib

LIMITS = dict(memory_mb=200, seconds=60.0, stalled_seconds=30.0)


@pytest.fixture(scope="module")
def nursery():
  """Yields a nursery that all tests use one after the other."""
  with contained.Nursery() as nursery:
    yield nursery


def run(nursery, name, job=None, **limits):
  """Returns what a job of `bad_jobs` sends."""
  function = f"bad_jobs:{name}"
  return list(nursery.run(function, job or {}, **{**LIMITS, **limits}))


def test_messages_arrive_in_order_and_whole(nursery):
  found = run(nursery, "talk", {"sizes": [0, 1, 3_000_000]})
  assert [header for header, _ in found] == [{"k": k} for k in range(3)]
  assert [len(blob) for _, blob in found] == [0, 1, 3_000_000]


@pytest.mark.parametrize(
  ("name", "limits", "reason"),
  [
    ("crash", {}, "crashed its process (SIGSEGV)"),
    ("crash_in_a_message", {}, "crashed its process (SIGKILL)"),
    ("leave", {}, "ended its process (code 3)"),
    ("hang", {"stalled_seconds": 0.3}, "no frame was decoded for 0 s"),
    ("chatter", {"seconds": 0.5}, "took longer than 0 s"),
    ("grow", {}, "needs more than 200 MiB of memory"),
    ("fail", {}, "KeyError: 'what'"),
  ],
)
def test_a_bad_job_is_a_failure_with_its_reason(nursery, name, limits, reason):
  with pytest.raises(contained.Failure) as caught:
    run(nursery, name, **limits)
  assert reason in str(caught.value)
  # The next job finds everything as it was.
  assert run(nursery, "talk", {"sizes": [5]}) == [({"k": 0}, b"xxxxx")]


def test_a_job_that_the_caller_leaves_is_ended(nursery):
  messages = nursery.run("bad_jobs:chatter", {}, **LIMITS)
  pid = next(messages)[0]["pid"]
  messages.close()
  with pytest.raises(ProcessLookupError):
    os.kill(pid, 0)


def test_a_hanging_decoder_ends_with_the_process_that_started_it():
  code = (
    "from data_pipelines.videos import contained\n"
    "with contained.Nursery() as nursery:\n"
    "  for header, _ in nursery.run('bad_jobs:say_and_hang', {},\n"
    "      memory_mb=200, seconds=99, stalled_seconds=99):\n"
    "    print(header['pid'], flush=True)\n"
  )
  parent = subprocess.Popen(
    [sys.executable, "-c", code],
    stdout=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
  )
  pid = int(parent.stdout.readline())
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  parent.stdout.close()
  for _ in range(200):
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return
    time.sleep(0.05)
  os.kill(pid, signal.SIGKILL)
  pytest.fail("the decoder is still there after 10 s")


def test_the_limit_of_the_machine_is_not_raised(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 30, 1 << 30))
  assert nursery_lib.most_data(100_000) == 1 << 30
  monkeypatch.setattr(
    resource, "getrlimit", lambda kind: (1 << 30, resource.RLIM_INFINITY)
  )
  assert nursery_lib.most_data(100_000) > 100_000 << 20
