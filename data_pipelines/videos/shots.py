"""Where a film cuts from one shot to another.

PySceneDetect's ContentDetector compares hue, saturation and brightness of each
frame with the frame before. It sees the frames of the clips, at a quarter of
the pixels: the score is an average over the picture, so that little changes and
most of the time is saved.
"""

import cv2
import numpy as np
import scenedetect
from scenedetect import detectors

# Pixels across that the detector needs.
_COLUMNS = 80


class Shots:
  """Finds the first frame of each shot, frame by frame."""

  def __init__(self, threshold: float, fps: float):
    """Begins a film.

    Args:
      threshold: Score from which a frame begins a shot.
      fps: Of the frames.
    """
    # Without the detector's filter of short shots: it would join a flash of one
    # frame to its neighbours, and a clip must not contain a cut.
    self._detector = detectors.ContentDetector(threshold, min_scene_len=0)
    self._fps = fps
    self._number = 0

  def begins(self, frame: np.ndarray) -> float | None:
    """Looks at the next frame.

    Args:
      frame: uint8 [H, W, 3], RGB.

    Returns:
      The score if the frame begins a new shot, None otherwise.
    """
    height, width, _ = frame.shape
    if width > _COLUMNS:
      size = (_COLUMNS, max(1, round(height * _COLUMNS / width)))
      frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    time = scenedetect.FrameTimecode(self._number, self._fps)
    self._number += 1
    found = self._detector.process_frame(
      time, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)
    )
    # The detector keeps the score of the last frame, and has no accessor.
    return float(self._detector._frame_score or 0.0) if found else None
