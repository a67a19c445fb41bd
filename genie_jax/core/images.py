"""Pictures and short videos: prompts in, strips, GIFs and MP4s out."""

import io
import pathlib
import struct
import warnings
from collections.abc import Mapping, Sequence

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from genie_jax.core import errors, files

_MAX_PIXELS = 50_000_000  # A larger prompt is a mistake or a bomb.
_LABEL_PIXELS = 14
_GIF_HUNDREDTHS = 100  # GIF delays count hundredths of a second.


def load_prompt(
    path: files.PathLike, height: int, width: int
) -> np.ndarray:
  """Reads any picture as one frame.

  The rule: the first frame of an animation; transparency laid on black; any
  mode turned to RGB; the largest centred crop of the frame's aspect ratio;
  resized by area averaging.

  Args:
    path: A file in any format that Pillow reads.
    height: Rows of the frame.
    width: Columns of the frame.

  Returns:
    uint8 [height, width, 3].

  Raises:
    UserError: The file is missing, is not a picture, or has more than 50
      million pixels.
  """
  path = pathlib.Path(path)
  try:
    with warnings.catch_warnings():
      # Pillow's warning would come before our own, clearer refusal.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      opened = Image.open(path)
    with opened as picture:
      columns, rows = picture.size
      if rows * columns > _MAX_PIXELS:
        raise errors.UserError(
            f"{path} has {columns} x {rows} pixels; at most {_MAX_PIXELS} are "
            "read, so make it smaller.")
      picture.load()
      rgb = _to_rgb(picture)
  except FileNotFoundError as error:
    raise errors.UserError(
        f"{path} does not exist; give a picture to start from.") from error
  except errors.UserError:
    raise
  except (OSError, SyntaxError, ValueError, RuntimeError, EOFError,
          struct.error, Image.DecompressionBombError) as error:
    # What Pillow's decoders raise for damaged files differs by format.
    raise errors.UserError(
        f"{path} is not a picture that can be read ({error}); give a PNG, "
        "JPEG, WebP or GIF file.") from error
  scale = min(columns / width, rows / height)
  crop_width, crop_height = width * scale, height * scale
  left, top = (columns - crop_width) / 2, (rows - crop_height) / 2
  box = (left, top, left + crop_width, top + crop_height)
  # Exact sizes pass through untouched; area averaging blurs nothing there.
  resized = rgb.resize((width, height), Image.Resampling.BOX, box=box)
  return np.asarray(resized, np.uint8)


def _to_rgb(picture: Image.Image) -> Image.Image:
  """Returns a picture of any mode as 8-bit RGB on a black ground."""
  if picture.mode.startswith("I;16") or picture.mode == "I":
    values = np.asarray(picture, np.float64)
    top = 65535.0 if values.max() > 255 else 255.0
    values = (values / top * 255).clip(0, 255)
    picture = Image.fromarray(values.astype(np.uint8))
  elif picture.mode == "F":
    values = np.nan_to_num(np.asarray(picture, np.float64))
    picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
  rgba = picture.convert("RGBA")
  black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
  return Image.alpha_composite(black, rgba).convert("RGB")


def save_png(path: files.PathLike, picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] as a PNG file, atomically."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  files.write_atomic(path, buffer.getvalue())


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
      "RGB", (count * cell_w, len(rows) * (cell_h + _LABEL_PIXELS)), "white")
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
          (x, y, x + cell_w - 2, y + cell_h - 2), outline=colour, width=2)
      picture = Image.fromarray(np.asarray(frame, np.uint8)).resize(
          (width * scale, height * scale), Image.Resampling.NEAREST)
      canvas.paste(picture, (x + 2, y + 2))
  return np.asarray(canvas)


def save_video(
    path: files.PathLike, frames: np.ndarray, fps: float, scale: int = 4
) -> None:
  """Writes frames as a GIF or an MP4, by the path's ending, atomically.

  Args:
    path: Ends in .gif or .mp4.
    frames: uint8 [T, H, W, 3].
    fps: Frames a second; GIF rounds to hundredths of a second a frame.
    scale: Whole-number enlargement of each pixel.

  Raises:
    UserError: Another ending.
  """
  path = pathlib.Path(path)
  frames = np.asarray(frames, np.uint8).repeat(scale, 1).repeat(scale, 2)
  if path.suffix == ".gif":
    content = _gif(frames, fps)
  elif path.suffix == ".mp4":
    content = _mp4(frames, fps)
  else:
    raise errors.UserError(
        f"{path}: videos end in .gif or .mp4, not {path.suffix!r}.")
  files.write_atomic(path, content)


def _gif(frames: np.ndarray, fps: float) -> bytes:
  # One palette for all frames: one each makes still grounds flicker.
  sample = np.concatenate(list(frames[:: max(1, len(frames) // 8)]))
  palette = Image.fromarray(sample).quantize(255)
  pictures = [
      Image.fromarray(frame).quantize(
          palette=palette, dither=Image.Dither.NONE) for frame in frames]
  buffer = io.BytesIO()
  delay = max(2, round(_GIF_HUNDREDTHS / fps)) * 10
  pictures[0].save(
      buffer, "GIF", save_all=True, append_images=pictures[1:],
      duration=delay, loop=0, optimize=False)
  return buffer.getvalue()


def _mp4(frames: np.ndarray, fps: float) -> bytes:
  # H.264 wants even sides in the colour format that every player knows.
  frames = np.pad(
      frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2),
               (0, 0)), mode="edge")
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream(
        "libx264", rate=round(fps), options={"crf": "16"})
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    for frame in frames:
      container.mux(
          stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  return buffer.getvalue()


def to_uint8(frames: np.ndarray) -> np.ndarray:
  """Returns float frames in [0, 1] as uint8, rounded to nearest."""
  frames = np.asarray(frames, np.float32)
  return np.round(frames.clip(0, 1) * 255).astype(np.uint8)
