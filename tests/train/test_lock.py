"""Tests that a workdir has one run at a time."""

import json
import subprocess
import sys
import time

import pytest

from genie_jax.core import buckets, errors
from genie_jax.train import lock
from tests.fixtures import memory_bucket

HOLD = """
import sys, time
from genie_jax.core import buckets
from genie_jax.train import lock
with lock.hold(buckets.run_folder(sys.argv[1])):
  print("held", flush=True)
  time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
  workdir = buckets.run_folder(tmp_path / "run")
  words = [sys.executable, "-c", HOLD, str(workdir)]
  first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
  try:
    assert first.stdout.readline() == "held\n"
    with (
      pytest.raises(
        errors.UserError, match=rf"in use by the run of process {first.pid} on"
      ),
      lock.hold(workdir),
    ):
      pass
  finally:
    first.kill()
    first.wait()
  for _ in range(2):  # The lock of a killed run is free, and of an ended one.
    with lock.hold(workdir):
      pass


def test_a_run_that_fails_ends_its_lock(tmp_path):
  workdir = buckets.run_folder(tmp_path)
  with pytest.raises(ValueError, match="a fault"), lock.hold(workdir):
    raise ValueError("a fault")
  with lock.hold(workdir):
    pass


@pytest.fixture
def bucket(monkeypatch):
  """A run's folder in an empty bucket, where a second counts as a minute."""
  for name, value in (("_BEAT", 0.2), ("_DEAD", 2.0), ("_SETTLE", 0.05)):
    monkeypatch.setattr(lock, name, value)
  return buckets.run_folder(memory_bucket.empty())


def test_in_a_bucket_signs_of_life_refuse_a_second_run(bucket):
  with lock.hold(bucket):
    with (
      pytest.raises(errors.UserError, match="in use by the run of"),
      lock.hold(bucket),
    ):
      pass
    first = (bucket / lock.FILE).read_text()
    time.sleep(0.5)
    assert (bucket / lock.FILE).read_text() != first
  assert not (bucket / lock.FILE).exists()


def test_in_a_bucket_a_killed_run_is_recognised_by_its_silence(bucket):
  left = {"host": "gone", "process": 7, "started": "then", "name": "x"}
  for age in (0.0, 100.0):
    (bucket / lock.FILE).write_text(
      json.dumps({**left, "beat": time.time() - age})
    )
    begin = time.monotonic()
    with lock.hold(bucket):
      waited = time.monotonic() - begin
    # A fresh file is watched first; one of long ago is not.
    assert (waited > 0.45) == (age == 0.0)


def test_of_two_starts_at_the_same_moment_one_stays(bucket, monkeypatch):
  other = {"host": "b", "process": 8, "started": "now", "name": "y"}
  sleep = time.sleep

  def overtaken(seconds):
    (bucket / lock.FILE).write_text(json.dumps({**other, "beat": time.time()}))
    sleep(seconds)

  monkeypatch.setattr(lock.time, "sleep", overtaken)
  with (
    pytest.raises(errors.UserError, match="process 8 on host b"),
    lock.hold(bucket),
  ):
    pass
