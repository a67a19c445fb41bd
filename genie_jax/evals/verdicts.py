"""The one rule by which the report answers its questions."""

import dataclasses
from collections.abc import Sequence

NO, BARELY, PARTLY, YES = "no", "barely", "partly", "yes"
NOT_MEASURED = "not measured"
_ASCENDING = (NO, BARELY, PARTLY, YES)

# Shares of the way from the trivial figure to the ceiling.
PARTLY_FROM, YES_FROM = 0.2, 0.6

RULE = (
  "Each answer follows one rule. The figure is compared with what a trivial "
  "answer reaches (chance, or a baseline that has learned nothing; the upper "
  "end of its interval) and with a ceiling, the best that can be reached. "
  f"“{NO}”: the lower end of the figure's 95 % interval is not above the "
  "trivial figure. Otherwise the share of the way from the trivial figure to "
  f"the ceiling decides: “{BARELY}” below {100 * PARTLY_FROM:.0f} %, "
  f"“{PARTLY}” below {100 * YES_FROM:.0f} %, “{YES}” from there on. A question "
  "with several figures gets the lowest of their answers."
)


@dataclasses.dataclass(frozen=True)
class Evidence:
  """A figure, of which more is better, with its bounds in the same unit.

  Attributes:
    name: What is measured, such as "NMI with the keys".
    value: The figure.
    low: Lower end of its interval; the value itself if there is none.
    trivial: What chance or a trivial baseline reaches, at most.
    ceiling: The best that can be reached.
  """

  name: str
  value: float
  low: float
  trivial: float
  ceiling: float

  @property
  def share(self) -> float:
    """The share of the way from the trivial figure to the ceiling.

    It may be below 0 or above 1. If the ceiling is not above the trivial
    figure, nothing lies between them, and the share is 0 or 1: whether the
    figure is above the trivial one.
    """
    if self.ceiling <= self.trivial:
      return float(self.value > self.trivial)
    return (self.value - self.trivial) / (self.ceiling - self.trivial)


def verdict(found: Evidence) -> str:
  """Returns NO, BARELY, PARTLY or YES, by `RULE`.

  Args:
    found: The figure and its bounds.
  """
  if not found.low > found.trivial:  # Also for a figure that is not a number.
    return NO
  if found.share < PARTLY_FROM:
    return BARELY
  return PARTLY if found.share < YES_FROM else YES


def weakest(found: Sequence[Evidence]) -> tuple[str, Evidence | None]:
  """Returns the lowest verdict and the figure that it rests on.

  Args:
    found: The figures of one question; none of them if it was not measured.
  """
  if not found:
    return NOT_MEASURED, None
  lowest = min(
    found, key=lambda each: (_ASCENDING.index(verdict(each)), each.share)
  )
  return verdict(lowest), lowest
