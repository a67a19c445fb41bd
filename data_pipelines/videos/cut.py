"""Cuts one film into clips; runs in a child process, see `contained`.

Messages to the parent, in order: {"film": ...} once the first frame is there,
{"at": seconds} now and then, {"clip": ...} for each clip with its records, and
{"end": ...}.
"""

import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.videos import actions as actions_lib
from data_pipelines.videos import decode, looks, shots
from data_pipelines.videos import film as film_lib
from data_pipelines.videos import options as options_lib
from genie_jax.data import records, stored_frames, video_codec

Send = Callable[..., None]

_PROGRESS_SECONDS = 0.5
# Dropped clips are not stored. So many for each reason are shown by a picture,
# of so many frames, in the summary.
_PICTURES, _PICTURE_FRAMES = 6, 4
_PICTURE_QUALITY = 80
# Share of a film's packets that may be damaged.
_MOST_BAD_PACKETS = 0.1
# A film that ends so much earlier than it states was cut off.
_MISSING, _MISSING_SECONDS = 0.05, 1.0


def job(request: dict[str, Any], send: Send) -> None:
  """Cuts a film.

  Args:
    request: {"path", "source", "options", "begin", "end", "duration",
      "actions", "action_names", "film_frames"}, see `units`; only the first
      three are required.
    send: Sends a header and a blob to the parent.

  Raises:
    BadFilm: The file is no film, or too much of it is damaged.
  """
  options = options_lib.Options(**request["options"])
  damage = decode.Damage()
  aligned = _actions(request, options) if request.get("actions") else None
  cutter = _Cutter(
    request["source"], options, send, aligned.values if aligned else None
  )
  last, count, seconds = time.monotonic(), 0, 0.0
  for shown in decode.frames(
    request["path"],
    options,
    damage,
    request.get("begin") or 0.0,
    request.get("end"),
  ):
    cutter.take(shown)
    count += 1
    seconds = (shown.index + 1) / options.fps
    if time.monotonic() - last > _PROGRESS_SECONDS:
      last = time.monotonic()
      send({"at": seconds})
  cutter.end_shot()
  if damage.bad_packets > _MOST_BAD_PACKETS * damage.packets:
    raise film_lib.BadFilm(
      f"{damage.bad_packets} of {damage.packets} packets are damaged"
    )
  if not count:
    part = ""
    if request.get("begin") or request.get("end"):
      end = request.get("end")
      part = f" from {request['begin']:.1f} s to " + (
        f"{end:.1f} s" if end else "its end"
      )
    raise film_lib.BadFilm(
      damage.ended or f"not one frame{part} could be decoded"
    )
  stated = request.get("end") or request.get("duration") or 0.0
  ended = damage.ended or ""
  if not ended and seconds < (1 - _MISSING) * stated - _MISSING_SECONDS:
    ended = f"ends early: its pictures end at {seconds:.1f} of {stated:.1f} s"
  send(
    {
      "end": {
        "frames": count,
        "bad_packets": damage.bad_packets,
        "ended": ended,
        "actions": aligned.note if aligned else "",
      }
    }
  )


def _actions(
  request: dict[str, Any], options: options_lib.Options
) -> actions_lib.Aligned:
  """Returns the recorded actions of a film's frames."""
  count = int(request["duration"] * options.fps) + 1
  return actions_lib.align(
    actions_lib.read(request["actions"]),
    np.arange(count) / options.fps,
    request["duration"],
    request["action_names"],
    request["film_frames"] or None,
  )


class _Cutter:
  """Collects frames into clips and sends each clip as it is complete."""

  def __init__(
    self,
    source: int,
    options: options_lib.Options,
    send: Send,
    actions: np.ndarray | None,
  ):
    self._source, self._options, self._send = source, options, send
    self._actions = actions
    self._shots = shots.Shots(options.cut_threshold, options.fps)
    self._shot, self._score = -1, 0.0
    self._frames: list[np.ndarray] = []
    self._start = 0
    self._watcher = looks.Watcher()
    self._pictures: dict[str, int] = {}
    self._codec = None if options.codec == "zstd" else options.codec

  def take(self, shown: decode.Shown) -> None:
    """Adds the next frame of the film."""
    if shown.repeated:
      score = None
    else:
      score = self._shots.begins(shown.frame)
    if not shown.joined or score is not None:
      self.end_shot()
      self._shot += 1
      self._score = score or 0.0
    if not self._frames:
      self._start, self._watcher = shown.index, looks.Watcher()
    self._frames.append(shown.frame)
    self._watcher.see(shown.frame, shown.repeated)
    if len(self._frames) == self._options.clip_frames:
      self._end_clip()

  def end_shot(self) -> None:
    """Ends the clip that was begun."""
    if self._frames:
      self._end_clip()

  def _end_clip(self) -> None:
    frames, self._frames = np.stack(self._frames), []
    found = self._watcher.looks()
    reason = self._reason(len(frames), found)
    packed, picture = [], b""
    if not reason:
      packed = self._records(frames)
    elif self._pictures.get(reason, 0) < _PICTURES:
      self._pictures[reason] = self._pictures.get(reason, 0) + 1
      picture = contact_strip(frames)
    thumbs = found.thumbs.tobytes()
    header = {
      "start": self._start,
      "frames": len(frames),
      "shot": self._shot,
      "cut_score": round(self._score, 3),
      "reason": reason,
      "brightness": round(found.brightness, 3),
      "black": round(found.black, 4),
      "moving": round(found.moving, 4),
      "hashes": found.hashes,
      "sizes": [len(thumbs), len(picture), *map(len, packed)],
    }
    self._send({"clip": header}, b"".join([thumbs, picture, *packed]))

  def _reason(self, count: int, found: looks.Looks) -> str:
    """Returns why a clip is dropped, "" if it is not."""
    if count < self._options.min_frames:
      return "short"
    if found.is_black:
      return "black"
    if found.is_static and not self._options.keep_static:
      return "static"
    return ""

  def _records(self, frames: np.ndarray) -> list[bytes]:
    size, packed = options_lib.FRAMES_PER_RECORD, []
    stored = stored_frames.store_clip(
      frames, size, self._codec, video_codec.H264Options()
    )
    for number, arrays in enumerate(stored):
      start = number * size
      count = min(size, len(frames) - start)
      meta: dict[str, Any] = {
        "fps": self._options.fps,
        "source": self._source,
        "start": start,
        "num_frames": count,
      }
      if not start:
        meta["clip"] = {
          "frame": self._start,
          "time": round(self._start / self._options.fps, 6),
        }
      if self._actions is not None:
        arrays["actions"] = self._actions_from(self._start + start, count)
      packed.append(records.pack(arrays, meta))
    return packed

  def _actions_from(self, start: int, count: int) -> np.ndarray:
    """Returns int32 [count]: actions from a frame of the film on."""
    assert self._actions is not None
    found = self._actions[start : start + count]
    # A film may be a little longer than it states; no key is action 0 then.
    return np.pad(found, (0, count - len(found))).astype(np.int32)


def contact_strip(frames: np.ndarray) -> bytes:
  """Returns a few frames of a clip side by side, as a JPEG.

  Args:
    frames: uint8 [T, H, W, 3].
  """
  places = np.linspace(0, len(frames) - 1, min(_PICTURE_FRAMES, len(frames)))
  strip = Image.fromarray(
    np.concatenate(list(frames[places.astype(int)]), axis=1)
  )
  strip.thumbnail((160 * _PICTURE_FRAMES, 160))
  buffer = io.BytesIO()
  strip.save(buffer, "JPEG", quality=_PICTURE_QUALITY)
  return buffer.getvalue()
