"""The folders of GenieRedux (insait-institute/GenieRedux, class FileStructure).

  info.json                      name, version and options; not needed
  INSTANCE/SESSION/              both of six digits; an instance is a level
    frames/NNNNNN.jpg (or .png)  one picture a frame; or
    frames.mp4                   all of them as a film
    actions.json                 {"actions": [{"src_id": 0, "tgt_id": 1,
                                 "action": 3 or [0, 1, 0], ...}, ...]}

`src_frame_id` and `tgt_frame_id` are older names. An action leads from the
frame src_id to tgt_id; -1 stands for no frame. Where the numbers of frames have
a gap, a new clip begins. An instance is a source. Folders of several games have
one such folder for each game, which are all read.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av import error as av_error
from av.video import reformatter
from PIL import Image, UnidentifiedImageError

from data_pipelines.imports import clips as clips_lib

_FPS = 15
_SUFFIXES = (".jpg", ".jpeg", ".png")
_FILM = "frames.mp4"


def list_clips(
  folder: pathlib.Path, size: tuple[int, int] | None
) -> clips_lib.Listing:
  """Lists the sessions of a folder; one picture of each is opened."""
  del size
  clips, skipped = [], []
  found = sorted(folder.rglob("actions.json"), key=clips_lib.natural)
  for path in found:
    session = path.parent
    name = str(session.relative_to(folder))
    try:
      steps = _steps(path)
      frames = _frames(session)
      shape = _shape(session, frames)
      for number, (ids, actions) in enumerate(_runs(steps, frames)):
        clips.append(
          clips_lib.Clip(
            source=str(session.parent.relative_to(folder)),
            name=f"{name} clip {number}",
            length=len(ids),
            frame_shape=shape,
            split=None,
            actions=actions,
            place=(name, ids),
          )
        )
    # First: an error of libav is also a ValueError, with less to say.
    except (OSError, av_error.FFmpegError) as error:
      skipped.append((name, error.strerror or str(error)))
    except (
      ValueError,
      KeyError,
      TypeError,
      AttributeError,
      Image.DecompressionBombError,
    ) as error:
      skipped.append((name, " ".join(str(error).split())[:160]))
  return clips_lib.Listing(clips, skipped, _FPS)


def read(folder: pathlib.Path, clip: clips_lib.Clip) -> np.ndarray:
  """Returns the frames of a clip."""
  name, ids = clip.place
  session = folder / name
  path = session
  try:
    frames = _frames(session)
    if frames is None:
      path = session / _FILM
      return _film(path, ids)
    out = []
    for number in ids:
      path = frames[number]
      with Image.open(path) as image:
        out.append(np.asarray(image.convert("RGB")))
      if out[-1].shape != clip.frame_shape:
        raise ValueError(
          f"it has the shape {list(out[-1].shape)}, the session's first frame "
          f"{list(clip.frame_shape)}"
        )
    return np.stack(out)
  except (
    OSError,
    ValueError,
    LookupError,
    SyntaxError,
    Image.DecompressionBombError,
    av_error.FFmpegError,
  ) as error:
    raise clips_lib.damaged(path, error) from error


def _steps(path: pathlib.Path) -> dict[int, tuple[int, clips_lib.Action]]:
  """Returns source frame -> (target frame, action)."""
  try:
    rows = json.loads(path.read_bytes())
  except (ValueError, RecursionError) as error:
    raise ValueError(f"actions.json is not JSON ({error})") from error
  if isinstance(rows, dict):
    rows = rows.get("actions")
  if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
    raise ValueError("actions.json has no list of actions")
  steps = {}
  for row in rows:
    begin = row.get("src_id", row.get("src_frame_id"))
    end = row.get("tgt_id", row.get("tgt_frame_id"))
    if not isinstance(begin, int) or not isinstance(end, int):
      raise ValueError("an action in actions.json has no numbers of frames")
    if begin >= 0 and end >= 0:
      steps[begin] = (end, _action(row["action"]))
  return steps


def _action(value: Any) -> clips_lib.Action:
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if isinstance(value, list) and value:
    return tuple(_number(part) for part in value)
  return _number(value)


def _number(value: Any) -> int:
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if not isinstance(value, int) or value < 0:
    raise ValueError(f"actions.json has the action {value!s:.40}")
  return int(value)


def _frames(session: pathlib.Path) -> dict[int, pathlib.Path] | None:
  """Returns the pictures by number; None if the session is a film."""
  folder = session / "frames"
  if not folder.is_dir():
    if (session / _FILM).is_file():
      return None
    raise ValueError(f"it has neither frames nor {_FILM}")
  return {
    int(path.stem): path
    for path in sorted(folder.iterdir())
    if path.suffix.lower() in _SUFFIXES and path.stem.isdecimal()
  }


def _shape(
  session: pathlib.Path, frames: dict[int, pathlib.Path] | None
) -> tuple[int, int, int]:
  if frames is None:
    with av.open(str(session / _FILM)) as container:
      if not container.streams.video:
        raise ValueError(f"{_FILM} has no pictures")
      stream = container.streams.video[0]
      return (stream.height, stream.width, 3)
  if not frames:
    raise ValueError("frames has no pictures")
  try:
    with Image.open(next(iter(frames.values()))) as image:
      return (image.height, image.width, 3)
  except UnidentifiedImageError as error:
    raise ValueError("its first frame is no picture") from error


def _runs(
  steps: dict[int, tuple[int, clips_lib.Action]],
  frames: dict[int, pathlib.Path] | None,
) -> Iterator[tuple[range, tuple[clips_lib.Action, ...]]]:
  """Yields the numbers of frames that follow each other, and their actions.

  A run's last frame has no action of its own; it repeats the one before.
  """
  ids = range(0)
  actions: list[clips_lib.Action] = []
  for begin in sorted(steps):
    end, action = steps[begin]
    if end != begin + 1 or (
      frames is not None and not {begin, end} <= frames.keys()
    ):
      continue
    if actions and ids[-1] != begin:
      yield ids, (*actions, actions[-1])
      actions = []
    ids = range(ids.start if actions else begin, end + 1)
    actions.append(action)
  if actions:
    yield ids, (*actions, actions[-1])


def _film(path: pathlib.Path, ids: range) -> np.ndarray:
  """Returns frames of a film by number."""
  found = {}
  converter = reformatter.VideoReformatter()
  with av.open(str(path)) as container:
    for number, picture in enumerate(container.decode(video=0)):
      if number in ids:
        found[number] = converter.reformat(picture, format="rgb24").to_ndarray()
      if number >= ids[-1]:
        break
  if ids[-1] not in found:
    raise ValueError(
      f"it has fewer than the {ids[-1] + 1} frames that actions.json names"
    )
  return np.stack([found[number] for number in ids])


FORMAT = clips_lib.Format("GenieRedux", list_clips, read)
