"""What a user may choose when films are cut into clips."""

import dataclasses
import fractions
import math
from typing import Any

from genie_jax.core import errors

FRAMES_PER_RECORD = 16
FITS = ("crop", "pad", "stretch")
CODECS = ("h264", "zstd")
ACTIONS = ("auto", "ignore", "require")
# A clip is held in memory until it is encoded: 1 GB at 160 x 90.
_MOST_CLIP_FRAMES = 24_000
_MOST_PIXELS = 4096
_MOST_MEMORY_MB = 1 << 24


@dataclasses.dataclass(frozen=True)
class Options:
  """What determines the clips; the same films and options give equal bytes.

  Attributes:
    fps: Frames per second of the clips.
    width: Columns of a frame.
    height: Rows of a frame.
    fit: How a film of another shape fills the frame: "crop" cuts off what
      stands over, on both sides alike; "pad" adds black bars; "stretch"
      distorts.
    crop_bars: Whether black bars around the picture are found and cut off.
    clip_frames: Frames of a clip.
    min_frames: What remains at the end of a shot is a shorter clip, and is
      dropped if it has fewer frames than this.
    cut_threshold: Score from which a frame begins a new shot.
    keep_static: Whether clips in which hardly anything moves are kept.
    keep_duplicates: Whether clips that another film has as well are kept.
    codec: "h264" or "zstd", see `docs/clip_formats.md`.
    actions: What is done with recorded actions: "auto" stores them if every
      film has some; "ignore" does not read them; "require" takes a film
      without them for a bad one.
    validation_share: Share of the sources in the split "validation".
    test_share: Share of the sources in the split "test".
    unit_hours: Most hours of film in one shard, except where one film is
      longer.
  """

  fps: float = 10.0
  width: int = 160
  height: int = 90
  fit: str = "crop"
  crop_bars: bool = True
  clip_frames: int = 160
  min_frames: int = 16
  cut_threshold: float = 27.0
  keep_static: bool = False
  keep_duplicates: bool = False
  codec: str = "h264"
  actions: str = "auto"
  validation_share: float = 0.1
  test_share: float = 0.1
  unit_hours: float = 1.0

  def check(self) -> None:
    """Raises UserError if a value is out of range."""
    if not 0.1 <= self.fps <= 240:
      raise errors.UserError(f"--fps {self.fps:g} must be from 0.1 to 240.")
    for value in (self.width, self.height):
      if not 16 <= value <= _MOST_PIXELS:
        raise errors.UserError(
          f"--size {self.width}x{self.height}: both must be from 16 to "
          f"{_MOST_PIXELS} pixels, for example 160x90."
        )
    _one_of("--fit", self.fit, FITS)
    _one_of("--codec", self.codec, CODECS)
    _one_of("--actions", self.actions, ACTIONS)
    if not 2 <= self.clip_frames <= _MOST_CLIP_FRAMES:
      raise errors.UserError(
        f"--clip-frames {self.clip_frames} must be from 2 to "
        f"{_MOST_CLIP_FRAMES}."
      )
    if not 2 <= self.min_frames <= self.clip_frames:
      raise errors.UserError(
        f"--min-frames {self.min_frames} must be from 2 to --clip-frames "
        f"{self.clip_frames}."
      )
    if not 0 < self.cut_threshold < math.inf:
      raise errors.UserError(
        f"--cut-threshold {self.cut_threshold:g} must be positive and finite; "
        "above 255 nothing is a cut."
      )
    if not 0 < self.unit_hours <= 100:
      raise errors.UserError(
        f"--unit-hours {self.unit_hours:g} must be above 0 and at most 100."
      )
    shares = (self.validation_share, self.test_share)
    if min(shares) < 0 or not sum(shares) < 1:
      raise errors.UserError(
        f"--validation-share {shares[0]:g} and --test-share {shares[1]:g} "
        "must not be negative, and must leave a share for train."
      )

  @property
  def rate(self) -> fractions.Fraction:
    """Frames per second as an exact number: 29.97 is 30000/1001."""
    rate = fractions.Fraction(self.fps).limit_denominator(1001)
    return rate

  def to_dict(self) -> dict[str, Any]:
    """Returns the options as JSON values."""
    return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one film may take; the clips do not depend on it.

  Attributes:
    memory_mb: MiB that decoding one film may use.
    seconds: Wall time that one film may take; None for 5 minutes and four
      times its duration.
    stalled_seconds: Wall time after which a film is given up if not one more
      frame was decoded.
  """

  memory_mb: int = 2048
  seconds: float | None = None
  stalled_seconds: float = 120.0

  def check(self) -> None:
    """Raises UserError if a value is out of range."""
    if not 64 <= self.memory_mb <= _MOST_MEMORY_MB:
      raise errors.UserError(
        f"--film-memory {self.memory_mb} must be from 64 to {_MOST_MEMORY_MB} "
        "MiB."
      )
    if self.seconds is not None and not self.seconds > 0:
      raise errors.UserError(
        f"--film-seconds {self.seconds:g} must be positive."
      )

  def wall_seconds(self, duration: float | None) -> float:
    """Returns the wall time allowed for a film of `duration` seconds."""
    if self.seconds is not None:
      return self.seconds
    return 300 + 4 * (duration or 0)


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
  if value not in known:
    raise errors.UserError(
      f"{flag} {value!r} must be one of {', '.join(known)}"
      f"{errors.closest(value, known)}."
    )
