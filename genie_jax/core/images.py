"""Reads pictures as prompts; writes PNGs, frame strips, GIFs and MP4s."""

import contextlib
import io
import pathlib
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from genie_jax.core import errors, files

# Admits photos of 50 megapixels; larger files are likely decompression bombs.
MAX_PIXELS = 64_000_000
# Without formats whose decoder runs a program (EPS) and rare ones.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# JPEGs are decoded at about this multiple of the frame's resolution.
_DRAFT_FACTOR = 4
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_LABEL_PIXELS = 14
_KEY_PIXELS = 20
_GIF_UNITS_PER_SECOND = 100  # The unit of GIF delays is 10 ms.


def load_prompt(path: files.PathLike, height: int, width: int) -> np.ndarray:
  """Reads a picture file as one frame; see `read_prompt`.

  Raises:
    UserError: The file is missing, is not a picture, or is too large.
  """
  path = pathlib.Path(path)
  try:
    content = path.open("rb")
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path} does not exist; give the path of a picture to start from."
    ) from error
  except OSError as error:
    raise errors.UserError(
      f"{path} is not a picture that can be read ({error})."
    ) from error
  with content:
    return read_prompt(content, height, width, str(path))


def read_prompt(
  content: BinaryIO, height: int, width: int, name: str
) -> np.ndarray:
  """Reads a picture as one frame.

  Accepts PNG, JPEG, WebP, GIF, BMP, TIFF and PPM of at most 64 million pixels.
  Of an animation, the first frame is read. The picture is rotated according to
  its EXIF orientation, cropped to the largest centred rectangle of the frame's
  aspect ratio, resized by area averaging and converted to RGB; transparent
  pixels become white. 16-bit grey values are rescaled from [0, 65535] to
  [0, 255] if any exceeds 255. Float values are multiplied by 255 if none
  exceeds 1. Values out of range are then clipped, and NaN becomes black.
  Colour profiles are ignored.

  Args:
    content: An open file.
    height: Rows of the frame.
    width: Columns of the frame.
    name: Name of the picture in error messages.

  Returns:
    uint8 [height, width, 3].

  Raises:
    UserError: The file is not a picture, or has more than 64 million pixels.
  """
  with _one_line(name), Image.open(content, formats=_FORMATS) as picture:
    return _fitted(picture, height, width, name)


def fit(picture: Image.Image, height: int, width: int) -> np.ndarray:
  """Returns a PIL image as one frame; see `read_prompt`.

  Args:
    picture: Any image, which stays as it is.
    height: Rows of the frame.
    width: Columns of the frame.

  Returns:
    uint8 [height, width, 3].

  Raises:
    UserError: It has no pixels or more than 64 million, or its file is damaged.
  """
  with _one_line("The picture"):
    _check_size(picture, "The picture")
    # The JPEG decoder would shrink the caller's picture too.
    return _fitted(picture.copy(), height, width, "The picture")


def _check_size(picture: Image.Image, name: str) -> None:
  columns, rows = picture.size
  if not 0 < rows * columns <= MAX_PIXELS:
    raise errors.UserError(
      f"{name} has {columns} x {rows} pixels; the allowed number is 1 to "
      f"{MAX_PIXELS}, so make it smaller."
    )


def _fitted(
  picture: Image.Image, height: int, width: int, name: str
) -> np.ndarray:
  """Returns uint8 [height, width, 3] of a picture, which may be shrunk."""
  _check_size(picture, name)
  orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
  rotation = _UPRIGHT.get(orientation)
  swaps_sides = rotation in (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
  )
  size = (height, width) if swaps_sides else (width, height)
  # The JPEG decoder can downsample large photos while it reads them.
  picture.draft(
    picture.mode, (size[0] * _DRAFT_FACTOR, size[1] * _DRAFT_FACTOR)
  )
  picture.load()
  frame = _crop_and_resize(_with_8_bit_channels(picture), size)
  if rotation is not None:
    frame = frame.transpose(rotation)
  return np.asarray(frame, np.uint8)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
  """Turns what Pillow raises for bad files into one line, and its warnings off.

  Raises:
    UserError: The file is damaged, too large, or not a picture.
  """
  try:
    with warnings.catch_warnings():
      # Decoders warn about damage that they can skip, and about large pictures,
      # which raise a UserError below.
      warnings.simplefilter("ignore")
      yield
  except errors.UserError:
    raise
  except Image.DecompressionBombError as error:  # Raised by Image.open.
    raise errors.UserError(
      f"{name} has far more than the allowed {MAX_PIXELS} pixels, so make it "
      "smaller."
    ) from error
  except (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    struct.error,
  ) as error:
    # The exception type for a damaged file depends on Pillow's decoder.
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "unknown format"
    raise errors.UserError(
      f"{name} is not a picture that can be read ({reason}); give a PNG, "
      "JPEG, WebP or GIF file."
    ) from error


def _with_8_bit_channels(picture: Image.Image) -> Image.Image:
  """Converts a picture to a mode with channels of 8 bits that can be averaged.

  A palette index, for example, cannot be averaged.
  """
  if picture.mode.startswith("I;16") or picture.mode == "I":
    values = np.asarray(picture)
    top = 65535 if values.max() > 255 else 255
    values = values.astype(np.float32) * (255 / top)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
  if picture.mode == "F":
    values = np.nan_to_num(np.array(picture, np.float32))
    if values.max() <= 1:
      values *= 255
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
  if picture.has_transparency_data:
    return picture.convert("RGBA")
  if picture.mode in ("L", "RGB", "CMYK"):
    return picture
  return picture.convert("RGB")


def _crop_and_resize(
  picture: Image.Image, size: tuple[int, int]
) -> Image.Image:
  """Returns the largest centred crop of this aspect ratio, resized, as RGB.

  Args:
    picture: The picture.
    size: Width and height of the result.
  """
  (columns, rows), (width, height) = picture.size, size
  scale = min(columns / width, rows / height)
  crop_width, crop_height = width * scale, height * scale
  left, top = (columns - crop_width) / 2, (rows - crop_height) / 2
  box = (left, top, left + crop_width, top + crop_height)
  # Area averaging leaves a picture that already has this size unchanged.
  cropped = picture.resize(size, Image.Resampling.BOX, box=box)
  if cropped.mode == "RGBA":
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    cropped = Image.alpha_composite(white, cropped)
  return cropped.convert("RGB")


def to_png(picture: np.ndarray) -> bytes:
  """Encodes uint8 [H, W, 3] as a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()


def save_png(path: files.PathLike, picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] as a PNG file, atomically."""
  files.write_atomic(path, to_png(picture))


def from_png(content: bytes) -> np.ndarray:
  """Decodes a PNG file from `to_png` to uint8 [H, W, 3]."""
  with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
    return np.asarray(picture, np.uint8)


def strip(
  rows: Mapping[str, np.ndarray],
  *,
  scale: int = 2,
  edges: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
  """Draws labelled rows of frames, one row below the other.

  Args:
    rows: Label -> uint8 frames [T, H, W, 3]; rows may differ in T.
    scale: Integer factor by which each pixel is enlarged.
    edges: Label -> colour of each frame's border, for example "lime" for given
      and "red" for generated frames; rows without an entry get a grey border.

  Returns:
    uint8 [height, width, 3].
  """
  edges = edges or {}
  count = max(len(frames) for frames in rows.values())
  height, width = next(iter(rows.values())).shape[1:3]
  cell_w, cell_h = width * scale + 4, height * scale + 4
  canvas = Image.new(
    "RGB", (count * cell_w, len(rows) * (cell_h + _LABEL_PIXELS)), "white"
  )
  draw = ImageDraw.Draw(canvas)
  font = ImageFont.load_default()
  for row, (label, frames) in enumerate(rows.items()):
    top = row * (cell_h + _LABEL_PIXELS)
    draw.text((2, top + 1), label, fill="black", font=font)
    colours = edges.get(label, ())
    for column, frame in enumerate(frames):
      x, y = column * cell_w, top + _LABEL_PIXELS
      colour = colours[column] if column < len(colours) else "lightgrey"
      draw.rectangle(
        (x, y, x + cell_w - 2, y + cell_h - 2), outline=colour, width=2
      )
      picture = Image.fromarray(np.asarray(frame, np.uint8)).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
      )
      canvas.paste(picture, (x + 2, y + 2))
  return np.asarray(canvas)


def save_video(
  path: files.PathLike, frames: np.ndarray, fps: float, scale: int = 4
) -> None:
  """Writes frames as a GIF or an MP4, atomically.

  Args:
    path: Ends in .gif or .mp4, which selects the format; may be in a bucket.
    frames: uint8 [T, H, W, 3].
    fps: Frames per second; GIF rounds each delay to a multiple of 10 ms.
    scale: Integer factor by which each pixel is enlarged.

  Raises:
    UserError: The path has another suffix.
  """
  suffix = pathlib.PurePath(path).suffix
  if suffix not in (".gif", ".mp4"):
    raise errors.UserError(
      f"{path}: the name of a video must end in .gif or .mp4, not {suffix!r}."
    )
  files.write_atomic(path, to_video(frames, suffix[1:], fps, scale))


def with_keys(
  frames: np.ndarray,
  labels: Sequence[str],
  pressed: Sequence[int | None],
  scale: int = 1,
) -> np.ndarray:
  """Draws a row of keys below each frame; the pressed one is lit.

  Args:
    frames: uint8 [T, H, W, 3].
    labels: What the keys say, from left to right.
    pressed: For each frame the index of the pressed key; None for none.
    scale: Integer factor by which each pixel of a frame is enlarged.

  Returns:
    uint8 [T, H * scale + 20, W * scale, 3]; sides are even, for MP4.
  """
  frames = np.asarray(frames, np.uint8).repeat(scale, 1).repeat(scale, 2)
  width = frames.shape[2]
  font = ImageFont.load_default()
  edges = np.linspace(0, width, len(labels) + 1).astype(int)
  strips = {}
  for lit in set(pressed):
    strip = Image.new("RGB", (width, _KEY_PIXELS), "white")
    draw = ImageDraw.Draw(strip)
    for key, label in enumerate(labels):
      box = (edges[key] + 1, 2, edges[key + 1] - 2, _KEY_PIXELS - 2)
      on = key == lit
      draw.rectangle(box, fill="black" if on else "white", outline="grey")
      draw.text(
        ((box[0] + box[2]) / 2, _KEY_PIXELS / 2),
        label,
        fill="white" if on else "grey",
        font=font,
        anchor="mm",
      )
    strips[lit] = np.asarray(strip)
  below = np.stack([strips[lit] for lit in pressed])
  return np.concatenate([frames, below], 1)


def to_video(frames: np.ndarray, kind: str, fps: float, scale: int) -> bytes:
  """Encodes frames as a video.

  Args:
    frames: uint8 [T, H, W, 3].
    kind: "gif" or "mp4".
    fps: Frames per second; GIF rounds each delay to a multiple of 10 ms.
    scale: Integer factor by which each pixel is enlarged.

  Returns:
    The content of the video file.
  """
  frames = np.asarray(frames, np.uint8).repeat(scale, 1).repeat(scale, 2)
  return {"gif": _gif, "mp4": _mp4}[kind](frames, fps)


def _gif(frames: np.ndarray, fps: float) -> bytes:
  # All frames share one palette: separate palettes make static areas flicker.
  sample = np.concatenate(list(frames[:: max(1, len(frames) // 8)]))
  palette = Image.fromarray(sample).quantize(255)
  pictures = [
    Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
    for frame in frames
  ]
  buffer = io.BytesIO()
  delay = max(2, round(_GIF_UNITS_PER_SECOND / fps)) * 10
  pictures[0].save(
    buffer,
    "GIF",
    save_all=True,
    append_images=pictures[1:],
    duration=delay,
    loop=0,
    optimize=False,
  )
  return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: float) -> bytes:
  # The colour format that all players support, yuv420p, requires even sides.
  frames = np.pad(
    frames,
    ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)),
    mode="edge",
  )
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream(
      "libx264", rate=round(fps), options={"crf": "16"}
    )
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(
        stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24"))
      )
    container.mux(stream.encode())
  return buffer.getvalue()


def to_uint8(frames: npt.ArrayLike) -> np.ndarray:
  """Converts float frames in [0, 1] to uint8, rounding to nearest."""
  array = np.asarray(frames, np.float32)
  return np.round(array.clip(0, 1) * 255).astype(np.uint8)
