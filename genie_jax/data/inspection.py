"""Verifies every byte and record of a folder, and selects frames to view."""

import itertools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from genie_jax.core import errors, files
from genie_jax.data import counterfactuals, shards, sources, stored_frames
from genie_jax.data import manifest as manifest_lib

# Number of records read by one call: about 13 MB of frames.
_RECORDS_AT_ONCE = 64


def describe(manifest: manifest_lib.Manifest) -> str:
  """Returns a human-readable description of a manifest.

  Its first line is the number of clips of all splits together. A clip is one
  episode row: frames of one source without a gap or a reset. In a token folder
  a record is one, because it encodes one clip.
  """
  fields = manifest.to_dict()
  splits, made_by = fields.pop("splits"), fields.pop("made_by")
  rows = sum(
    len(entry["episodes"])
    for split in splits.values()
    for entry in split["shards"]
  )
  kind = "moments" if manifest.kind == counterfactuals.KIND else "clips"
  lines = [f"{rows} {kind}"]
  if manifest.kind == "clips":
    fields.setdefault("frames_codec", None)
  lines += [f"{name}: {value}" for name, value in fields.items()]
  lines.append(f"fingerprint: {manifest.fingerprint}")
  for name, split in splits.items():
    size = sum(entry["bytes"] for entry in split["shards"])
    episodes = [row for entry in split["shards"] for row in entry["episodes"]]
    lines.append(
      f"{name}: {len({row[0] for row in episodes})} sources, "
      f"{len(episodes)} episodes, {split['records']} records, "
      f"{split['frames']} frames in {len(split['shards'])} shards of "
      f"{size / 2**20:.1f} MiB ({size / max(1, split['frames']):.0f} bytes "
      "a frame)"
    )
  lines += [f"made by: {name}: {value}" for name, value in made_by.items()]
  return "\n".join(lines)


def verify(
  manifest: manifest_lib.Manifest,
  tick: Callable[[int], object] = lambda records: None,
) -> None:
  """Reads all data of a folder and compares it with the manifest.

  Args:
    manifest: The manifest, read from the folder.
    tick: Called with the number of records checked since the last call.

  Raises:
    UserError: A shard's SHA-256, or a record's checksum, shape, position or
      content is wrong; the message names the first error.
  """
  for split, summary in manifest.splits.items():
    if not summary["shards"]:
      continue
    frames = 0
    for path, entry in manifest.shards(split):
      reader = shards.ShardReader(path, entry)
      reader.open()
      found = files.sha256(path)
      if found != entry["sha256"]:
        raise errors.UserError(
          f"{path} has sha256 {found[:12]}, but its manifest says "
          f"{entry['sha256'][:12]}; copy or write the folder again."
        )
      check = _checker(manifest, path, entry)
      for number, (arrays, meta) in enumerate(_read_all(reader, tick)):
        frames += check(number, arrays, meta, f"{path} record {number}")
    records = sum(entry["records"] for entry in summary["shards"])
    for name, value in (("records", records), ("frames", frames)):
      if value != summary[name]:
        raise errors.UserError(
          f"{manifest.folder}: split {split!r} has {value} {name}, but "
          f"its manifest says {summary[name]}; write the folder again."
        )


_Check = Callable[[int, dict[str, np.ndarray], dict[str, Any], str], int]


def _checker(
  manifest: manifest_lib.Manifest, path: pathlib.Path, entry: dict[str, Any]
) -> _Check:
  """Returns what checks record `number` of a shard and counts its frames."""
  if manifest.kind == "tokens":
    return lambda number, arrays, meta, where: _check_tokens(
      manifest, arrays, where
    )
  if manifest.kind == "clips" and "selected" in manifest.made_by:
    chosen = _selected_places(manifest, path, entry)
    return lambda number, arrays, meta, where: (
      _check_selected(manifest, arrays, meta, chosen[number], where)
      if number in chosen
      else 0
    )
  if manifest.kind == "clips":
    places = _clip_places(manifest, path, entry)
    return lambda number, arrays, meta, where: (
      _check_clip(manifest, arrays, meta, places[number], where)
      if number in places
      else 0
    )
  rows = {row[1]: row for row in entry["episodes"]}
  if sorted(rows) != list(range(entry["records"])):
    raise errors.UserError(
      f"The manifest's moments of {path} are not its {entry['records']} "
      "records; write the folder again."
    )
  return lambda number, arrays, meta, where: counterfactuals.check(
    manifest, arrays, meta, where, rows[number]
  )


def _read_all(
  reader: shards.ShardReader,
  tick: Callable[[int], object],
) -> Iterable[tuple[dict[str, np.ndarray], dict[str, Any]]]:
  for start in range(0, len(reader), _RECORDS_AT_ONCE):
    found = reader.read(
      range(start, min(start + _RECORDS_AT_ONCE, len(reader)))
    )
    yield from found
    tick(len(found))


def _clip_places(
  manifest: manifest_lib.Manifest,
  path: pathlib.Path,
  entry: dict[str, Any],
) -> dict[int, tuple[int, int, list[bool]]]:
  """Returns each record's source, start and flags from the episode table.

  Records that no episode has belong to clips that were left out.
  """
  size, next_record = manifest.frames_per_record, 0
  places = {}
  run = lambda row: (row[0], row[1])
  rows = sorted(entry["episodes"], key=lambda row: row[1])
  for (source, first_record), group in itertools.groupby(rows, run):
    starts = {row[2]: row[3] for row in group}
    total, frame = 0, 0
    while frame in starts:  # Each episode must begin where another ends.
      total = frame = frame + starts[frame]
    if first_record < next_record or total != sum(starts.values()):
      raise errors.UserError(
        f"The manifest's episodes of source {source} in {path} leave gaps "
        "or overlap; write the folder again."
      )
    flags = [frame in starts for frame in range(total)]
    for number, start in enumerate(range(0, total, size), start=first_record):
      places[number] = (source, start, flags[start : start + size])
      next_record = number + 1
  if next_record > entry["records"]:
    raise errors.UserError(
      f"The manifest's episodes of {path} fill {next_record} records, but "
      f"it has {entry['records']}; write the folder again."
    )
  return places


def _selected_places(
  manifest: manifest_lib.Manifest,
  path: pathlib.Path,
  entry: dict[str, Any],
) -> dict[int, tuple[int, int, dict[int, bool]]]:
  """Returns the source, the start and the selected frames of each record.

  In a folder that `genie data select` made, an episode may be a part of a
  longer one whose other frames were left out. A selected frame is given as its
  number in the record, with whether an episode begins at it.
  """
  size = manifest.frames_per_record
  places: dict[int, tuple[int, int, dict[int, bool]]] = {}
  for source, record, first, length in entry["episodes"]:
    for frame in range(first, first + length):
      number = record + frame // size
      place = places.setdefault(number, (source, frame // size * size, {}))
      if (
        place[:2] != (source, frame // size * size)
        or frame % size in place[2]
        or number >= entry["records"]
      ):
        raise errors.UserError(
          f"The manifest's episodes of source {source} in {path} overlap or go "
          "beyond its records; write the folder again."
        )
      place[2][frame % size] = frame == first
  return places


def _check_selected(
  manifest: manifest_lib.Manifest,
  arrays: dict[str, np.ndarray],
  meta: dict[str, Any],
  place: tuple[int, int, dict[int, bool]],
  where: str,
) -> int:
  """Checks the selected frames of a record; returns their number."""
  source, start, chosen = place
  _needs(
    where, "source and start", (meta["source"], meta["start"]), (source, start)
  )
  frames = _frames(manifest, arrays, meta, where)
  _needs(where, "frames", frames.shape[1:], tuple(manifest.frame_shape))
  if max(chosen) >= len(frames):
    raise errors.UserError(
      f"{where} has {len(frames)} frames, but its manifest needs "
      f"{max(chosen) + 1}; write the folder again."
    )
  if "first" in arrays:
    inside = [number for number, begins in chosen.items() if not begins]
    _needs(where, "a new episode inside one", arrays["first"][inside].any(), 0)
  if "actions" in arrays:
    _needs(where, "actions", arrays["actions"].shape, (len(frames),))
    _check_range(where, "actions", arrays["actions"], manifest.num_actions)
  return len(chosen)


def _needs(where: str, what: str, found: Any, needed: Any) -> None:
  if found != needed:
    raise errors.UserError(
      f"{where} has {what} {found}, but its manifest needs {needed}; write "
      "the folder again."
    )


def _check_clip(
  manifest: manifest_lib.Manifest,
  arrays: dict[str, np.ndarray],
  meta: dict[str, Any],
  place: tuple[int, int, list[bool]],
  where: str,
) -> int:
  """Checks one record of frames; returns its number of frames."""
  source, start, flags = place
  _needs(
    where, "source and start", (meta["source"], meta["start"]), (source, start)
  )
  frames = _frames(manifest, arrays, meta, where)
  _needs(where, "frames", frames.shape, (len(flags), *manifest.frame_shape))
  if "first" in arrays:
    found = arrays["first"].tolist()
    if not start:
      # A source's first frame begins an episode, even if earlier frames of the
      # original episode were cut off.
      found[0] = True
    _needs(where, "episode starts", found, flags)
  if "actions" in arrays:
    _needs(where, "actions", arrays["actions"].shape, (len(flags),))
    _check_range(where, "actions", arrays["actions"], manifest.num_actions)
  return len(flags)


def _check_tokens(
  manifest: manifest_lib.Manifest,
  arrays: dict[str, np.ndarray],
  where: str,
) -> int:
  """Checks one token record; returns the number of encoded frames."""
  count, grid = manifest.num_frames, manifest.token_grid
  assert count is not None and grid is not None  # Every token folder has both.
  _needs(where, "tokens", arrays["tokens"].shape, (count, *grid))
  _check_range(where, "tokens", arrays["tokens"], manifest.num_codes)
  for name, size in (
    ("actions", manifest.num_actions),
    ("latent_actions", manifest.num_latent_actions),
  ):
    if name in arrays:
      _needs(where, name, arrays[name].shape, (count - 1,))
      _check_range(where, name, arrays[name], size)
  if "frames" in arrays:
    _needs(
      where, "frames", arrays["frames"].shape, (count, *manifest.frame_shape)
    )
  return count


def _frames(
  manifest: manifest_lib.Manifest,
  arrays: dict[str, np.ndarray],
  meta: dict[str, Any],
  where: str,
) -> np.ndarray:
  """Returns all frames of a record of clips."""
  return stored_frames.load(
    arrays, meta, manifest.frames_codec, manifest.frame_shape, where=where
  )


def _check_range(
  where: str,
  name: str,
  values: np.ndarray,
  size: int | None,
) -> None:
  if (
    size is not None
    and values.size
    and not (values.min() >= 0 and values.max() < size)
  ):
    raise errors.UserError(
      f"{where} has {name} from {values.min()} to {values.max()}, but its "
      f"manifest has {size} of them; write the folder again."
    )


def contact_rows(
  manifest: manifest_lib.Manifest,
  rows: int = 8,
  columns: int = 12,
) -> dict[str, np.ndarray]:
  """Returns frames of several sources, for a contact sheet.

  Args:
    manifest: The manifest, read from the folder.
    rows: Maximum number of rows of each split, evenly spaced: sources of games,
      clips of videos, records of tokens.
    columns: Maximum number of frames of each row, evenly spaced over a source's
      first episode or a clip, or over a record (tokens). For counterfactuals,
      the frame of a moment and the last frames of its distinct futures.

  Returns:
    Label -> uint8 [t, H, W, 3]; tokens stored without frames are drawn with one
    colour for each code.
  """
  picked = {}
  for split, summary in manifest.splits.items():
    if not summary["shards"]:
      continue
    pick = {
      "tokens": _token_rows,
      "clips": _clip_rows,
      counterfactuals.KIND: _moment_rows,
    }[manifest.kind]
    for name, frames in pick(manifest, split, rows):
      places = np.linspace(0, len(frames) - 1, min(columns, len(frames)))
      picked[f"{split} {name}"] = frames[places.astype(int)]
  return picked


def _spread(items: list[Any], count: int) -> list[Any]:
  places = np.linspace(0, len(items) - 1, min(count, len(items)))
  return [items[place] for place in places.astype(int)]


def _clip_rows(
  manifest: manifest_lib.Manifest,
  split: str,
  rows: int,
) -> Iterable[tuple[str, np.ndarray]]:
  size = manifest.frames_per_record
  episodes = [
    (path, entry, row)
    for path, entry in manifest.shards(split)
    for row in entry["episodes"]
    if row[2] == 0
  ]
  shown = set()
  for path, entry, (source, record, _, length) in _spread(episodes, rows):
    numbers = range(record, record + -(-length // size))
    found = shards.ShardReader(path, entry).read(numbers)
    frames = np.concatenate(
      [
        _frames(manifest, arrays, meta, f"{path} record {number}")
        for number, (arrays, meta) in zip(numbers, found, strict=True)
      ]
    )
    # A video may have many clips.
    name = f"{source} record {record}" if source in shown else str(source)
    shown.add(source)
    yield name, frames[:length]


def _token_rows(
  manifest: manifest_lib.Manifest,
  split: str,
  rows: int,
) -> Iterable[tuple[str, np.ndarray]]:
  assert manifest.folder is not None and manifest.num_codes is not None
  source = sources.TokenSource(manifest.folder, split)
  colours = np.random.default_rng(0).integers(
    0, 256, (manifest.num_codes, 3), dtype=np.uint8
  )
  for index in _spread(list(range(len(source))), rows):
    element = source[index]
    frames = element.get("frames")
    yield (
      f"{element['source']} frame {element['start']}",
      (colours[element["tokens"]] if frames is None else frames),
    )


def _moment_rows(
  manifest: manifest_lib.Manifest,
  split: str,
  rows: int,
) -> Iterable[tuple[str, np.ndarray]]:
  moments = [
    (path, entry, row)
    for path, entry in manifest.shards(split)
    for row in entry["episodes"]
  ]
  for path, entry, (source, record, step, _) in _spread(moments, rows):
    arrays, _ = shards.ShardReader(path, entry).read([record])[0]
    yield (
      f"{source} frame {step}",
      np.concatenate([arrays["history"][-1:], arrays["distinct"][:, -1]]),
    )
