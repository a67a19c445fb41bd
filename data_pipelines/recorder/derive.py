"""Bad films that are made from good ones of the same game.

sped_up    five times as fast
cropped    a part of the picture, enlarged
slideshow  single frames that stand for seconds
overlay    most of the picture is covered by a panel with text
static     one frame, a little brighter and darker
"""

import pathlib
from collections.abc import Callable, Iterator

import av
import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.recorder import film as film_lib

_SPEED = 5
_CROP_SHARE = (0.30, 0.45)  # Sides of the part, of the picture's sides.
_SLIDE_SECONDS = (2.0, 5.0)
_PANEL_SHARE = (0.65, 0.85)
_LINES = (
  "THANKS FOR WATCHING",
  "subscribe to my channel",
  "next episode on friday",
  "top ten secrets",
  "live at eight",
  "leave a comment below",
  "part one of seven",
)

Edit = Callable[
  [Iterator[np.ndarray], np.random.Generator, int], Iterator[np.ndarray]
]


def _sped_up(frames, rng, fps) -> Iterator[np.ndarray]:
  for step, frame in enumerate(frames):
    if step % _SPEED == 0:
      yield frame


def _cropped(frames, rng, fps) -> Iterator[np.ndarray]:
  share, x, y = rng.uniform(*_CROP_SHARE), rng.random(), rng.random()
  for frame in frames:
    height, width = frame.shape[:2]
    side_y, side_x = round(height * share), round(width * share)
    top, left = round((height - side_y) * y), round((width - side_x) * x)
    part = Image.fromarray(frame[top : top + side_y, left : left + side_x])
    yield np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))


def _slideshow(frames, rng, fps) -> Iterator[np.ndarray]:
  wait, shown = 0, np.empty(0)
  for frame in frames:
    if wait <= 0:
      shown, wait = frame, round(rng.uniform(*_SLIDE_SECONDS) * fps)
    wait -= 1
    yield shown


def _overlay(frames, rng, fps) -> Iterator[np.ndarray]:
  panel, place = None, (0, 0)
  for step, frame in enumerate(frames):
    if panel is None or step % (8 * fps) == 0:
      panel, place = _panel(frame.shape[1], frame.shape[0], rng)
    image = Image.fromarray(frame)
    image.paste(panel, place)
    yield np.asarray(image)


def _panel(width: int, height: int, rng) -> tuple[Image.Image, tuple[int, int]]:
  """Returns a panel with words, and its place."""
  share = rng.uniform(*_PANEL_SHARE)
  size = round(width * share), round(height * share)
  colour = tuple(int(level) for level in rng.integers(0, 256, 3))
  ink = (0, 0, 0) if sum(colour) > 382 else (255, 255, 255)
  panel = Image.new("RGB", size, colour)
  draw = ImageDraw.Draw(panel)
  for line in range(5):
    words = str(rng.choice(_LINES))
    place = (size[0] * 0.08, size[1] * (0.08 + 0.18 * line))
    draw.text(place, words, fill=ink, font_size=max(10, size[1] // 9))
  left = round((width - size[0]) * rng.random())
  return panel, (left, round((height - size[1]) * rng.random()))


def _static(frames, rng, fps) -> Iterator[np.ndarray]:
  skip = int(rng.integers(fps, 3 * fps))
  still = None
  for step, frame in enumerate(frames):
    if step < skip:
      continue
    still = frame if still is None else still
    light = 1.0 + 0.04 * np.sin(step / fps)
    yield np.clip(still * light, 0, 255).astype(np.uint8)


EDITS: dict[str, Edit] = {
  "sped_up": _sped_up,
  "cropped": _cropped,
  "slideshow": _slideshow,
  "overlay": _overlay,
  "static": _static,
}


def write(
  kind: str, source: pathlib.Path, seed: int, seconds: float, path: pathlib.Path
) -> None:
  """Writes a bad film.

  Args:
    kind: A name in `EDITS`.
    source: A good film.
    seed: Of all random choices.
    seconds: Longest length.
    path: The film to write.
  """
  rng = np.random.default_rng(seed)
  with av.open(str(source)) as container:
    stream = container.streams.video[0]
    assert stream.average_rate is not None
    fps = round(stream.average_rate)
    decoded = (
      frame.to_ndarray(format="rgb24") for frame in container.decode(stream)
    )
    edited = EDITS[kind](decoded, rng, fps)
    frames = (
      frame
      for _, frame in zip(range(round(seconds * fps)), edited, strict=False)
    )
    film_lib.write_array(path, frames, fps)
