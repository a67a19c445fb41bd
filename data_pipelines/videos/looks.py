"""What a clip looks like: whether it is black or static, and its hashes.

Shapes:
  T    frames of a clip
  H W  rows, columns of a frame
  K    frames of a clip that are hashed
"""

import dataclasses

import cv2
import imagehash
import numpy as np
from PIL import Image

# A frame is black if this share of its pixels is at most this bright.
_BLACK, _BLACK_SHARE = 24, 0.98
# A clip is black or static if this share of its frames, or pairs, is.
_CLIP_SHARE = 0.95
# A pixel moves if its brightness changes by more than this; a pair of frames
# moves if this share of its pixels does: 15 of 160 x 90, a small sprite. Noise
# of encoders stays below the first.
_STEP, _MOVING_SHARE = 12, 0.001
# From one hashed frame to the next.
HASH_STEP = 8
# Columns and rows of the pictures that dHash compares, for 64 bits.
THUMB = (9, 8)
_ANALYSED_COLUMNS = 160


@dataclasses.dataclass(frozen=True)
class Looks:
  """Figures of one clip.

  Attributes:
    black: Share of its frames that are black.
    moving: Share of its pairs of frames in which something moves.
    brightness: Mean brightness, 0 to 255.
    hashes: K hashes of 16 hexadecimal digits, ImageHash's dHash.
    thumbs: uint8 [K, 8, 9], the pictures that were hashed.
  """

  black: float
  moving: float
  brightness: float
  hashes: list[str]
  thumbs: np.ndarray

  @property
  def is_black(self) -> bool:
    """Whether the clip is to be dropped as black."""
    return self.black >= _CLIP_SHARE

  @property
  def is_static(self) -> bool:
    """Whether the clip is to be dropped as static."""
    return 1 - self.moving > _CLIP_SHARE


class Watcher:
  """Looks at the frames of a clip one by one."""

  def __init__(self):
    self._before: np.ndarray | None = None
    self._frames = self._black = self._moving = 0
    self._brightness = 0.0
    self._thumbs: list[np.ndarray] = []
    self._hashes: list[str] = []

  def see(self, frame: np.ndarray, repeated: bool) -> None:
    """Takes the next frame, uint8 [H, W, 3]; `repeated` if it is the last."""
    if repeated and self._before is not None:
      grey = self._before
    else:
      grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
      height, width = grey.shape
      if width > _ANALYSED_COLUMNS:
        size = (_ANALYSED_COLUMNS, max(1, height * _ANALYSED_COLUMNS // width))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    mean = float(cv2.mean(grey)[0])
    self._brightness += mean
    # A bright frame is told by its mean alone.
    if mean <= _BLACK + (1 - _BLACK_SHARE) * 255:
      self._black += int(np.mean(grey <= _BLACK) >= _BLACK_SHARE)
    if self._before is not None and grey is not self._before:
      _, moved = cv2.threshold(
        cv2.absdiff(grey, self._before), _STEP, 1, cv2.THRESH_BINARY
      )
      self._moving += cv2.countNonZero(moved) >= _MOVING_SHARE * grey.size
    if self._frames % HASH_STEP == 0:
      thumb = Image.fromarray(grey).resize(THUMB, Image.Resampling.LANCZOS)
      self._thumbs.append(np.asarray(thumb))
      # Of the size that it is scaled to already, so that this is its dHash.
      self._hashes.append(str(imagehash.dhash(thumb)))
    self._before = grey
    self._frames += 1

  def looks(self) -> Looks:
    """Returns the figures of all frames that were seen."""
    return Looks(
      black=self._black / self._frames,
      moving=self._moving / max(1, self._frames - 1),
      brightness=self._brightness / self._frames,
      hashes=self._hashes,
      thumbs=np.stack(self._thumbs),
    )
