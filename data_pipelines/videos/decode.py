"""Reads a film as frames at a constant rate, by their timestamps.

Frame k is what the film shows at k / fps seconds after its first frame. A film
with fewer frames has each of them more than once, a film with more has some of
them left out, and a variable rate needs no rule of its own.

Shapes:
  H W  rows, columns of a frame
"""

import bisect
import collections
import contextlib
import dataclasses
import fractions
import itertools
import os
from collections.abc import Iterator

import av
import av.container
import av.error
import av.filter
import av.stream
import av.video.stream
import numpy as np

from data_pipelines.videos import colour, geometry
from data_pipelines.videos import options as options_lib

# A film in which nothing new appears for so long is taken to have a gap, not a
# still picture: its timestamps may be wrong by hours.
_LONGEST_STILL = 60
# Part of a second by which timestamps may run backwards before the film is
# taken to have been joined from several, each with its own clock.
_BACKWARDS = 4
# Pictures that are looked at in search of black bars.
_BAR_FRAMES = 12
# Where a film cannot be searched, of its first frames each of these many.
_BAR_STEP, _FIRST_BAR_FRAMES = 25, 6
_MOST_PIXELS = 1 << 26
# Parts of films that begin later are looked for, not read up to.
_SEEK_SECONDS = 10
# Packets that are read ahead: more than any codec reorders.
_AHEAD = 32
_DEFAULT_RATE = fractions.Fraction(25)
_DEFAULT_BASE = fractions.Fraction(1, 1_000_000)


class BadFilm(ValueError):
  """A film that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Shown:
  """One frame of the result.

  Attributes:
    index: Its number; index / fps is its time from the film's first frame.
    frame: uint8 [H, W, 3]; not to be changed.
    joined: Whether it continues the frame before. False after a gap in time,
      damage, and a change of the picture's size.
    repeated: Whether it is the same picture as the frame before.
  """

  index: int
  frame: np.ndarray
  joined: bool
  repeated: bool


@dataclasses.dataclass
class Damage:
  """What was wrong with a film, filled while it is read.

  Attributes:
    packets: Number of packets.
    bad_packets: Those that could not be decoded.
    ended: Why reading ended early; None where it did not.
  """

  packets: int = 0
  bad_packets: int = 0
  ended: str | None = None


@contextlib.contextmanager
def opened(path: str) -> Iterator[av.container.InputContainer]:
  """Opens a film; nothing else is ever opened on its behalf.

  Args:
    path: The file, absolute; bytes that are no UTF-8 are surrogates.

  Raises:
    BadFilm: It is no film.
  """
  with contextlib.ExitStack() as stack:
    try:
      path.encode()
      name = f"file:{path}"
    except UnicodeEncodeError:
      # PyAV takes text only.
      file = stack.enter_context(open(os.fsencode(path), "rb"))
      name = f"file:/proc/self/fd/{file.fileno()}"
    try:
      container = av.open(
        name,
        # A playlist that calls itself a film must not fetch what it names.
        options={"protocol_whitelist": "file", "max_probe_packets": "2500"},
        metadata_errors="replace",
      )
    except av.error.FFmpegError as error:
      raise BadFilm(f"cannot be opened: {_reason(error)}") from error
    yield stack.enter_context(container)


def video_stream(
  container: av.container.InputContainer,
) -> av.video.stream.VideoStream:
  """Returns the stream of moving pictures.

  Raises:
    BadFilm: There is none, or it has no pixels.
  """
  found = [
    stream
    for stream in container.streams.video
    if not stream.disposition & av.stream.Disposition.attached_pic
  ]
  if not found:
    kinds = sorted({stream.type for stream in container.streams})
    raise BadFilm(
      f"has no pictures, only {' and '.join(kinds) or 'no streams'}"
    )
  stream = found[0]
  try:
    width, height = stream.width, stream.height
  except (AttributeError, ValueError) as error:
    raise BadFilm(
      "is in a format that cannot be decoded (no codec for it)"
    ) from error
  check_size(width, height)
  # Other processes use the other cores.
  stream.codec_context.thread_count = 1
  return stream


def check_size(width: int, height: int) -> None:
  """Raises BadFilm where a picture has no pixels, or too many."""
  if not 0 < width * height <= _MOST_PIXELS:
    raise BadFilm(f"has pictures of {width} x {height} pixels")


def frames(
  path: str,
  options: options_lib.Options,
  damage: Damage,
  begin: float = 0.0,
  end: float | None = None,
) -> Iterator[Shown]:
  """Yields the frames of a film, or of a part of it.

  Args:
    path: The file.
    options: Rate and size.
    damage: Is filled with what is wrong.
    begin: Seconds from the first frame at which the part begins.
    end: Seconds at which it ends; None for the film's end.

  Raises:
    BadFilm: It is no film, or not one frame could be decoded.
  """
  with opened(path) as container:
    stream = video_stream(container)
    box = _find_picture(container, stream) if options.crop_bars else None
  with opened(path) as container:
    stream = video_stream(container)
    yield from _Reader(container, stream, options, box, damage).read(begin, end)
  if not damage.packets:
    raise BadFilm(damage.ended or "has no pictures")


class _Reader:
  """Reads one film once."""

  def __init__(
    self,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    options: options_lib.Options,
    box: geometry.Box | None,
    damage: Damage,
  ):
    self._container, self._stream = container, stream
    self._options, self._box, self._damage = options, box, damage
    self._convert: _Converter | None = None
    self._rate = options.rate
    base = stream.time_base or _DEFAULT_BASE
    usual = stream.average_rate or stream.guessed_rate or _DEFAULT_RATE
    # Both a unit of the film's timestamps and the usual duration of a frame are
    # whole numbers of the clock's ticks.
    self._clock = base.denominator * usual.numerator
    self._tick = base.numerator * usual.numerator
    self._usual = base.denominator * usual.denominator
    self._first: int | None = None  # Timestamp of the first frame.
    # The same in ticks, where a part of the film is read; None otherwise.
    self._origin: int | None = None
    # Whether a frame was lost since the last one, and whether the next ones may
    # refer to it: until a key frame.
    self._lost = self._damaged = False
    # Whether timestamps ran on without a jump so far.
    self._one_clock = True
    # Set where a frame does not continue the one before.
    self._broken = True

  def read(self, begin: float, end: float | None) -> Iterator[Shown]:
    """Yields the frames from `begin` to `end`; see `frames`."""
    index = -int(-begin * self._rate // 1)
    if begin > _SEEK_SECONDS:
      self._seek(begin)
    last = None if end is None else -int(-end * self._rate // 1)
    held, since, ends = None, 0, 0
    for frame, time, lasts in self._timed():
      if held is not None:
        # Without a gap it is shown until the next one, however long that is.
        gap = self._lost or time > since + _LONGEST_STILL * self._clock
        stop = min(time, ends) if gap else time
        yield from self._showing(held, since, stop, index, last)
        index = max(index, self._slot(stop))
        if gap:
          index = max(index, self._slot(time))
        self._broken = self._broken or gap
        if last is not None and index >= last:
          return
      self._lost = False
      held, since, ends = frame, time, time + lasts
    if held is not None:
      yield from self._showing(held, since, ends, index, last)

  def _seek(self, begin: float) -> None:
    """Goes to a key frame before `begin`, or stays if there is none."""
    stream = self._stream
    try:
      first = next(self._container.decode(stream), None)
      if first is None or first.pts is None:
        return
      self._origin, self._first = first.pts * self._tick, first.pts
      ticks = int(begin * self._clock) + self._origin
      # A stream's timestamps, not microseconds: some containers round those.
      self._container.seek(ticks // self._tick, stream=stream)
      found = next(self._container.decode(stream), None)
      if found and found.pts is not None and found.pts * self._tick <= ticks:
        self._container.seek(ticks // self._tick, stream=stream)
        return
    except (av.error.FFmpegError, EOFError):
      pass
    self._container.seek(0)

  def _showing(
    self,
    frame: av.VideoFrame,
    since: int,
    until: int,
    index: int,
    last: int | None,
  ) -> Iterator[Shown]:
    """Yields a decoded frame as often as it is shown."""
    stop = self._slot(until)
    if last is not None:
      stop = min(stop, last)
    start = max(index, self._slot(since))
    if start >= stop:
      return
    if self._convert is None or not self._convert.fits(frame):
      self._broken = self._broken or self._convert is not None
      self._convert = _Converter(frame, self._stream, self._options, self._box)
    picture = self._convert(frame)
    for number in range(start, stop):
      yield Shown(number, picture, not self._broken, number > start)
      self._broken = False

  def _slot(self, time: int) -> int:
    """Returns the number of the first frame at or after a time."""
    return -(
      -time * self._rate.numerator // (self._clock * self._rate.denominator)
    )

  def _timed(self) -> Iterator[tuple[av.VideoFrame, int, int]]:
    """Yields each decoded frame, its time from the first, and its duration.

    Times are counted in parts of a second, `self._clock` of them, so that they
    are exact; fractions would take as long as decoding a small film.
    """
    usual, tick = self._usual, self._tick
    origin, previous = self._origin, None
    for frame in self._decoded():
      lasts = usual
      if frame.duration and frame.duration * tick < 10 * self._clock:
        lasts = frame.duration * tick
      if frame.pts is None:
        time = 0 if previous is None else previous + usual
      else:
        stamp = frame.pts * tick
        if origin is None:
          origin = stamp
          self._first = frame.pts
        time = stamp - origin
        if previous is not None and time <= previous:
          if time > previous - self._clock // _BACKWARDS:
            continue  # Two frames at one time: the first is shown.
          # Another clock from here on.
          origin = stamp - previous - usual
          time, self._broken = previous + usual, True
      previous = time
      yield frame, time, lasts

  def _decoded(self) -> Iterator[av.VideoFrame]:
    """Yields decoded frames, of which some that are not shown are missing."""
    context = self._stream.codec_context
    for packet, needed in self._needed():
      # A picture that no other one refers to need not be decoded to be left
      # out. The decoder knows which these are.
      context.skip_frame = "DEFAULT" if needed else "NONREF"
      self._damage.packets += packet.size > 0
      try:
        found = packet.decode()
      except MemoryError:
        raise
      except av.error.EOFError:
        return
      except av.error.FFmpegError:
        self._lose()
        continue
      for frame in found:
        if frame.is_corrupt:
          self._lose()
        elif frame.key_frame or not self._damaged:
          self._damaged = False
          yield frame

  def _lose(self) -> None:
    """Takes note of a picture that could not be decoded well."""
    self._damage.bad_packets += 1
    self._lost = self._damaged = True

  def _needed(self) -> Iterator[tuple[av.Packet, bool]]:
    """Yields each packet and whether its frame may be shown.

    A frame is shown until the next one, which is known once the packets that
    may come before it in the file have been read.
    """
    ahead: collections.deque[av.Packet] = collections.deque()
    stamps: list[int] = []
    for packet in self._packets():
      if packet.dts is not None and ahead and ahead[-1].dts is not None:
        step = (packet.dts - ahead[-1].dts) * self._tick
        if not 0 <= step < _LONGEST_STILL * self._clock:
          self._one_clock = False
      ahead.append(packet)
      if packet.pts is not None:
        bisect.insort(stamps, packet.pts)
      if len(ahead) > _AHEAD:
        first = ahead.popleft()
        yield first, self._is_shown(first, stamps)
        # Those of packets that were decoded long ago.
        del stamps[: max(0, len(stamps) - 3 * _AHEAD)]
    for packet in ahead:
      yield packet, True

  def _is_shown(self, packet: av.Packet, stamps: list[int]) -> bool:
    if packet.pts is None or self._first is None or not self._one_clock:
      return True
    place = bisect.bisect_right(stamps, packet.pts)
    if place == len(stamps):
      return True
    begin, end = (
      (stamp - self._first) * self._tick
      for stamp in (packet.pts, stamps[place])
    )
    return self._slot(begin) != self._slot(end)

  def _packets(self) -> Iterator[av.Packet]:
    """Yields the packets, up to where the file is damaged."""
    packets = self._container.demux(self._stream)
    while True:
      try:
        packet = next(packets, None)
      except (av.error.FFmpegError, EOFError) as error:
        self._damage.ended = f"ends early: {_reason(error)}"
        return
      if packet is None:
        return
      yield packet


class _Converter:
  """Turns decoded frames of one size and format into frames of the clips."""

  def __init__(
    self,
    frame: av.VideoFrame,
    stream: av.video.stream.VideoStream,
    options: options_lib.Options,
    box: geometry.Box | None,
  ):
    check_size(frame.width, frame.height)
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


def _find_picture(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
) -> geometry.Box | None:
  """Looks for black bars in frames from all over a film."""
  luma: dict[int | None, np.ndarray] = {}
  length = duration(container, stream)
  for place in range(_BAR_FRAMES) if length else ():
    seconds = length * (place + 0.5) / _BAR_FRAMES
    with contextlib.suppress(av.error.FFmpegError, EOFError):
      container.seek(int(seconds * av.time_base), backward=True)
      packet = next(
        (p for p in container.demux(stream) if p.is_keyframe and p.size), None
      )
      if packet is None or packet.pts in luma:
        continue
      pts = packet.pts
      # The decoder holds frames back; the end of the film releases them.
      found = packet.decode() or stream.codec_context.decode(None)
      if found:
        luma[pts] = found[0].to_ndarray(format="gray")
  pictures = list(luma.values())
  if len(pictures) < geometry.FEWEST_FRAMES:
    pictures += _first_frames(container, stream)
  shape = pictures[0].shape if pictures else None
  return geometry.find_picture([f for f in pictures if f.shape == shape])


def _first_frames(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
) -> list[np.ndarray]:
  found = []
  with contextlib.suppress(av.error.FFmpegError, EOFError):
    container.seek(0)
    for number, frame in enumerate(container.decode(stream)):
      if number % _BAR_STEP == 0:
        found.append(frame.to_ndarray(format="gray"))
      if len(found) == _FIRST_BAR_FRAMES:
        break
  return found


def duration(
  container: av.container.InputContainer,
  stream: av.video.stream.VideoStream,
) -> float:
  """Returns the stated duration in seconds, 0 where there is none."""
  if stream.duration and stream.time_base:
    return float(stream.duration * stream.time_base)
  return (container.duration or 0) / av.time_base


def _reason(error: BaseException) -> str:
  """Returns libav's words about an error."""
  text = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return " ".join(str(text).split())
