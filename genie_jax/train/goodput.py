"""Productive and lost time of a run, over all of its starts.

Goodput is the share of the time since the first start in which the devices
computed steps that are part of the current state. The rest is lost time of one
of these kinds:

  start       reading, restoring and building before the first step
  compile     the first step of each start, including its compilation
  data_wait   the devices were idle because the next batch was not ready
  evaluation  held-out loss and previews, including their compilation
  checkpoint  saving, as far as the loop had to wait for it
  down        everything else: no process ran, a kill discarded its steps, or
              what followed the last save of a start, as its last evaluation
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ("start", "compile", "data_wait", "evaluation", "checkpoint")


class Clock:
  """Adds up seconds by kind; checkpoints store the sums of earlier starts.

  Attributes:
    started: Unix time of the run's first start.
    productive: Seconds of steps that are part of the current state.
    lost: Kind -> seconds.
  """

  def __init__(self, began: float):
    """Starts the clock of one start of the run.

    Args:
      began: `time.time()` at which this start began.
    """
    self.started = began
    self.productive = 0.0
    self.lost: dict[str, float] = dict.fromkeys(KINDS, 0.0)

  def add_earlier(self, note: Mapping[str, Any]) -> None:
    """Adds the sums of earlier starts from a checkpoint, see `note`."""
    self.started = min(self.started, note["started"])
    self.productive += note["productive"]
    # Checkpoints of version 0.1 have no kinds; their lost time counts as down.
    for kind, seconds in note.get("lost", {}).items():
      self.lost[kind] += seconds

  def note(self) -> dict[str, Any]:
    """Returns the sums as JSON values, to be stored in a checkpoint."""
    return {
      "started": self.started,
      "productive": self.productive,
      "lost": dict(self.lost),
    }

  @contextlib.contextmanager
  def count_lost(self, kind: str) -> Iterator[None]:
    """Counts the time inside the context as lost time of a kind."""
    begin = time.perf_counter()
    try:
      yield
    finally:
      self.lost[kind] += time.perf_counter() - begin

  def read(self) -> dict[str, float]:
    """Returns goodput, a share, and lost_seconds/<kind>."""
    wall = max(time.time() - self.started, 1e-9)
    down = max(wall - self.productive - sum(self.lost.values()), 0.0)
    return {
      "goodput": min(self.productive / wall, 1.0),
      **{
        f"lost_seconds/{kind}": seconds
        for kind, seconds in {**self.lost, "down": down}.items()
      },
    }
