"""The description of a folder of clips, tokens or moments: `manifest.json`.

A reader of a folder first reads its manifest and checks it against the values
that the config needs; an error names both values and the remedy. The manifest
is written last, so a folder whose writer was killed has none, and cannot be
mistaken for complete.

A folder may be in a bucket. Records can only be read from a disk, so the files
that are needed are copied to this machine first, see `mirror`.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from genie_jax.core import buckets, config, errors, files, schema
from genie_jax.data import mirror, stored_frames
from genie_jax.data import shards as shards_lib

SCHEMA_VERSION = 2
# Of a manifest without fields that are newer than it.
_PLAIN_VERSION = 1
FILE_NAME = "manifest.json"
KINDS = ("clips", "tokens", "counterfactuals")

_DIGEST = schema.Text(r"[0-9a-f]{64}", "64 hexadecimal digits")
_MAYBE_TEXT = schema.Maybe(str, null=True)
_MAYBE_COUNT = schema.Maybe(schema.COUNT, null=True)
ENTRY = {
  "file": schema.Text(
    shards_lib.SHARD_NAME.pattern, "a name such as 00000-of-00001.array_record"
  ),
  "sha256": _DIGEST,
  "bytes": schema.BYTES,
  "records": schema.NATURAL,
  "episodes": [(schema.NATURAL,) * 4],
}
_FORM = {
  "fingerprint": _DIGEST,
  "kind": schema.Text("|".join(KINDS), f"one of {', '.join(KINDS)}"),
  "name": str,
  "fps": schema.Number(0, above=True),
  "frame_shape": (schema.COUNT,) * 3,
  "frames_per_record": schema.COUNT,
  "splits": {
    ...: {"records": schema.BYTES, "frames": schema.BYTES, "shards": [ENTRY]}
  },
  "num_actions": schema.Maybe(schema.NATURAL, null=True),
  "action_aliases": {...: schema.NATURAL},
  "made_by": dict,
  "frames_codec": _MAYBE_TEXT,
  "token_grid": schema.Maybe((schema.COUNT,) * 2, null=True),
  "num_codes": _MAYBE_COUNT,
  "num_latent_actions": _MAYBE_COUNT,
  "num_frames": _MAYBE_COUNT,
  "stride": _MAYBE_COUNT,
  "source_fingerprint": _MAYBE_TEXT,
  "tokenizer_fingerprint": _MAYBE_TEXT,
  "lam_fingerprint": _MAYBE_TEXT,
}
_NUMBER_LIST = re.compile(r"\[\s+(-?\d+(?:,\s+-?\d+)*)\s+\]")


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The content of a folder and its origin.

  Attributes:
    kind: "clips", "tokens" or "counterfactuals"; for the last, see
      `genie_jax.data.counterfactuals`.
    name: Short name of the data set.
    fps: Frames per second at which the world runs.
    frame_shape: (H, W, C) of one frame.
    frames_per_record: Clips: frames in all but a source's last record.
      Tokens: frames of the clip that a record encodes.
    splits: Split -> {"records", "frames", "shards"}; a shard is {"file",
      "sha256", "bytes", "records", "episodes"}, and an episode is [source,
      first_record, start, length]: the source's frames are stored one after
      another, beginning in record `first_record` of the shard, and the episode
      has `length` of these frames, beginning with frame `start`.
    num_actions: Size of the true action set; None if it is not known.
    action_aliases: Action -> another action with exactly the same effect.
    made_by: Any fields about the origin: the collector, its seeds and options,
      licences.
    frames_codec: How clips store their frames, see `stored_frames`; None, as in
      all folders of schema version 1, for the array "frames".
    token_grid: (h, w). This and the following fields up to `lam_fingerprint`
      are for tokens only.
    num_codes: Number of codes of the tokenizer.
    num_latent_actions: Number of codes of the LAM; None without a LAM.
    num_frames: Number of frames encoded in a record.
    stride: Frames from the start of one record to the start of the next.
    source_fingerprint: Fingerprint of the clips that were encoded.
    tokenizer_fingerprint: Fingerprint of the tokenizer that encoded them.
    lam_fingerprint: Fingerprint of the LAM; None without a LAM.
    folder: Folder from which the manifest was read, for messages and for
      finding shards; for a folder in a bucket, the local folder for copies of
      its files. Not part of the fingerprint.
    address: Address of a folder in a bucket; None for a folder on a disk. Not
      part of the fingerprint.
  """

  kind: str
  name: str
  fps: float
  frame_shape: tuple[int, ...]
  frames_per_record: int
  splits: Mapping[str, Any]
  num_actions: int | None
  action_aliases: Mapping[int, int]
  made_by: Mapping[str, Any]
  frames_codec: str | None = None
  token_grid: tuple[int, ...] | None = None
  num_codes: int | None = None
  num_latent_actions: int | None = None
  num_frames: int | None = None
  stride: int | None = None
  source_fingerprint: str | None = None
  tokenizer_fingerprint: str | None = None
  lam_fingerprint: str | None = None
  folder: pathlib.Path | None = None
  address: str | None = None

  def to_dict(self) -> dict[str, Any]:
    """Returns the content of `manifest.json` without the fingerprint."""
    fields = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in _PLACES
      and (self.kind == "tokens" or field.name not in _TOKEN_FIELDS)
    }
    fields["action_aliases"] = {
      str(key): value for key, value in self.action_aliases.items()
    }
    version = SCHEMA_VERSION
    if self.frames_codec is None:
      # Such a folder is the same as it was before there were codecs.
      del fields["frames_codec"]
      version = _PLAIN_VERSION
    return {"schema_version": version, **config.to_dict(fields)}

  @property
  def fingerprint(self) -> str:
    """SHA-256 of all fields except its location; covers all shards' hashes."""
    return config.fingerprint(self.to_dict())

  @classmethod
  def read(cls, folder: files.PathLike) -> Self:
    """Reads `folder`/manifest.json, on a disk or in a bucket.

    Raises:
      UserError: There is no valid manifest of this schema version.
    """
    path = _path(folder)
    if not exists(folder):
      raise errors.UserError(
        f"{path} does not exist; use a folder that `genie data` or `genie "
        "tokenize` has finished, or run that command again to finish it."
      )
    found = files.read_json(path, {"schema_version": schema.NATURAL})
    version = found["schema_version"]
    if version not in range(_PLAIN_VERSION, SCHEMA_VERSION + 1):
      raise errors.UserError(
        f"{path} has schema version {schema.shown(version)}, but this program "
        f"reads versions {_PLAIN_VERSION} to {SCHEMA_VERSION}; write the "
        "folder again, or install a newer genie_jax."
      )
    for form in (_FORM, *([_TOKENS] if found.get("kind") == "tokens" else [])):
      schema.check(found, form, path, "write the folder again")
    stated = found.pop("fingerprint")
    del found["schema_version"]
    errors.check_fields(path, found, _FIELDS)
    manifest = cls(
      **found
      | {
        "frame_shape": tuple(found["frame_shape"]),
        "num_actions": found.get("num_actions"),
        "token_grid": found.get("token_grid") and tuple(found["token_grid"]),
        "action_aliases": _aliases(path, found),
      },
      folder=pathlib.Path(folder),
    )
    manifest._check_form()
    if manifest.fingerprint != stated:
      raise errors.UserError(
        f"{path} was edited: its content has fingerprint "
        f"{manifest.fingerprint[:12]}, but it states {stated[:12]}; write "
        "the folder again."
      )
    if not buckets.is_remote(folder):
      return manifest
    address = os.fspath(folder).rstrip("/")
    return dataclasses.replace(
      manifest, address=address, folder=mirror.folder(stated)
    )

  def _check_form(self) -> None:
    if self.frames_codec not in stored_frames.CODECS:
      raise errors.UserError(
        f"{self._where()} has frames of codec {self.frames_codec!r}, which "
        "this program cannot decode; install a newer genie_jax."
      )
    for name, split in self.splits.items():
      for entry in split["shards"]:
        for row in entry["episodes"]:
          if self._last_record(row) >= entry["records"]:
            raise errors.UserError(
              f"{self._where()}: the episode {row} of {name}/{entry['file']} "
              f"ends after the shard's {entry['records']} records; write the "
              "folder again."
            )

  def _last_record(self, row: Sequence[int]) -> int:
    """Returns the last record of its shard that an episode needs."""
    _, record, start, length = row
    if self.kind != "clips":
      return record
    return record + max(start + length - 1, 0) // self.frames_per_record

  def write(self, folder: files.PathLike) -> None:
    """Writes `folder`/manifest.json atomically, as the last of its files."""
    text = json.dumps(
      {**self.to_dict(), "fingerprint": self.fingerprint},
      indent=2,
      allow_nan=False,
    )
    # One line for each row of the episode tables.
    text = _NUMBER_LIST.sub(
      lambda match: "[" + " ".join(match[1].split()) + "]", text
    )
    files.write_atomic(_path(folder), text + "\n")

  def check(self, expected: Mapping[str, Any]) -> None:
    """Checks that the folder has the values that the config needs.

    Args:
      expected: Field -> the required value, for example
        {"kind": "clips", "frame_shape": (64, 64, 3), "fps": 15}.

    Raises:
      UserError: A field differs; the message has both values.
    """
    for name, needed in expected.items():
      if name not in _FIELDS:
        raise errors.UserError(
          f"A manifest has no field {name!r}{errors.closest(name, _FIELDS)}."
        )
      found = config.to_dict({"_": getattr(self, name)})["_"]
      if found != config.to_dict({"_": needed})["_"]:
        raise errors.UserError(
          f"{self._where()} has {name} {found!r}, but {needed!r} is needed; "
          f"use a folder with {name} {needed!r}, or change the config to "
          f"{found!r}."
        )

  def _local_folder(self) -> pathlib.Path:
    """Returns the folder of the files on this machine.

    Raises:
      ValueError: The manifest was not read from a folder.
    """
    if self.folder is None:
      raise ValueError("This manifest was made in memory; read it first.")
    return self.folder

  def _where(self) -> str:
    if self.address:
      return f"{self.address}/{FILE_NAME}"
    return str(self.folder / FILE_NAME) if self.folder else "The manifest"

  def shards(self, split: str) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Returns the path and the entry of each shard of a split.

    Shards in a bucket are first copied to this machine, unless they were copied
    before.

    Raises:
      UserError: There is no such split, it is empty, a file in the bucket
        differs from the manifest, or the disk is full.
    """
    entries, folder = self._entries(split), self._local_folder()
    if self.address:
      mirror.copy_shards(self.address, folder, split, entries)
    return [(folder / split / entry["file"], entry) for entry in entries]

  def model_folder(self, name: str) -> pathlib.Path:
    """Returns the folder of a model that is stored in a token folder.

    A model in a bucket is copied to this machine first.

    Args:
      name: "tokenizer" or "lam".

    Raises:
      UserError: The model is not in the bucket, or the disk is full.
    """
    folder = self._local_folder() / name
    if self.address:
      mirror.copy_folder(f"{self.address}/{name}", folder)
    return folder

  def model_fingerprint(self, name: str) -> str | None:
    """Returns the fingerprint of a model that made a token folder.

    Args:
      name: "tokenizer" or "lam".

    Raises:
      UserError: Manifests do not record models with this role.
    """
    found = {
      "tokenizer": self.tokenizer_fingerprint,
      "lam": self.lam_fingerprint,
    }
    if name not in found:
      raise errors.UserError(
        f"{self._where()} names no {name}; the data of a stage are made by "
        f"{' and '.join(found)} (StageType.made_by)."
      )
    return found[name]

  def _entries(self, split: str) -> list[dict[str, Any]]:
    if split not in self.splits:
      raise errors.UserError(
        f"{self._where()} has no split {split!r}"
        f"{errors.closest(split, self.splits)}; it has "
        f"{', '.join(self.splits)}."
      )
    entries = self.splits[split]["shards"]
    if not entries:
      raise errors.UserError(
        f"Split {split!r} of {self._where()} is empty; write the folder "
        "again with at least one source in it."
      )
    return entries

  def sources(self, split: str) -> list[int]:
    """Returns the sources (levels, videos) of a split, in order."""
    return sorted(
      {
        episode[0]
        for entry in self._entries(split)
        for episode in entry["episodes"]
      }
    )


_PLACES = ("folder", "address")
_FIELDS = tuple(
  field.name
  for field in dataclasses.fields(Manifest)
  if field.name not in _PLACES
)
_TOKEN_FIELDS = _FIELDS[_FIELDS.index("token_grid") :]


def exists(folder: files.PathLike) -> bool:
  """Returns whether a folder, on a disk or in a bucket, has a manifest."""
  path = _path(folder)
  if buckets.is_remote(path):
    return buckets.exists(path)
  return pathlib.Path(path).is_file()


def _path(folder: files.PathLike) -> str:
  if buckets.is_remote(folder):
    return f"{os.fspath(folder).rstrip('/')}/{FILE_NAME}"
  return str(pathlib.Path(folder) / FILE_NAME)


# What readers of tokens need in addition.
_TOKENS = {
  "token_grid": (schema.COUNT,) * 2,
  "num_codes": schema.COUNT,
  "num_frames": schema.COUNT,
}


def _aliases(path: str, found: Mapping[str, Any]) -> dict[int, int]:
  """Returns the field `action_aliases`, which JSON has by names.

  Raises:
    UserError: It has other actions than the data.
  """
  most = found.get("num_actions")
  aliases = found["action_aliases"]
  for name, same in aliases.items():
    if not re.fullmatch("0|[1-9][0-9]{0,8}", name) or (
      most is not None and max(int(name), same) >= most
    ):
      raise errors.UserError(
        f"{path}: action_aliases has {name[:20]!r}: {same}, but num_actions is "
        f"{most}; write the folder again."
      )
  return {int(name): same for name, same in aliases.items()}


def split_summary(
  shards: Sequence[Mapping[str, Any]],
  frames: int,
) -> dict[str, Any]:
  """Returns a split's part of the manifest.

  Args:
    shards: Entries of `shards.ShardWriter`, each with its "episodes".
    frames: Total number of frames.
  """
  return {
    "records": sum(entry["records"] for entry in shards),
    "frames": frames,
    "shards": list(shards),
  }


def episodes_of(
  source: int,
  first_record: int,
  first: Iterable[bool],
) -> list[list[int]]:
  """Returns the episode rows of one source.

  Args:
    source: Number of the source.
    first_record: The source's first record in the shard.
    first: For each of its frames, whether an episode begins there. The source's
      first frame always begins an episode.

  Returns:
    [[source, first_record, start, length], ...], without gaps.
  """
  flags = list(first)
  starts = [0] + [
    frame for frame, begins in enumerate(flags) if begins and frame
  ]
  ends = starts[1:] + [len(flags)]
  return [
    [source, first_record, start, end - start]
    for start, end in zip(starts, ends, strict=True)
  ]
