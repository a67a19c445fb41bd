"""Where the time of a run went, over all of its starts.

Goodput is the share of the time since the first start in which the devices
worked on steps that are in the present state. The rest is lost, of a kind:

  start       reading, restoring and building before the first step
  compile     the first step of each start, which contains its compilation
  data_wait   the devices had nothing to do as the next batch was not there
  evaluation  held-out loss and pictures, their compilation included
  checkpoint  saving, as far as the loop had to wait for it
  down        everything else: no process ran, or its steps were lost by a kill
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

KINDS = ("start", "compile", "data_wait", "evaluation", "checkpoint")


class Clock:
  """Adds up seconds by kind; one of a run, carried on by its checkpoints.

  Attributes:
    started: Unix time of the run's first start.
    productive: Seconds of steps that are in the present state.
    lost: Kind -> seconds.
  """

  def __init__(self, began: float):
    """Begins a start.

    Args:
      began: `time.time()` at which this start began; for the first start that
        is the run's.
    """
    self.started = began
    self.productive = 0.0
    self.lost: dict[str, float] = dict.fromkeys(KINDS, 0.0)

  def go_on(self, note: Mapping[str, Any]) -> None:
    """Adds what earlier starts kept in a checkpoint, see `note`."""
    self.started = min(self.started, note["started"])
    self.productive += note["productive"]
    # Checkpoints of version 0.1 know no kinds: their losses count as down.
    for kind, seconds in note.get("lost", {}).items():
      self.lost[kind] += seconds

  def note(self) -> dict[str, Any]:
    """Returns JSON to keep in a checkpoint."""
    return {
      "started": self.started,
      "productive": self.productive,
      "lost": dict(self.lost),
    }

  @contextlib.contextmanager
  def losing(self, kind: str) -> Iterator[None]:
    """Counts the seconds inside as lost."""
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
