"""The frames of a clip record, whichever way they are stored.

A manifest's `frames_codec` says how: None for the array "frames" as it is, or
the name of a codec, whose array takes the place of "frames" in every record.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from genie_jax.core import errors
from genie_jax.data import video_codec

CODECS = (None, video_codec.NAME)
FRAMES = "frames"


def store(
  frames: np.ndarray,
  codec: str | None,
  options: video_codec.H264Options | None = None,
) -> dict[str, np.ndarray]:
  """Returns the arrays of a record that holds `frames`.

  Args:
    frames: uint8 [n, H, W, C]. The record's metadata needs "num_frames", n.
    codec: One of `CODECS`.
    options: Of the codec, its defaults if None.
  """
  assert codec in CODECS, codec
  if codec is None:
    return {FRAMES: frames}
  return video_codec.encode(frames, options)


def names(arrays: Iterable[str], codec: str | None) -> list[str]:
  """Returns the names of a record's arrays, as a reader asks for them."""
  return [FRAMES if codec and name == codec else name for name in arrays]


def load(
  arrays: Mapping[str, np.ndarray],
  meta: Mapping[str, Any],
  codec: str | None,
  frame_shape: tuple[int, ...],
  begin: int = 0,
  end: int | None = None,
  where: str = "record",
) -> np.ndarray:
  """Returns frames of one record.

  Args:
    arrays: The record's arrays.
    meta: The record's metadata.
    codec: The manifest's `frames_codec`.
    frame_shape: The manifest's (H, W, C).
    begin: The first frame to return.
    end: The frame after the last one, which may be after the record's end; None
      for the record's end.
    where: Name of the record in error messages.

  Returns:
    uint8 [n, H, W, C], a view if the frames are stored as they are.

  Raises:
    UserError: The record is damaged, or stores its frames in another way.
  """
  if (codec or FRAMES) not in arrays or (codec and "num_frames" not in meta):
    raise errors.UserError(
      f"{where} has {', '.join(arrays)}, but no frames as its manifest's "
      f"frames_codec {codec} needs them; write the folder again."
    )
  if codec is None:
    return arrays[FRAMES][begin:end]
  count: int = meta["num_frames"]
  end = count if end is None else min(end, count)
  return video_codec.decode(
    arrays[codec], (count, *frame_shape), min(begin, end), end, where
  )
