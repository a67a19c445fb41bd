"""Trees of arrays, flattened to named tensors and stored in files.

A tree is a nested dict of arrays; a flat name joins its keys with "/".
"""

import hashlib
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from genie_jax.core import errors, files

Tree = dict[str, Any]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
  """Returns {"a/b": leaf} for the nested dict {"a": {"b": leaf}}, sorted."""
  flat = {}
  for key in sorted(tree):
    name = f"{prefix}{key}"
    if isinstance(tree[key], dict):
      flat.update(flatten(tree[key], f"{name}/"))
    else:
      flat[name] = tree[key]
  return flat


def unflatten(flat: dict[str, Any]) -> Tree:
  """Returns the nested dict for a flat dict; the inverse of `flatten`."""
  tree: Tree = {}
  for name, leaf in flat.items():
    node = tree
    *parents, last = name.split("/")
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def save(
  path: files.PathLike, tree: Tree, metadata: dict[str, str] | None = None
) -> None:
  """Writes a tree as one safetensors file, atomically.

  Args:
    path: The file.
    tree: Nested dict of arrays; device arrays are fetched.
    metadata: Text fields for the file's header.
  """
  flat = {
    name: np.ascontiguousarray(leaf) for name, leaf in flatten(tree).items()
  }
  files.write_atomic(path, safetensors.numpy.save(flat, metadata=metadata))


def load(path: files.PathLike) -> tuple[Tree, dict[str, str]]:
  """Reads a file that `save` wrote.

  Returns:
    The nested dict of host arrays, and the text fields of the header.

  Raises:
    UserError: The file is missing, truncated or not safetensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f"{path} does not exist; give the folder of a saved model."
    )
  try:
    with safetensors.safe_open(path, "np") as file:
      names = file.keys()  # The file itself cannot be iterated over.
      flat = {name: file.get_tensor(name) for name in names}
      metadata = file.metadata() or {}
  except (safetensors.SafetensorError, ValueError) as error:
    raise errors.UserError(
      f"{path} is not a whole safetensors file ({error}); copy or export "
      "it again."
    ) from error
  return unflatten(flat), metadata


def fingerprint(tree: Tree) -> str:
  """Returns a SHA-256 over the names, dtypes, shapes and bytes of a tree."""
  digest = hashlib.sha256()
  for name, leaf in flatten(tree).items():
    leaf = np.ascontiguousarray(leaf)
    digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
    digest.update(leaf.tobytes())
  return digest.hexdigest()


def path_name(path: tuple[Any, ...]) -> str:
  """Returns a tree path as "a/b"."""
  # Imported here, because this module is also used without JAX installed.
  import jax

  return jax.tree_util.keystr(path, simple=True, separator="/")
