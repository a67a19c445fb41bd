"""Tests of the watchdog."""

import itertools
import time

from genie_jax.train import watchdog


def wait_for(codes, seconds=20.0):
  """Waits until the watchdog has ended the process, in place of a hang."""
  end = time.monotonic() + seconds
  while not codes and time.monotonic() < end:
    time.sleep(0.01)


def test_a_part_that_hangs_ends_the_process_with_all_stacks(capfd):
  codes = []
  with (
    watchdog.Watchdog(0.2, codes.append) as dog,
    dog.watch("saving"),
  ):
    wait_for(codes)
  assert codes == [watchdog.CODE]
  err = capfd.readouterr().err
  assert "in wait_for" in err and "Thread" in err


def test_parts_within_their_bound_and_compiling_ones_go_on():
  codes = []
  with watchdog.Watchdog(1.0, codes.append) as dog:
    for _ in range(5):
      with dog.watch("a step"):
        time.sleep(0.2)
    with dog.watch("a step", compiles=True):
      time.sleep(1.3)
    time.sleep(1.3)  # Between two parts nothing is watched.
    # Ten times the median is more than 1 s.
    with dog.watch("a step"):
      time.sleep(1.3)
  assert not codes


def test_zero_seconds_turn_it_off():
  codes = []
  with watchdog.Watchdog(0, codes.append) as dog, dog.watch("a step"):
    time.sleep(0.1)
  assert not codes


def test_a_process_that_was_stopped_did_not_hang(monkeypatch):
  # A clock that shows an hour more at each look, as after SIGSTOP.
  jumps = itertools.count(step=3600.0)
  monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(jumps))
  codes = []
  dog = watchdog.Watchdog(1.0, codes.append, poll=0.01)
  with dog, dog.watch("a step"):
    time.sleep(0.2)  # 20 looks of at most 0.02 s each.
  assert not codes
