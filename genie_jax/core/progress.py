"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable
from typing import Any

import tqdm

# Off a terminal a bar would fill a log with carriage returns.
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
  """Returns a tqdm bar with rate and time left.

  Args:
    iterable: What to iterate over; leave out to call `.update(n)` by hand.
    total: How many units there are.
    initial: How many were done before, when work is taken up again.
    unit: What is counted, for example "frames".
    description: Short text before the bar.
    disable: Show nothing, as on all processes of a run but one.

  Returns:
    The bar, also a context manager. Off a terminal it prints a line at most
    every ten seconds.
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
  """Writes each redraw of a bar as a line of its own."""

  def write(self, text: str) -> None:
    text = text.strip("\r\n ")
    if text:
      print(text, file=sys.stderr, flush=True)

  def flush(self) -> None:
    sys.stderr.flush()
