"""Turns decoded pictures into frames: cropped, scaled, turned, in RGB.

Shapes:
  H W  rows, columns of a frame
"""

import fractions
import itertools

import av
import av.filter
import av.video.stream
import numpy as np

from data_pipelines.videos import colour, film, geometry
from data_pipelines.videos import options as options_lib


class Converter:
  """Turns decoded frames of one size and format into frames of the clips."""

  def __init__(
    self,
    frame: av.VideoFrame,
    stream: av.video.stream.VideoStream,
    options: options_lib.Options,
    box: geometry.Box | None,
  ):
    film.check_size(frame.width, frame.height)
    self._key = _form(frame)
    aspect = stream.sample_aspect_ratio or fractions.Fraction(1)
    if not fractions.Fraction(1, 10) <= aspect <= 10:
      aspect = fractions.Fraction(1)
    if box and (box.x + box.width, box.y + box.height) > (
      frame.width,
      frame.height,
    ):
      box = None
    self._fitting = geometry.fit(
      frame.width,
      frame.height,
      aspect,
      round(frame.rotation / 90) % 4,
      box,
      options,
    )
    self._hdr = colour.is_hdr(frame)
    self._graph = self._make_graph(frame)

  def fits(self, frame: av.VideoFrame) -> bool:
    """Returns whether a frame has the form of the first one."""
    return _form(frame) == self._key

  def __call__(self, frame: av.VideoFrame) -> np.ndarray:
    """Returns uint8 [H, W, 3]."""
    # Filters may not like times that run backwards, and need none here.
    frame.pts = None
    self._graph.push(frame)
    pixels = self._graph.pull().to_ndarray()
    if self._hdr:
      pixels = colour.to_sdr(pixels, frame)
    return geometry.turned(pixels, self._fitting)

  def _make_graph(self, frame: av.VideoFrame) -> av.filter.Graph:
    """Returns the filters from a decoded picture to scaled RGB."""
    box, fitting = self._fitting.box, self._fitting
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(
      width=frame.width,
      height=frame.height,
      format=frame.format,
      time_base=fractions.Fraction(1, 1000),
    )
    parts = [source]
    if (box.width, box.height) != (frame.width, frame.height):
      parts.append(
        graph.add("crop", f"{box.width}:{box.height}:{box.x}:{box.y}")
      )
    small = fitting.width <= box.width and fitting.height <= box.height
    parts.append(
      graph.add(
        "scale",
        f"{fitting.width}:{fitting.height}:flags="
        f"{'area' if small else 'bicubic'}:"
        f"in_color_matrix={colour.matrix(frame)}",
      )
    )
    parts.append(graph.add("format", "rgb48le" if self._hdr else "rgb24"))
    parts.append(graph.add("buffersink"))
    for one, other in itertools.pairwise(parts):
      one.link_to(other)
    graph.configure()
    return graph


def _form(frame: av.VideoFrame) -> tuple[object, ...]:
  return (
    frame.width,
    frame.height,
    frame.format.name,
    int(frame.colorspace),
    int(frame.color_trc),
    frame.rotation,
  )
