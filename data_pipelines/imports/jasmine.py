"""The folders of Jasmine (p-doom/jasmine, save_chunks and its preprocessors).

  train/, val/, test/       in the data sets of games; else files at the top
    *.array_record          each record a pickle of {"raw_video": bytes,
                            "sequence_length": n, and perhaps "actions" [n],
                            "video_file_name", "environment"}
  metadata.json             {"num_actions": ..., ...}; may be missing

A record is a clip: its neighbour may continue it or not, which nothing says.
Its source is the film that it names, otherwise its file. The action at a frame
is the one taken there, so it leads to the next frame, as in our clips.

A record does not state H and W. They are taken as square, or as 90 x 160 for
the clips of films, which Jasmine scales to that size by default;
`--frame-size` states another one. Pickles are read without being run.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue]  # Binary.
)

from data_pipelines.imports import clips as clips_lib
from data_pipelines.imports import pickles

SUFFIX, METADATA = ".array_record", "metadata.json"
_FILM_SIZE = (90, 160)
_FILM_FPS, _GAME_FPS = 10, 15
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def list_clips(
  folder: pathlib.Path, size: tuple[int, int] | None
) -> clips_lib.Listing:
  """Lists the records of a folder; all are read once."""
  clips, skipped, films = [], [], 0
  for path in sorted(folder.rglob(f"*{SUFFIX}"), key=clips_lib.natural):
    relative = path.relative_to(folder)
    split = next(
      (
        clips_lib.SPLITS[part]
        for part in relative.parts[:-1]
        if part in clips_lib.SPLITS
      ),
      None,
    )
    try:
      for number, row in enumerate(_rows(path)):
        name = f"{relative} record {number}"
        if isinstance(row, str):
          skipped.append((name, row))
          continue
        film = row.get("video_file_name")
        shape, why = _shape(row, size)
        actions, bad = _actions(row)
        if shape is None or bad:
          skipped.append((name, why or bad))
          continue
        films += bool(film or "environment" in row)
        clips.append(
          clips_lib.Clip(
            source=str(film) if film else str(relative),
            name=name,
            length=row["sequence_length"],
            frame_shape=shape,
            split=split,
            actions=actions,
            place=(str(relative), number),
          )
        )
    except (OSError, RuntimeError) as error:
      skipped.append((str(relative), _line(error)))
  fps = _FILM_FPS if films else _GAME_FPS
  return clips_lib.Listing(clips, skipped, fps, _num_actions(folder))


def _num_actions(folder: pathlib.Path) -> int | None:
  """Returns what metadata.json states, None if it states nothing."""
  try:
    found = json.loads((folder / METADATA).read_bytes()).get("num_actions")
  except (OSError, ValueError, AttributeError, RecursionError):
    return None
  return found if isinstance(found, int) and found > 0 else None


def read(folder: pathlib.Path, clip: clips_lib.Clip) -> np.ndarray:
  """Returns the frames of a record."""
  relative, number = clip.place
  path = folder / relative
  try:
    row = pickles.read(_open(path).read([number])[0])
    frames = np.frombuffer(row["raw_video"], np.uint8)
    return frames.reshape(clip.length, *clip.frame_shape)
  except (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
  ) as error:
    raise clips_lib.damaged(path, error) from error


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:160]


def _open(path: pathlib.Path) -> Any:
  """Opens a file.

  Raises:
    RuntimeError: It is damaged.
  """
  reader = array_record_module.ArrayRecordReader(str(path), _OPTIONS)
  if not reader.ok():
    raise RuntimeError("it is no array record, or was cut short")
  return reader


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any] | str]:
  """Yields each record, or what is wrong with it."""
  reader = _open(path)
  for number in range(reader.num_records()):
    try:
      row = pickles.read(reader.read([number])[0])
    except (RuntimeError, ValueError) as error:
      yield _line(error)
      continue
    video = row.get("raw_video") if isinstance(row, dict) else None
    count = row.get("sequence_length") if isinstance(row, dict) else None
    if not isinstance(video, bytes | bytearray) or not isinstance(count, int):
      yield 'it has no "raw_video" and "sequence_length"'
    elif count < 1 or not video or len(video) % count:
      yield f"{len(video)} bytes are not {count} frames"
    else:
      yield row


def _shape(
  row: dict[str, Any], size: tuple[int, int] | None
) -> tuple[tuple[int, int, int] | None, str]:
  """Returns (H, W, 3); or None and what is wrong."""
  values = len(row["raw_video"]) // row["sequence_length"]
  pixels, rest = divmod(values, 3)
  if size is None:
    side = round(pixels**0.5)
    size = (side, side)
    if "video_file_name" in row and pixels == _FILM_SIZE[0] * _FILM_SIZE[1]:
      size = _FILM_SIZE
  if rest or size[0] * size[1] != pixels:
    return None, (
      f"a frame has {values} values, not {size[0]} x {size[1]} x 3; state its "
      "rows and columns with --frame-size"
    )
  return (size[0], size[1], 3), ""


def _actions(
  row: dict[str, Any],
) -> tuple[tuple[clips_lib.Action, ...] | None, str]:
  """Returns the actions of a record, None for none; and what is wrong."""
  if row.get("actions") is None:
    return None, ""
  try:
    found = np.asarray(row["actions"])
    if found.ndim == 2 and found.shape[1] == 1:
      found = found[:, 0]
  except ValueError:
    return None, "its actions are not an array"
  count = row["sequence_length"]
  if found.dtype.kind not in "biu" or found.ndim not in (1, 2):
    return None, f"its actions are {found.dtype} {list(found.shape)}"
  if len(found) != count:
    return None, f"{len(found)} actions for {count} frames"
  if found.ndim == 1:
    return tuple(found.tolist()), ""
  return tuple(map(tuple, found.tolist())), ""


FORMAT = clips_lib.Format("Jasmine", list_clips, read)
