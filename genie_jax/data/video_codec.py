"""Frames as H.264: one record is one group of pictures that stands alone.

A record's bytes are an H.264 byte stream (annex B) that any decoder reads: an
access unit delimiter, the parameter sets and an IDR picture, then only
P pictures, each after a delimiter. There are no B pictures, so the first k
frames need the first k access units and nothing else.

Colours are stored as YCgCo (matrix 8 of ITU-T H.273, full range, stated in the
stream) without subsampling, because its inverse is five integer additions, and
it is a little closer to RGB than BT.601 for the same bytes. With x >> 2 for
floor(x / 4):

  Y = (R + 2 G + B + 2) >> 2           R = Y - (Cg - 128) + (Co - 128)
  Cg = ((2 G - R - B + 2) >> 2) + 128  G = Y + (Cg - 128)
  Co = ((R - B + 1) >> 1) + 128        B = Y - (Cg - 128) - (Co - 128)

all clipped to 0 to 255. Decoders of H.264 agree on every bit and the inverse
is exact, so a record gives the same frames everywhere. Equal frames and options
give equal bytes with the same build of libx264, see `made_by`.

docs/clip_formats.md compares it with other formats.

Shapes:
  n  frames of a record     H W  rows and columns of a frame
"""

import dataclasses
import fractions
import threading
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
from av import error as av_error

from genie_jax.core import errors

NAME = "h264"  # `Manifest.frames_codec`, and the name of a record's array.
VERSION = 1

PRESETS = (
  "ultrafast",
  "superfast",
  "veryfast",
  "faster",
  "fast",
  "medium",
  "slow",
  "slower",
  "veryslow",
)
_LARGEST_CRF = 51
# Begins the delimiter of each access unit; cannot occur inside one.
_DELIMITER = b"\0\0\0\1\x09"
_START = b"\0\0\1"
_SEI = b"\0\0\1\x06"


@dataclasses.dataclass(frozen=True)
class H264Options:
  """How frames are encoded.

  Attributes:
    crf: x264's constant rate factor, 0 to 51; smaller is better and larger.
    preset: x264's preset; slower ones give smaller files. The rate of decoding
      does not depend on it.
  """

  crf: float = 22
  preset: str = "veryfast"

  def check(self) -> None:
    """Raises UserError if a field is out of range."""
    if not 0 <= self.crf <= _LARGEST_CRF:
      raise errors.UserError(
        f"H.264 needs a crf of 0 to {_LARGEST_CRF}, not {self.crf}."
      )
    if self.preset not in PRESETS:
      raise errors.UserError(
        f"H.264 has no preset {self.preset!r}"
        f"{errors.closest(self.preset, PRESETS)}; choose one of "
        f"{', '.join(PRESETS)}."
      )


def made_by(options: H264Options) -> dict[str, Any]:
  """Returns what determines a record's bytes, for a manifest's `made_by`."""
  return {
    "codec": NAME,
    "version": VERSION,
    **dataclasses.asdict(options),
    "pyav": av.__version__,
  }


def encode(
  frames: np.ndarray, options: H264Options | None = None
) -> dict[str, np.ndarray]:
  """Returns the arrays of a record that holds `frames`.

  Args:
    frames: uint8 [n, H, W, 3], RGB, n at least 1.
    options: The defaults if None.

  Returns:
    {"h264": uint8 [bytes]}; the record's metadata needs "num_frames" too.

  Raises:
    UserError: An option is out of range.
    ValueError: The frames are not RGB frames.
  """
  options = options or H264Options()
  options.check()
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
    raise ValueError(
      f"Frames are {frames.dtype} {list(frames.shape)}, but H.264 records hold "
      "uint8 [n, H, W, 3]; store other frames without a codec."
    )
  if not frames.size:
    raise ValueError(f"Frames have shape {list(frames.shape)}: there are none.")
  planes = _to_planes(frames)
  context = _encoder(options, frames.shape[1], frames.shape[2])
  units: list[bytes] = []
  for number in range(len(frames)):
    picture = _picture([plane[number] for plane in planes])
    picture.pts = number
    units += [bytes(packet) for packet in context.encode(picture)]
  units += [bytes(packet) for packet in context.encode(None)]
  units[0] = _without_sei(units[0])
  stream = b"".join(units)
  assert len(_split(stream)) == len(frames), (len(units), len(frames))
  return {NAME: np.frombuffer(stream, np.uint8)}


def decode(
  packets: np.ndarray,
  shape: Sequence[int],
  begin: int = 0,
  end: int | None = None,
  where: str = "record",
) -> np.ndarray:
  """Returns frames of a record.

  Only the frames before `end` are decoded, and only those from `begin` on are
  converted to RGB. May be called in any thread.

  Args:
    packets: uint8 [bytes], array "h264" of the record.
    shape: (n, H, W, 3).
    begin: The first frame to return.
    end: The frame after the last one; None for n.
    where: Name of the record in error messages.

  Returns:
    uint8 [end - begin, H, W, 3], RGB.

  Raises:
    UserError: The bytes are not n frames of H x W pixels.
  """
  count, height, width, _ = shape
  end = count if end is None else end
  assert 0 <= begin <= end <= count, (begin, end, count)
  units = _split(packets.tobytes())
  if len(units) != count:
    raise errors.UserError(
      f"{where} has {len(units)} frames of H.264, but it states {count}; write "
      "the folder again."
    )
  planes = np.empty((3, end - begin, height, width), np.uint8)
  for number, picture in enumerate(_pictures(units[:end], where)):
    if number < begin:
      continue
    if (
      picture.height,
      picture.width,
      len(picture.planes),
    ) != (height, width, 3) or "444" not in picture.format.name:
      raise errors.UserError(
        f"{where} has frames of {picture.height} x {picture.width} "
        f"({picture.format.name}), but {height} x {width} in YCgCo 4:4:4 are "
        "needed; write the folder again."
      )
    for plane, into in zip(picture.planes, planes, strict=True):
      into[number - begin] = _pixels(plane, height, width)
  return _to_rgb(planes)


class _Decoder(threading.local):
  """The decoder of one thread; making one takes longer than a record."""

  def __init__(self):
    self.context: av.VideoCodecContext | None = None

  def get(self) -> av.VideoCodecContext:
    if self.context is None:
      self.context = av.CodecContext.create("h264", "r")
      self.context.thread_count = 1
      # Damage is an error, and is not painted over.
      self.context.options = {"err_detect": "explode"}
    return self.context


_decoder = _Decoder()


def _pictures(units: Sequence[bytes], where: str) -> list[av.VideoFrame]:
  """Decodes the first access units of a record; one picture for each."""
  context, found = _decoder.get(), []
  try:
    for unit in units:
      found += context.decode(av.Packet(unit))
    if len(found) < len(units):
      found += context.decode(None)
      context.flush_buffers()
  except av_error.FFmpegError as error:
    _decoder.context = None  # Its state is that of the damaged record.
    raise errors.UserError(
      f"{where} is damaged: its H.264 cannot be decoded ({error.strerror}); "
      "copy or write the folder again."
    ) from error
  if len(found) != len(units):
    _decoder.context = None
    raise errors.UserError(
      f"{where} is damaged: {len(found)} of {len(units)} frames of H.264 can "
      "be decoded; copy or write the folder again."
    )
  return found


def _encoder(
  options: H264Options, height: int, width: int
) -> av.VideoCodecContext:
  """Returns a new encoder: a used one would carry over its rate control."""
  context = av.CodecContext.create("libx264", "w")
  context.height, context.width = height, width
  context.pix_fmt = "yuv444p"
  # Required, but without effect on the bytes of the pictures.
  context.time_base = fractions.Fraction(1, 10)
  context.framerate = fractions.Fraction(10)
  context.thread_count = 1
  context.options = {
    "preset": options.preset,
    # "psnr" spends no bits on what only looks like detail.
    "tune": "psnr,fastdecode",
    "crf": str(options.crf),
    # Without macroblock trees: with them, equal frames (of 16 x 32 pixels, one
    # time in a hundred) gave other bytes after other frames were encoded.
    "x264-params": "keyint=infinite:scenecut=0:bframes=0:mbtree=0:"
    "rc-lookahead=0:threads=1:aud=1:colormatrix=YCgCo:fullrange=on",
  }
  return context


def _picture(planes: Sequence[np.ndarray]) -> av.VideoFrame:
  height, width = planes[0].shape
  picture = av.VideoFrame(width, height, "yuv444p")
  for plane, values in zip(picture.planes, planes, strict=True):
    _pixels(plane, height, width)[...] = values
  return picture


def _pixels(plane: Any, height: int, width: int) -> np.ndarray:
  """Returns a view of a plane of PyAV, which pads its rows."""
  rows = np.frombuffer(plane, np.uint8).reshape(height, plane.line_size)
  return rows[:, :width]


def _split(stream: bytes) -> list[bytes]:
  """Returns the access units of a stream."""
  before, *units = stream.split(_DELIMITER)
  return [] if before else [_DELIMITER + unit for unit in units]


def _without_sei(unit: bytes) -> bytes:
  """Removes x264's note on its options: 600 bytes that no decoder needs."""
  begin = unit.find(_SEI)
  if begin < 0:
    return unit
  end = unit.index(_START, begin + len(_SEI))
  return unit[:begin] + unit[end:]


def _to_planes(frames: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns Y, Cg and Co, each uint8 [n, H, W]."""
  red, green, blue = (frames[..., i].astype(np.int16) for i in range(3))
  ends = red + blue
  planes = (
    (2 * green + ends + 2) >> 2,
    ((2 * green - ends + 2) >> 2) + 128,
    ((red - blue + 1) >> 1) + 128,
  )
  return tuple(np.clip(plane, 0, 255).astype(np.uint8) for plane in planes)


def _to_rgb(planes: np.ndarray) -> np.ndarray:
  """Returns uint8 [n, H, W, 3] of Y, Cg and Co, uint8 [3, n, H, W]."""
  luma = planes[0].astype(np.int16)
  green = planes[1].astype(np.int16)
  green -= 128
  orange = planes[2].astype(np.int16)
  orange -= 128
  rest = luma - green
  out = np.empty((*luma.shape, 3), np.uint8)
  channels = (rest + orange, luma + green, rest - orange)
  for channel, values in enumerate(channels):
    out[..., channel] = np.clip(values, 0, 255, out=values)
  return out
