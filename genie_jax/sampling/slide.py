"""What happens when a rollout reaches the end of its window."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors

MODES = ("exact", "rolling", "re-encode")


@dataclasses.dataclass(frozen=True)
class Slide:
  """How a full window makes room.

  Attributes:
    mode: "exact" recomputes the frames that it keeps, so that nothing is left
      of those that it drops; "rolling" keeps their keys and values, which
      still carry what they saw of dropped frames; "re-encode" sends the kept
      frames through the decoder and the encoder and starts from them as from
      a fresh prompt.
    drop: Frames dropped at once; not with "rolling", which drops one at a
      time. More share the cost of one recomputation among more frames, and
      leave fewer to remember just after it.
  """

  mode: str = "exact"
  drop: int = 1

  def check(self, window: int) -> "Slide":
    """Returns itself if it fits a window of so many frames.

    Raises:
      UserError: The mode is unknown, or the number of frames out of range.
    """
    if self.mode not in MODES:
      raise errors.UserError(
        f"slide.mode is {self.mode!r}{errors.closest(str(self.mode), MODES)};"
        f" use one of {', '.join(MODES)}."
      )
    if self.mode == "rolling" and self.drop != 1:
      raise errors.UserError(
        f"slide.drop is {self.drop}; a rolling window drops one frame at a "
        "time, so leave it at 1."
      )
    if not isinstance(self.drop, int) or not 1 <= self.drop < window:
      raise errors.UserError(
        f"slide.drop is {self.drop}; a window of {window} frames can drop 1 "
        f"to {window - 1} at once."
      )
    return self


def make_slide(fields: Mapping[str, Any], window: int) -> Slide:
  """Returns the `Slide` of a config's `slide` group, checked.

  Raises:
    UserError: An unknown field, or a value out of range.
  """
  errors.check_fields("slide", fields, Slide.__dataclass_fields__)
  return Slide(**dict(fields)).check(window)
