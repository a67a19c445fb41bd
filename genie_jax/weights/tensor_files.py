"""Reads and writes tensors on disk, a piece at a time.

A folder contains `model.safetensors`, or `model-00001-of-00003.safetensors` and
so on with `model.safetensors.index.json`, which maps each tensor's name to its
file. A tensor larger than the size limit of a file is split along its first
axis into pieces named "<name>[<start>:<stop>]". This module imports no JAX.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from genie_jax.core import errors, files
from genie_jax.weights import lazy_array

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000

# Names of the supported types in safetensors and in numpy.
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "I8": "int8"}
_CODES = {name: code for code, name in _DTYPES.items()}
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_PIECE = re.compile(r"(?P<name>.+)\[(?P<start>\d{1,12}):(?P<stop>\d{1,12})\]")
# safetensors pads its header so that tensors begin at a multiple of this.
_ALIGNMENT = 8
_BLOCK_BYTES = 1 << 20  # Read at once for a fingerprint.


Deferred = lazy_array.Deferred


@dataclasses.dataclass(frozen=True)
class _Piece:
  """Rows `start` to `stop` of a tensor, in an open file."""

  start: int
  stop: int
  path: pathlib.Path
  file: Any
  name: str


class Stored(lazy_array.Lazy):
  """A tensor in one or more memory-mapped files; indexing reads that part."""

  def __init__(self, shape: tuple[int, ...], code: str, parts: list[_Piece]):
    """Joins pieces, in order and without gaps; `code` is the type's code."""
    super().__init__(shape, _DTYPES[code], (1,) * len(shape))
    self._pieces = parts

  @property
  def dtype(self) -> np.dtype:
    if self._dtype == "bfloat16":
      # Imported here, because PyTorch has its own bfloat16.
      import ml_dtypes

      return np.dtype(ml_dtypes.bfloat16)
    return super().dtype

  def places(self) -> list[tuple[pathlib.Path, str]]:
    """Returns the file and the name there of each piece, in order."""
    return [(piece.path, piece.name) for piece in self._pieces]

  def fingerprint_line(self, name: str) -> bytes:
    """Returns what `fingerprint` reads of the tensor besides its values."""
    return f"{name} {self._dtype} {tuple(self.shape)}\n".encode()

  def __getitem__(self, index: Any) -> np.ndarray:
    index = index if isinstance(index, tuple) else (index,)
    if not self.shape:
      return self._pieces[0].file.get_tensor(self._pieces[0].name)
    first, *rest = index or (slice(None),)
    start, stop, _ = first.indices(self.shape[0])
    parts = [
      piece.file.get_slice(piece.name)[
        (
          slice(
            max(start, piece.start) - piece.start,
            min(stop, piece.stop) - piece.start,
          ),
          *rest,
        )
      ]
      for piece in self._pieces
      if max(start, piece.start) < min(stop, piece.stop)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

  def blocks(self) -> Iterator[np.ndarray]:
    """Yields the tensor's pieces in order, as stored in the files."""
    for piece in self._pieces:
      yield piece.file.get_tensor(piece.name)

  def in_order(self) -> Iterator[np.ndarray]:
    # Plain reads: pages of a mapped file would count as memory of the process.
    for piece in self._pieces:
      with open(piece.path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(size))[piece.name]["data_offsets"]
        file.seek(8 + size + start)
        for begin in range(start, stop, lazy_array.PIECE_BYTES):
          yield np.frombuffer(
            file.read(min(lazy_array.PIECE_BYTES, stop - begin)), self.dtype
          )

  def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
    whole = list(self.blocks())
    whole = whole[0] if len(whole) == 1 else np.concatenate(whole)
    return np.asarray(whole, dtype)


def exist(folder: files.PathLike) -> bool:
  """Returns whether a folder contains tensors."""
  folder = pathlib.Path(folder)
  return (folder / WHOLE).is_file() or (folder / INDEX).is_file()


def names(folder: files.PathLike) -> list[str]:
  """Returns the names of the files with a folder's tensors."""
  folder = pathlib.Path(folder)
  if (folder / INDEX).is_file():
    return sorted({INDEX, *_weight_map(folder).values()})
  return [WHOLE]


def read(folder: files.PathLike, framework: str = "np") -> dict[str, Stored]:
  """Opens all tensors of a folder; no data is read yet.

  Args:
    folder: The folder.
    framework: "np", or "pt" to read blocks as PyTorch tensors.

  Returns:
    Name -> tensor, in the order of `param_tree.flatten`.

  Raises:
    UserError: A file is missing, is not a complete safetensors file, or
      disagrees with the index.
  """
  folder = pathlib.Path(folder)
  if (folder / INDEX).is_file():
    placed = _weight_map(folder)
    opened = {
      name: _open(folder / name, framework) for name in set(placed.values())
    }
    found = {
      (name, file)
      for file, handle in opened.items()
      for name in handle.offset_keys()
    }
    if wrong := sorted(found ^ set(placed.items())):
      raise errors.UserError(
        f"{folder / INDEX} and the files next to it disagree about tensor "
        f"{wrong[0][0]!r}; copy or export them again."
      )
    places = {
      name: (folder / file, opened[file]) for name, file in placed.items()
    }
  else:
    handle = _open(folder / WHOLE, framework)
    places = dict.fromkeys(handle.offset_keys(), (folder / WHOLE, handle))
  return _join(folder, places)


def write(
  folder: files.PathLike,
  tensors: Mapping[str, Any],
  *,
  metadata: Mapping[str, str] | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes tensors, with one piece of a tensor in memory at a time.

  Args:
    folder: Created if missing; should not contain tensors yet.
    tensors: Name -> array or `lazy_array.Lazy`; float32, bfloat16 or int8.
      A lazy array that can only be read whole is in memory whole.
    metadata: Text fields for the header of each file.
    shard_bytes: Largest size of the tensors in one file, in bytes.

  Raises:
    UserError: One row of a tensor is larger than the limit.
    OSError: The disk is full.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  shards: list[list[_Entry]] = [[]]
  room = shard_bytes
  for entry in _entries(tensors, shard_bytes):
    if entry.num_bytes > room and shards[-1]:
      shards.append([])
      room = shard_bytes
    shards[-1].append(entry)
    room -= entry.num_bytes
  names = (
    [WHOLE]
    if len(shards) == 1
    else [
      f"model-{number:05d}-of-{len(shards):05d}.safetensors"
      for number in range(1, len(shards) + 1)
    ]
  )
  temporaries = {name: files.temporary_sibling(folder / name) for name in names}
  try:
    places: dict[str, list[_Place]] = {}
    for name, shard in zip(names, shards, strict=True):
      for place in _write_header(temporaries[name], shard, metadata or {}):
        places.setdefault(place.entry.tensor, []).append(place)
    # By tensor, not by file, so that no tensor is read twice if it is split.
    for name in sorted(tensors, key=order):
      _write_tensor(tensors[name], places[name])
    for name, temporary in temporaries.items():
      with open(temporary, "rb") as file:
        os.fsync(file.fileno())
      os.replace(temporary, folder / name)
  finally:
    for temporary in temporaries.values():
      temporary.unlink(missing_ok=True)
  if len(shards) > 1:
    total = sum(entry.num_bytes for shard in shards for entry in shard)
    files.write_json(
      folder / INDEX,
      {
        "metadata": {"total_size": total},
        "weight_map": {
          entry.name: name
          for name, shard in zip(names, shards, strict=True)
          for entry in shard
        },
      },
    )


def order(name: str) -> tuple[str, ...]:
  """Returns the sort key of a name, for the order of `param_tree.flatten`."""
  return tuple(name.split("/"))


def fingerprint(tensors: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of tensors, as docs/world_format.md defines it.

  Args:
    tensors: Name -> array or `lazy_array.Lazy`, read piece by piece.
  """
  digest = hashlib.sha256()
  for name in sorted(tensors, key=order):
    tensor = tensors[name]
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    for block in lazy_array.in_order(tensor):
      digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def stored_fingerprint(tensors: Mapping[str, Stored]) -> str:
  """Returns `fingerprint` of stored tensors, from the bytes of their files.

  Needs no numpy type, so that PyTorch's users need no package for bfloat16.
  """
  digest = hashlib.sha256()
  places: dict[pathlib.Path, tuple[int, dict[str, Any]]] = {}
  for name in sorted(tensors, key=order):
    digest.update(tensors[name].fingerprint_line(name))
    for path, piece in tensors[name].places():
      if path not in places:
        places[path] = _read_header(path)
      first, header = places[path]
      start, stop = header[piece]["data_offsets"]
      with open(path, "rb") as file:
        file.seek(first + start)
        for begin in range(start, stop, _BLOCK_BYTES):
          digest.update(file.read(min(_BLOCK_BYTES, stop - begin)))
  return digest.hexdigest()


def _read_header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
  """Returns where the data of a safetensors file begins, and its header."""
  with open(path, "rb") as file:
    length = int.from_bytes(file.read(8), "little")
    return 8 + length, json.loads(file.read(length))


@dataclasses.dataclass(frozen=True)
class _Entry:
  """One entry of a file's header: a tensor or a piece of it."""

  name: str
  tensor: str
  rows: tuple[int, int] | None
  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def num_bytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def _entries(tensors: Mapping[str, Any], limit: int) -> Iterator[_Entry]:
  for name in sorted(tensors, key=order):
    shape, dtype = tuple(tensors[name].shape), np.dtype(tensors[name].dtype)
    whole = _Entry(name, name, None, shape, dtype)
    if whole.num_bytes <= limit:
      yield whole
      continue
    rows = limit // (whole.num_bytes // shape[0]) if shape else 0
    if not rows:
      raise errors.UserError(
        f"Files of {limit} bytes are too small for one row of {name} "
        f"{list(shape)}; allow larger files."
      )
    for start in range(0, shape[0], rows):
      stop = min(start + rows, shape[0])
      yield _Entry(
        f"{name}[{start}:{stop}]",
        name,
        (start, stop),
        (stop - start, *shape[1:]),
        dtype,
      )


@dataclasses.dataclass(frozen=True)
class _Place:
  """The file and offset at which the bytes of an entry begin."""

  entry: _Entry
  path: pathlib.Path
  offset: int


def _write_header(
  path: pathlib.Path, entries: list[_Entry], metadata: Mapping[str, str]
) -> list[_Place]:
  # Like safetensors' own writer: with larger items first, tensors are aligned.
  entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
  header: dict[str, Any] = {"__metadata__": dict(metadata)}
  starts, end = [], 0
  for entry in entries:
    starts.append(end)
    end += entry.num_bytes
    header[entry.name] = {
      "dtype": _CODES[entry.dtype.name],
      "shape": list(entry.shape),
      "data_offsets": [starts[-1], end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % _ALIGNMENT)
  path.write_bytes(len(text).to_bytes(8, "little") + text)
  return [
    _Place(entry, path, 8 + len(text) + start)
    for entry, start in zip(entries, starts, strict=True)
  ]


def _write_tensor(tensor: Any, places: list[_Place]) -> None:
  """Writes each box of a tensor to the places of its rows in the files."""
  count = 0
  for box, block in lazy_array.each(tensor):
    assert block.dtype == tensor.dtype, (block.dtype, tensor.dtype)
    for place in places:
      here, part = box, block
      if place.entry.rows is not None:
        start, stop = place.entry.rows
        first, last = max(start, box[0].start), min(stop, box[0].stop)
        if first >= last:
          continue
        here = (slice(first - start, last - start), *box[1:])
        part = block[first - box[0].start : last - box[0].start]
      lazy_array.write(place.path, place.offset, place.entry.shape, here, part)
    count += block.size
    del block, part  # Freed before the next block is read.
  assert count == math.prod(tensor.shape), (count, tensor.shape)


def _open(path: pathlib.Path, framework: str) -> Any:
  if not path.is_file():
    raise errors.UserError(
      f"{path} does not exist; give the folder of a saved model."
    )
  try:
    return safetensors.safe_open(path, framework)
  except (safetensors.SafetensorError, ValueError, OSError) as error:
    raise errors.UserError(
      f"{path} is not a whole safetensors file "
      f"({' '.join(str(error).split())}); copy or export it again."
    ) from (error)


def _weight_map(folder: pathlib.Path) -> dict[str, str]:
  path = folder / INDEX
  found = files.read_json(path)
  placed = found.get("weight_map") if isinstance(found, dict) else None
  if (
    not isinstance(placed, dict)
    or not placed
    or not all(
      isinstance(name, str) and _SHARD.fullmatch(name)
      for name in placed.values()
    )
  ):
    raise errors.UserError(
      f"{path} does not map names of tensors to files such as "
      "model-00001-of-00002.safetensors; copy or export it again."
    )
  return placed


def _join(folder: pathlib.Path, places: Mapping[str, Any]) -> dict[str, Stored]:
  """Joins the pieces of each tensor."""
  groups: dict[str, list[tuple[_Piece, Any]]] = {}
  for name, (path, handle) in places.items():
    try:
      piece = handle.get_slice(name)
      shape, code = tuple(piece.get_shape()), piece.get_dtype()
    except (safetensors.SafetensorError, TypeError) as error:
      raise errors.UserError(
        f"{folder}: tensor {name!r} cannot be read "
        f"({' '.join(str(error).split())}); export it again."
      ) from error
    if code not in _DTYPES:
      raise errors.UserError(
        f"{folder}: tensor {name!r} is of type {code}, but a world may only "
        f"have {', '.join(_DTYPES)}; export it again."
      )
    cut = _PIECE.fullmatch(name)
    start, stop = (
      (int(cut["start"]), int(cut["stop"]))
      if cut
      else (0, shape[0] if shape else 0)
    )
    groups.setdefault(cut["name"] if cut else name, []).append(
      (_Piece(start, stop, path, handle, name), (shape, code))
    )
  return {
    name: _joined(folder, name, groups[name])
    for name in sorted(groups, key=order)
  }


def _joined(folder: pathlib.Path, name: str, group: list[Any]) -> Stored:
  group = sorted(group, key=lambda pair: pair[0].start)
  (shape, code), expected = group[0][1], 0
  for piece, (own, own_code) in group:
    scalar = not own and len(group) == 1
    fits = scalar or own[:1] == (piece.stop - piece.start,)
    if (
      not fits
      or piece.start != expected
      or own_code != code
      or (own[1:] != shape[1:])
    ):
      raise errors.UserError(
        f"{folder}: the pieces of tensor {name!r} do not fit together; copy "
        "or export it again."
      )
    expected = piece.stop
  return Stored(
    (expected, *shape[1:]) if shape else (), code, [piece for piece, _ in group]
  )
