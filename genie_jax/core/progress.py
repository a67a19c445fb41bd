"""Progress of long work: a bar on a terminal, lines of text elsewhere."""

import sys
from collections.abc import Iterable
from typing import Any

import tqdm

# Interval of lines in a log, where a bar would leave many carriage returns.
_LINE_SECONDS = 10.0


def track(
  iterable: Iterable[Any] | None = None,
  *,
  total: int | None = None,
  initial: int = 0,
  unit: str = "it",
  description: str = "",
  disable: bool = False,
) -> tqdm.tqdm:
  """Returns a tqdm bar with rate and remaining time.

  Args:
    iterable: What to iterate over; None if the caller calls `.update(n)`.
    total: Number of units.
    initial: Number of units that an earlier run has completed.
    unit: What is counted, for example "frames".
    description: Short text before the bar.
    disable: Whether to show nothing, as on all processes of a run except one.

  Returns:
    The bar, also a context manager. If stderr is not a terminal, it prints a
    line at most every ten seconds.
  """
  terminal = sys.stderr.isatty()
  return tqdm.tqdm(
    iterable,
    total=total,
    initial=initial,
    unit=f" {unit}",
    unit_scale=False,
    desc=description,
    disable=disable,
    file=sys.stderr if terminal else _Lines(),
    mininterval=0.2 if terminal else _LINE_SECONDS,
    maxinterval=_LINE_SECONDS,
    ascii=None if terminal else True,
    ncols=None if terminal else 78,
    dynamic_ncols=terminal,
    smoothing=0.1,
  )


class _Lines:
  """A stream that writes each redraw of a bar as a separate line."""

  def write(self, text: str) -> None:
    text = text.strip("\r\n ")
    if text:
      print(text, file=sys.stderr, flush=True)

  def flush(self) -> None:
    sys.stderr.flush()
