"""Pictures and short videos: prompts in, strips, GIFs and MP4s out."""

import contextlib
import io
import pathlib
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genie_jax.core import errors, files

MAX_PIXELS = 64_000_000  # 50-megapixel photos pass; more is a bomb.
# No formats that run programs (EPS) or that nobody sends.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_DRAFT_FACTOR = 4  # JPEGs are read no finer than this times the frame.
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
_GIF_HUNDREDTHS = 100  # GIF delays count hundredths of a second.


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
      f"{path} does not exist; give a picture to start from."
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
  """Reads any picture as one frame.

  The rule: PNG, JPEG, WebP, GIF, BMP, TIFF and PPM of at most 64 million
  pixels; the first frame of an animation; turned upright as its EXIF says; the
  largest centred crop of the frame's aspect ratio; resized by area averaging;
  any mode turned to RGB; transparency laid on white. 16-bit greys are scaled
  by 65535 where one exceeds 255, floats by 255 where none exceeds 1; what is
  then out of range is clipped, and NaN is black. Colour profiles are ignored.

  Args:
    content: An open file.
    height: Rows of the frame.
    width: Columns of the frame.
    name: What errors call it.

  Returns:
    uint8 [height, width, 3].

  Raises:
    UserError: It is not a picture, or has more than 64 million pixels.
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
      f"{name} has {columns} x {rows} pixels; 1 to {MAX_PIXELS} are "
      "read, so make it smaller."
    )


def _fitted(
  picture: Image.Image, height: int, width: int, name: str
) -> np.ndarray:
  """Returns uint8 [height, width, 3] of a picture, which may be shrunk."""
  _check_size(picture, name)
  turn = _UPRIGHT.get(picture.getexif().get(_EXIF_ORIENTATION))
  lying = turn in (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
  )
  size = (height, width) if lying else (width, height)
  # Lets the JPEG decoder shrink large photos while it reads.
  picture.draft(
    picture.mode, (size[0] * _DRAFT_FACTOR, size[1] * _DRAFT_FACTOR)
  )
  picture.load()
  frame = _cut(_resizable(picture), size)
  if turn is not None:
    frame = frame.transpose(turn)
  return np.asarray(frame, np.uint8)


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
  """Turns what Pillow raises for bad files into one line, and its warnings off.

  Raises:
    UserError: The file is damaged, too large, or not a picture.
  """
  try:
    with warnings.catch_warnings():
      # Decoders warn of what they read around, and before our own refusal.
      warnings.simplefilter("ignore")
      yield
  except errors.UserError:
    raise
  except Image.DecompressionBombError as error:  # Pillow was first.
    raise errors.UserError(
      f"{name} has far more than the {MAX_PIXELS} pixels that are read, so "
      "make it smaller."
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
    # What Pillow's decoders raise for damaged files differs by format.
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      reason = "unknown format"
    raise errors.UserError(
      f"{name} is not a picture that can be read ({reason}); give a PNG, "
      "JPEG, WebP or GIF file."
    ) from error


def _resizable(picture: Image.Image) -> Image.Image:
  """Returns a picture whose channels may be averaged, as 8 bits each."""
  if picture.mode.startswith("I;16") or picture.mode == "I":
    top = 65535 if picture.getextrema()[1] > 255 else 255
    values = np.asarray(picture).astype(np.float32) * (255 / top)
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


def _cut(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
  """Returns the largest centred crop of this shape, resized, as RGB."""
  (columns, rows), (width, height) = picture.size, size
  scale = min(columns / width, rows / height)
  crop_width, crop_height = width * scale, height * scale
  left, top = (columns - crop_width) / 2, (rows - crop_height) / 2
  box = (left, top, left + crop_width, top + crop_height)
  # Exact sizes pass through untouched; area averaging blurs nothing there.
  cut = picture.resize(size, Image.Resampling.BOX, box=box)
  if cut.mode == "RGBA":
    white = Image.new("RGBA", size, (255, 255, 255, 255))
    cut = Image.alpha_composite(white, cut)
  return cut.convert("RGB")


def to_png(picture: np.ndarray) -> bytes:
  """Returns uint8 [H, W, 3] as the bytes of a PNG file."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  return buffer.getvalue()


def save_png(path: files.PathLike, picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] as a PNG file, atomically."""
  files.write_atomic(path, to_png(picture))


def from_png(content: bytes) -> np.ndarray:
  """Returns uint8 [H, W, 3] of what `to_png` wrote."""
  with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
    return np.asarray(picture, np.uint8)


def strip(
  rows: Mapping[str, np.ndarray],
  *,
  scale: int = 2,
  edges: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
  """Lays labelled rows of frames under one another.

  Args:
    rows: Label -> uint8 frames [T, H, W, 3]; rows may differ in T.
    scale: Whole-number enlargement of each pixel.
    edges: Label -> colour of each frame's edge, for example "lime" for given
      and "red" for imagined frames; rows without an entry get a grey edge.

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
  """Writes frames as a GIF or an MP4, by the path's ending, atomically.

  Args:
    path: Ends in .gif or .mp4; may be in a bucket.
    frames: uint8 [T, H, W, 3].
    fps: Frames a second; GIF rounds to hundredths of a second a frame.
    scale: Whole-number enlargement of each pixel.

  Raises:
    UserError: Another ending.
  """
  suffix = pathlib.PurePath(path).suffix
  if suffix not in (".gif", ".mp4"):
    raise errors.UserError(
      f"{path}: videos end in .gif or .mp4, not {suffix!r}."
    )
  files.write_atomic(path, to_video(frames, suffix[1:], fps, scale))


def to_video(frames: np.ndarray, kind: str, fps: float, scale: int) -> bytes:
  """Returns the bytes of a film of uint8 frames [T, H, W, 3].

  Args:
    frames: The frames.
    kind: "gif" or "mp4".
    fps: Frames a second; GIF rounds to hundredths of a second a frame.
    scale: Whole-number enlargement of each pixel.
  """
  frames = np.asarray(frames, np.uint8).repeat(scale, 1).repeat(scale, 2)
  return {"gif": _gif, "mp4": _mp4}[kind](frames, fps)


def _gif(frames: np.ndarray, fps: float) -> bytes:
  # One palette for all frames: one each makes still grounds flicker.
  sample = np.concatenate(list(frames[:: max(1, len(frames) // 8)]))
  palette = Image.fromarray(sample).quantize(255)
  pictures = [
    Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
    for frame in frames
  ]
  buffer = io.BytesIO()
  delay = max(2, round(_GIF_HUNDREDTHS / fps)) * 10
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
  # H.264 wants even sides in the colour format that every player knows.
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


def to_uint8(frames: np.ndarray) -> np.ndarray:
  """Returns float frames in [0, 1] as uint8, rounded to nearest."""
  frames = np.asarray(frames, np.float32)
  return np.round(frames.clip(0, 1) * 255).astype(np.uint8)
