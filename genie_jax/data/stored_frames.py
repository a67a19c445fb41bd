"""The frames of a clip record, whichever way they are stored.

A manifest's `frames_codec` says how: None for the array "frames" as it is, or
the name of a codec, whose array takes the place of "frames" in every record.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from genie_jax.core import errors, schema
from genie_jax.data import video_codec

CODECS = (None, video_codec.NAME)
FRAMES = "frames"
_REMEDY = "write the folder again"


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


def store_clip(
  frames: np.ndarray,
  frames_per_record: int,
  codec: str | None,
  options: video_codec.H264Options | None = None,
) -> list[dict[str, np.ndarray]]:
  """Returns the arrays of the records of a clip; see `store`."""
  assert codec in CODECS, codec
  if codec is None:
    return [
      {FRAMES: frames[start : start + frames_per_record]}
      for start in range(0, len(frames), frames_per_record)
    ]
  return video_codec.encode_clip(frames, frames_per_record, options)


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
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Returns frames of one record.

  Args:
    arrays: The record's arrays.
    meta: The record's metadata.
    codec: The manifest's `frames_codec`.
    frame_shape: The manifest's (H, W, C).
    begin: The first frame to return.
    end: The frame after the last one; None for the record's end.
    where: Name of the record in error messages.
    out: uint8 [n, H, W, C], where to write them; may be None.

  Returns:
    uint8 [n, H, W, C]: `out`; without it a view if the frames are stored as
    they are.

  Raises:
    UserError: The record is damaged, has fewer frames or other ones, or stores
      them in another way.
  """
  if (codec or FRAMES) not in arrays or (codec and "num_frames" not in meta):
    raise errors.UserError(
      f"{where} has {', '.join(arrays)}, but no frames as its manifest's "
      f"frames_codec {codec} needs them; write the folder again."
    )
  if not codec:
    frames = part(arrays, FRAMES, begin, end, frame_shape, where)
    if out is None:
      return frames
    out[:] = frames
    return out
  count: int = meta["num_frames"]
  schema.check(count, schema.NATURAL, f"{where}: num_frames", _REMEDY)
  last: int = count if end is None else end
  if last > count:
    raise _too_short(where, count, last)
  return video_codec.decode(
    arrays[codec], (count, *frame_shape), begin, last, where, out
  )


def part(
  arrays: Mapping[str, np.ndarray],
  name: str,
  begin: int,
  end: int | None,
  shape: tuple[int, ...],
  where: str,
) -> np.ndarray:
  """Returns consecutive rows of an array of a record.

  numpy would repeat a single row or pixel to fill more of them.

  Args:
    arrays: The record's arrays.
    name: The name of the array.
    begin: The first row.
    end: The row after the last one; None for all.
    shape: The shape of each row.
    where: Name of the record in error messages.

  Returns:
    [end - begin, *shape].

  Raises:
    UserError: The record has no such array, fewer rows or others.
  """
  array = arrays.get(name)
  found = None if array is None else array.shape
  if array is None or not found or found[1:] != tuple(shape):
    raise errors.UserError(
      f"{where} has {name} of shape {found}, but each row must have the shape "
      f"{tuple(shape)}; {_REMEDY}."
    )
  if end is not None and end > len(array):
    raise _too_short(where, len(array), end, name)
  return array[begin:end]


def _too_short(
  where: str, found: int, needed: int, name: str = FRAMES
) -> errors.UserError:
  return errors.UserError(
    f"{where} has {found} {name}, fewer than its manifest says (it needs "
    f"{needed}); {_REMEDY}."
  )
