"""Settings for what happens when a rollout reaches the end of its window."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors

MODES = ("exact", "rolling", "re-encode")


@dataclasses.dataclass(frozen=True)
class Slide:
  """How a full window makes room.

  Attributes:
    mode: "exact" recomputes the cache from the kept frames, so that it does
      not depend on dropped frames; "rolling" keeps the keys and values of kept
      frames, which still depend on dropped frames; "re-encode" decodes and
      encodes the kept frames again, and uses them as a new prompt.
    drop: Number of frames dropped at once; must be 1 with "rolling". A larger
      number recomputes less often, and leaves fewer frames in the window just
      after a slide.
  """

  mode: str = "exact"
  drop: int = 1

  def check(self, window: int) -> "Slide":
    """Checks that it fits a window of `window` frames, and returns itself.

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
  """Checks a config's `slide` group and returns its `Slide`.

  Raises:
    UserError: A field is unknown, or a value is out of range.
  """
  errors.check_fields("slide", fields, Slide.__dataclass_fields__)
  return Slide(**dict(fields)).check(window)
