"""Messages between the page and the server, as described in docs/play.md.

The page sends JSON messages. The server sends JSON messages and binary
messages: a header of 16 bytes, followed by a picture or a video.
"""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from genie_jax.core import errors

VERSION = 1
MAX_MESSAGE_BYTES = 128 * 1024  # Enough for the actions of a whole run.
MAX_ACTIONS = 20_000  # Frames of one run.
MAX_COMPARED = 32  # Frames of one comparison.
MAX_RECORDED = 1_200  # Frames of one video.
MAX_FILM_PIXELS = 256_000_000  # In all frames of a video, which are in memory.
MAX_FILM_BYTES = 16 << 20  # Of an encoded video.
MAX_NUMBER = 2**32 - 1  # Of seeds, sequence numbers and runs.
NO_ACTION = 0xFFFF

FRAME, COMPARED, FILM = 1, 2, 3  # Kinds of binary messages.
_HEADER = struct.Struct("<BBHIII")


class Malformed(ValueError):
  """A message that violates the protocol; the text is one line."""


class Header(NamedTuple):
  """The first sixteen bytes of a binary message, little-endian.

  Attributes:
    version: uint8, version of the protocol.
    kind: uint8, FRAME, COMPARED or FILM.
    action: uint16, the action that led to a frame, NO_ACTION for a prompt.
      For a video: 0 for a GIF, 1 for an MP4.
    run: uint32, increases with every start, rewind, branch and switch.
    frame: uint32, the frame's number; the prompt is frame 0. In a comparison,
      frames are numbered from 1, after the frame where it starts.
    seq: uint32, sequence number of the action that made the frame, 0 if none.
  """

  version: int
  kind: int
  action: int
  run: int
  frame: int
  seq: int


def pack(
  kind: int,
  content: bytes,
  *,
  action: int = NO_ACTION,
  run: int = 0,
  frame: int = 0,
  seq: int = 0,
) -> bytes:
  """Returns a binary message."""
  return _HEADER.pack(VERSION, kind, action, run, frame, seq) + content


def unpack(message: bytes) -> tuple[Header, bytes]:
  """Returns header and content of a binary message."""
  return Header(*_HEADER.unpack_from(message)), message[_HEADER.size :]


_Check = Callable[[Any], bool]
_REQUIRED = object()


class _Field(NamedTuple):
  """A field of a message: description, check, and default value."""

  meaning: str
  check: _Check
  default: Any = _REQUIRED


def _whole(low: int, high: int, default: Any = _REQUIRED) -> _Field:
  return _Field(
    f"a whole number from {low} to {high}",
    # Not isinstance: a bool (JSON's true) is an int as well.
    lambda value: type(value) is int and low <= value <= high,
    default,
  )


def _word(most: int, default: Any = _REQUIRED) -> _Field:
  return _Field(
    f"a string of at most {most} characters",
    lambda value: isinstance(value, str) and len(value) <= most,
    default,
  )


def _one_of(words: tuple[str, ...], default: Any = _REQUIRED) -> _Field:
  return _Field(
    f"one of {', '.join(words)}",
    lambda value: isinstance(value, str) and value in words,
    default,
  )


_MAX_FRAME = MAX_ACTIONS
_ACTIONS = _Field(
  f"a list of at most {MAX_ACTIONS} actions",
  lambda value: (
    isinstance(value, list)
    and len(value) <= MAX_ACTIONS
    and all(type(x) is int and 0 <= x < NO_ACTION for x in value)
  ),
  (),
)

MESSAGES: Mapping[str, Mapping[str, _Field]] = {
  "hello": {
    "version": _whole(0, MAX_NUMBER),
    "token": _word(64, ""),
    "run": _whole(0, MAX_NUMBER, 0),
    "have": _whole(-1, _MAX_FRAME, -1),
  },
  "start": {
    "prompt": _whole(0, 1_000_000, None),
    "picture": _word(64, None),
    "seed": _whole(0, MAX_NUMBER, 0),
    "actions": _ACTIONS,
  },
  "act": {
    "action": _whole(0, NO_ACTION - 1),
    "seq": _whole(1, MAX_NUMBER),
  },
  "rewind": {"frame": _whole(0, _MAX_FRAME)},
  "branch": {"frame": _whole(0, _MAX_FRAME)},
  "switch": {
    "line": _whole(0, MAX_NUMBER),
    "have": _whole(-1, _MAX_FRAME, -1),
  },
  "compare": {
    "frame": _whole(0, _MAX_FRAME),
    "frames": _whole(1, MAX_COMPARED, 8),
  },
  "record": {
    "format": _one_of(("gif", "mp4")),
    "first": _whole(0, _MAX_FRAME, 0),
    "last": _whole(0, _MAX_FRAME),
    "scale": _whole(1, 16, 4),
    "fps": _whole(1, 60, None),
  },
  "ping": {
    "time": _Field(
      "a number",
      lambda value: type(value) in (int, float) and abs(value) < 1e15,
      0,
    ),
  },
  "stop": {},
}


def parse(text: str) -> dict[str, Any]:
  """Parses and checks a message of a client.

  Args:
    text: JSON.

  Returns:
    "type" and all fields of the message, with defaults for missing ones.

  Raises:
    Malformed: It is not JSON, or not a message of this protocol.
  """
  try:
    found = json.loads(text, parse_constant=_refuse)
  except (ValueError, RecursionError) as error:
    raise Malformed("The message is not JSON.") from error
  if not isinstance(found, dict):
    raise Malformed("A message must be a JSON object with a type.")
  kind = found.pop("type", None)
  if not isinstance(kind, str) or kind not in MESSAGES:
    raise Malformed(
      f"Unknown message type {_short(kind)}; the types are "
      f"{', '.join(MESSAGES)}."
    )
  fields = MESSAGES[kind]
  for name in found:
    if name not in fields:
      raise Malformed(
        f"{kind}: unknown field {_short(name)}"
        f"{errors.closest(name[:40], fields)}."
      )
  message = {"type": kind}
  for name, field in fields.items():
    value = found.get(name, field.default)
    if value is _REQUIRED:
      raise Malformed(f"{kind}: the field {name!r} is missing.")
    if name in found and not field.check(value):
      raise Malformed(
        f"{kind}: {name} is {_short(value)}; it must be {field.meaning}."
      )
    message[name] = value
  if kind == "start" and (message["prompt"] is None) == (
    message["picture"] is None
  ):
    raise Malformed("start: give either a prompt's number or a picture.")
  return message


def _refuse(name: str) -> None:
  raise ValueError(name)


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:40]}..."
