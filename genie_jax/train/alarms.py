"""Alarms for runs that go on but do not learn what they should.

An alarm is a warning in the log and an entry "alarm/<name>" = 1 in the line of
metrics.jsonl. It rings once when its condition begins to hold, and may ring
again after the condition has ended. It never stops a run.

  loss_spike     the loss is far above its recent median
  few_codes      most codes of the codebook, or most buttons of a LAM, are
                 unused, or many fewer are used than before
  one_code       the codes carry almost no information
  always_clipped every gradient is clipped: `optimizer.clip_norm`, and not the
                 loss, decides how large updates are

Conditions are about whole lines of the log, and are the same after a resume,
because the lines before it are read again.
"""

import collections
import dataclasses
import json
import statistics
from collections.abc import Iterable, Mapping

# Lines that a run needs before codes are judged: they change much at first.
_SETTLED = 10
# Lines in which a condition must hold without a break.
_LASTING = 10
_RECENT = 20  # Lines from which the median of the loss is taken.
# A loss is a spike if it is above the median by this many median absolute
# deviations, and by this share of the median.
_DEVIATIONS, _SHARE = 10.0, 0.25
_FEW_USED, _LOST_USE = 0.25, 0.5
_ONE_CODE = 1.2  # A perplexity of 1 is one code for everything.


@dataclasses.dataclass
class _Condition:
  """How long a condition has held.

  Attributes:
    lasting: Lines in a row in which it must hold to ring.
    held: Lines in a row in which it has held.
  """

  lasting: int
  held: int = 0

  def rings(self, holds: bool) -> bool:
    self.held = self.held + 1 if holds else 0
    return self.held == self.lasting


class Alarms:
  """Watches the lines of a run's log, in order."""

  def __init__(self, earlier: Iterable[str] = ()):
    """Starts with the lines of earlier starts of the run.

    Args:
      earlier: Lines of metrics.jsonl.
    """
    self._losses: collections.deque[float] = collections.deque(maxlen=_RECENT)
    self._lines = 0
    self._most_used = 0.0
    self._conditions = {
      "loss_spike": _Condition(1),
      "few_codes": _Condition(_LASTING),
      "one_code": _Condition(_LASTING),
      "always_clipped": _Condition(2 * _LASTING),
    }
    for line in earlier:
      self.watch(json.loads(line))

  def watch(self, line: Mapping[str, float | None]) -> dict[str, str]:
    """Returns the alarms that ring at a line: name -> message.

    Args:
      line: The training metrics of one line; lines of held-out metrics are
        ignored.
    """
    if "loss_count" not in line:
      return {}
    self._lines += 1
    found = {
      "loss_spike": self._loss(line),
      **self._codes(line),
      "always_clipped": self._clipped(line),
    }
    return {
      name: message
      for name, message in found.items()
      if self._conditions[name].rings(bool(message))
    }

  def _loss(self, line) -> str:
    if not line["loss_count"]:
      return ""
    loss = line["loss_sum"] / line["loss_count"]
    message = ""
    if len(self._losses) >= _RECENT // 2:
      usual = statistics.median(self._losses)
      spread = statistics.median(abs(x - usual) for x in self._losses)
      limit = usual + max(_DEVIATIONS * spread, _SHARE * abs(usual))
      if loss > limit:
        message = (
          f"the loss is {loss:.5g}, its recent median {usual:.5g}; if it does "
          "not come back, lower optimizer.peak_lr or set clip_outliers, and "
          "resume from an earlier checkpoint"
        )
    self._losses.append(loss)
    return message

  def _codes(self, line) -> dict[str, str]:
    usage, perplexity = line.get("code_usage"), line.get("code_perplexity")
    settled = self._lines > _SETTLED
    few = one = ""
    if usage is not None:
      if settled and usage < max(_FEW_USED, _LOST_USE * self._most_used):
        few = (
          f"{100 * usage:.0f} % of the codes are in use, "
          f"{100 * self._most_used:.0f} % at most before; use fewer codes, a "
          "lower learning rate, or look at the fields of config.codebook"
        )
      self._most_used = max(self._most_used, usage)
    if perplexity is not None and settled and perplexity < _ONE_CODE:
      one = (
        f"the perplexity of the codes is {perplexity:.3g}: one code is used "
        "for almost everything; the codebook has collapsed, start again with "
        "a lower learning rate or other data"
      )
    return {"few_codes": few, "one_code": one}

  def _clipped(self, line) -> str:
    clipped = line.get("clipped_steps")
    if not clipped or clipped < line["loss_count"]:
      return ""
    return (
      "every gradient of the last lines was clipped; raise "
      "optimizer.clip_norm above the usual grad_norm, or lower the learning "
      "rate if the norms grow"
    )
