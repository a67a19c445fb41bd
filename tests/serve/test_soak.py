"""Tests that the soak notices what it is for, in seconds instead of an hour."""

import asyncio
import itertools
import threading
import time

import fake_world
import players

from benchmarks import soak
from genie_jax.serve import branch


def played(made, memory=lambda: 100.0, seconds=1.0, hang=20.0):
  with players.serving(made, max_sessions=4) as (_, host):
    return asyncio.run(
      soak.soak(
        f"http://{host}/",
        memory,
        seconds=seconds,
        players=4,
        frames=10,
        hang=hang,
        grows=32,
      )
    )


def test_a_sound_server_passes():
  noise = itertools.cycle([100.0, 120.0, 90.0])
  found = played(fake_world.make_engine(), lambda: next(noise), 2.0)
  assert found["failures"] == []
  assert found["frames"] > 0
  assert len(found["memory_mib"]) > 8


def test_memory_that_grows_after_the_warm_up_fails():
  began = time.monotonic()
  found = played(
    fake_world.make_engine(),
    lambda: 100 + 1000 * (time.monotonic() - began),
  )
  [failure] = found["failures"]
  assert "memory grew" in failure
  # Growth during the warm-up is expected.
  warm = [100.0 + 10 * number for number in range(25)] + [350.0] * 75
  assert soak.growth(warm) == 0


def test_a_game_that_stops_fails():
  made, freed = fake_world.make_engine(), threading.Event()
  step, count = made.world._step, itertools.count()

  def stop(states, actions):
    if next(count) > 10:
      freed.wait(20)
    return step(states, actions)

  made.world._step = stop
  threading.Timer(3, freed.set).start()
  found = played(made, seconds=6.0, hang=0.5)
  assert any("waited for more than 0.5 seconds" in e for e in found["failures"])


def test_a_frame_of_another_game_fails(monkeypatch):
  header, count = branch.Line.header, itertools.count()

  def mistaken(self, number):
    found = header(self, number)
    return {**found, "frame": 7} if next(count) == 20 else found

  monkeypatch.setattr(branch.Line, "header", mistaken)
  found = played(fake_world.make_engine())
  assert any("Frame 7 came in place" in each for each in found["failures"])
