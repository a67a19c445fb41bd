"""What an earlier call of `genie tokenize` left behind.

While it writes, a token folder holds `.progress/`: the request, and a note for
each finished shard. The manifest, written last, replaces them.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

from genie_jax.core import errors, files
from genie_jax.data import manifest as manifest_lib

FOLDER = ".progress"

Key = tuple[str, str]  # Split and file name of a shard.
Entry = dict[str, Any]  # Its part of the manifest.


def begin(out: pathlib.Path, request: dict[str, Any]) -> None:
  """Notes what is asked for, and clears what a killed writer left."""
  files.write_json(out / FOLDER / "request.json", request)
  for left in out.glob("*/.*.tmp"):
    left.unlink()


def note(out: pathlib.Path, key: Key, entry: Entry) -> None:
  """Notes that a shard is finished."""
  files.write_json(out / FOLDER / key[0] / f"{key[1]}.json", entry)


def earlier(out: pathlib.Path, request: dict[str, Any]) -> dict[Key, Entry]:
  """Returns entries of shards that earlier calls finished.

  Args:
    out: The token folder.
    request: The manifest to be, without its splits.

  Raises:
    UserError: The folder holds something else.
  """
  begun = out / FOLDER / "request.json"
  entries = {}
  if (out / manifest_lib.FILE_NAME).exists():
    manifest = manifest_lib.Manifest.read(out)
    found = dataclasses.replace(manifest, splits={}).to_dict()
    entries = {
      (split, entry["file"]): entry
      for split, summary in manifest.splits.items()
      for entry in summary["shards"]
    }
  elif begun.exists():
    found = files.read_json(begun)
  elif out.is_dir() and any(path.name != FOLDER for path in out.iterdir()):
    raise errors.UserError(
      f"--out {out} is not empty and holds no tokens; give a new or empty "
      "folder."
    )
  else:
    return {}
  old, new = _dotted(found), _dotted(request)
  different = [
    f"{name} {_brief(old.get(name))} there, {_brief(new.get(name))} now"
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]
  if different:
    raise errors.UserError(
      f"--out {out} was begun with other models, clips or options "
      f"({'; '.join(different[:4])}); give the same ones to go on, or "
      "another folder."
    )
  for path in (out / FOLDER).glob("*/*.json"):
    entries[path.parent.name, path.stem] = files.read_json(path)
  return entries


def still_whole(
  out: pathlib.Path, keys: Iterable[Key], entries: dict[Key, Entry]
) -> dict[Key, Entry]:
  """Returns the entries whose shard is there with the bytes they state."""
  whole = {}
  for key in keys:
    path = out / key[0] / key[1]
    if (
      key in entries
      and path.is_file()
      and (files.sha256(path) == entries[key]["sha256"])
    ):
      whole[key] = entries[key]
      note(out, key, entries[key])
  return whole


def _dotted(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for name, value in fields.items():
    if isinstance(value, dict) and value:
      flat |= _dotted(value, f"{prefix}{name}.")
    else:
      flat[f"{prefix}{name}"] = value
  return flat


def _brief(value: Any) -> str:
  text = str(value)
  return f"{text[:12]}..." if len(text) > 32 else text
