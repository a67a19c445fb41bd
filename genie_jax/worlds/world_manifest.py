"""Reads the manifest of a world folder and checks its files.

Needs neither JAX nor the models, so that all loaders use the same checks.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from genie_jax.core import errors, files
from genie_jax.weights import tensor_files
from genie_jax.worlds import buttons

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
CONFIG = "config.json"
MAX_NAME = 200  # Characters; a name is shown on one line.

# All files that a manifest may list: data, and the programs of `genie export
# --stablehlo`, which `load_world` does not run.
_KNOWN = re.compile(
  r"config\.json|model\.safetensors(\.index\.json)?"
  r"|model-\d{5}-of-\d{5}\.safetensors|prompts/[\w-]{1,64}\.png"
  r"|stablehlo/(programs\.json|[a-z_]{1,32}\.stablehlo)"
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_JSON_BYTES = 16 << 20
_FIELDS: dict[str, type] = {
  "name": str,
  "fingerprint": str,
  "dtype": str,
  "metrics": dict,
  "made_by": dict,
  "files": dict,
}


def read_manifest(folder: files.PathLike) -> dict[str, Any]:
  """Returns the manifest of a world folder.

  Raises:
    UserError: There is none, or it has another version, was changed, or lists
      a file that is not part of a world.
  """
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise errors.UserError(
      f"{folder} is not a world (no {MANIFEST}); give a folder that `genie "
      "export` wrote."
    )
  if path.stat().st_size > _JSON_BYTES:
    raise errors.UserError(
      f"{path} is larger than the limit of {_JSON_BYTES} bytes; give a "
      "folder that `genie export` wrote."
    )
  return check_manifest(str(path), path.read_bytes())


def check_manifest(where: str, content: bytes) -> dict[str, Any]:
  """Parses and checks a manifest.

  Args:
    where: Its path or address, for messages.
    content: Bytes of a manifest.json.

  Returns:
    The manifest without its seal.

  Raises:
    UserError: See `read_manifest`.
  """
  manifest = files.parse_json(content, where, object, "copy the world again")
  if not isinstance(manifest, dict) or manifest.get("kind") != "world":
    raise errors.UserError(
      f"{where} is not the manifest of a world; give a folder that `genie "
      "export` wrote."
    )
  if manifest.get("schema_version") != SCHEMA_VERSION:
    raise errors.UserError(
      f"{where} has schema version {manifest.get('schema_version')!r:.40}, "
      f"this program reads {SCHEMA_VERSION}; use a newer genie_jax, or export "
      "the world again."
    )
  stated = manifest.pop("seal", None)
  if stated != seal(manifest):
    raise errors.UserError(
      f"{where} was changed after it was written; copy the world again or "
      "export it again."
    )
  for name, kind in _FIELDS.items():
    if not isinstance(manifest.get(name), kind):
      raise errors.UserError(
        f"{where}: {name}={manifest.get(name)!r:.40} is not a "
        f"{kind.__name__}; export the world again."
      )
  check_name(manifest["name"], where)
  if "buttons" in manifest:
    buttons.check(where, manifest["buttons"])
  _check_list(where, manifest["files"])
  return manifest


def check_name(name: str, where: str = "The world") -> None:
  """Checks that a world's name can be shown on one line.

  Args:
    name: The name.
    where: Where the name is stored, for the message.

  Raises:
    UserError: The name is too long or not printable.
  """
  if not name.isprintable() or len(name) > MAX_NAME:
    raise errors.UserError(
      f"{where}: name={name[:40]!a} is not printable text of at most "
      f"{MAX_NAME} characters; export the world with another --name."
    )


def seal(manifest: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a manifest without its seal, in canonical JSON."""
  text = json.dumps(dict(manifest), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def check_files(folder: files.PathLike, manifest: Mapping[str, Any]) -> None:
  """Checks every byte of every file that a manifest lists.

  Raises:
    UserError: A file is missing, damaged, or a link to a file outside the
      folder; or the folder contains weights that the manifest does not list.
  """
  folder = pathlib.Path(folder)
  root = folder.resolve()
  for name, stated in manifest["files"].items():
    path = folder / name
    if not path.is_file():
      raise errors.UserError(
        f"{path} is missing, but {MANIFEST} lists it; copy the world again "
        "or export it again."
      )
    if not path.resolve().is_relative_to(root):
      raise errors.UserError(
        f"{path} is a link to a file outside its world; copy the world again "
        "with the file itself."
      )
    if path.stat().st_size != stated["bytes"]:
      raise _damaged(path)
  for path in folder.glob("model*.safetensors*"):
    if path.name not in manifest["files"]:
      raise errors.UserError(
        f"{path} is not listed in {MANIFEST}; remove it, or export the "
        "world again."
      )
  # Hashing releases the GIL, so several files are read at once.
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = pool.map(
      lambda name: files.sha256(folder / name), manifest["files"]
    )
    for (name, stated), digest in zip(
      manifest["files"].items(), found, strict=True
    ):
      if digest != stated["sha256"]:
        raise _damaged(folder / name)


def check_fingerprint(
  folder: files.PathLike, manifest: Mapping[str, Any]
) -> None:
  """Checks that a manifest states the fingerprint of its configs and weights.

  Reads all weights once more, so that names of buttons, links to replays and
  figures cannot pass for those of another world.

  Raises:
    UserError: It states another one.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / CONFIG)
  found = seal(
    {
      "parts": config["parts"],  # The loaders have checked it.
      "weights": tensor_files.stored_fingerprint(tensor_files.read(folder)),
    }
  )
  if manifest["fingerprint"] != found:
    raise errors.UserError(
      f"{folder / MANIFEST} states the fingerprint "
      f"{manifest['fingerprint']:.12}, but its configs and weights have "
      f"{found:.12}; copy the world again or export it again."
    )


def prompts(
  folder: files.PathLike, manifest: Mapping[str, Any]
) -> tuple[pathlib.Path, ...]:
  """Returns the paths of the images to start from, in order."""
  return tuple(
    pathlib.Path(folder) / name
    for name in sorted(manifest["files"])
    if name.startswith("prompts/")
  )


def _damaged(path: pathlib.Path) -> errors.UserError:
  return errors.UserError(
    f"{path} is damaged: its SHA-256 is not the one in {MANIFEST}; copy the "
    "world again or export it again."
  )


def _check_list(where: str, listed: Mapping[str, Any]) -> None:
  """Checks the names, hashes and sizes in a manifest's list of files."""
  for name, stated in listed.items():
    if not _KNOWN.fullmatch(name):
      raise errors.UserError(
        f"{where} lists {name!r:.80}, which is not part of a world; export "
        "the world again."
      )
    most = _JSON_BYTES if name.endswith(".json") else (1 << 63) - 1
    if not isinstance(stated, dict) or (
      not isinstance(stated.get("sha256"), str)
      or not _DIGEST.fullmatch(stated["sha256"])
      or type(stated.get("bytes")) is not int
      or not 0 <= stated["bytes"] <= most
    ):
      raise errors.UserError(
        f"{where} does not state a valid SHA-256 and size of {name}; export "
        "the world again."
      )
  if CONFIG not in listed or not any(
    name.endswith(".safetensors") for name in listed
  ):
    raise errors.UserError(
      f"{where} must list {CONFIG} and weights; export the world again."
    )
