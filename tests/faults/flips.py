"""Flips single bits of files, and reads the files again.

A flip must be detected, or change nothing that was read.
"""

import functools
import hashlib
import json
import pathlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

import genie_jax
from genie_jax.checkpoints import reader
from genie_jax.core import cache, errors
from genie_jax.data import manifest as manifest_lib
from genie_jax.data import shards
from genie_jax.sharding import mesh
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from tests.faults import jobs, trials

_TRIAL = 50  # Flips.
# What was read of undamaged files, by the first of them.
_undamaged: dict[pathlib.Path, str] = {}
_DETECTED = (errors.UserError, errors.RunFailed, reader.Damaged)


def read_data(folder: pathlib.Path) -> str:
  """Returns a digest of all that training reads of clips or tokens.

  It does not use the files' SHA-256, which only `genie data inspect` checks.
  """
  found = manifest_lib.Manifest.read(folder)
  digest = hashlib.sha256(json.dumps(found.to_dict()).encode())
  for split in sorted(found.splits):
    for path, entry in found.shards(split):
      records = shards.ShardReader(path, entry)
      for arrays, meta in records.read(range(len(records))):
        _add(digest, arrays)
        digest.update(json.dumps(meta, sort_keys=True).encode())
  return digest.hexdigest()


def read_checkpoint(workdir: pathlib.Path) -> str:
  """Returns a digest of the newest checkpoint, without falling back."""
  step = max(reader.valid_steps(workdir), default=None)
  if step is None:
    raise reader.Damaged("no checkpoint is complete")
  path = workdir / reader.FOLDER / str(step)
  note = reader.read_note(path)
  fields, note = reader.load(path, _state(json.dumps(note["config"])))
  digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
  _add(digest, fields)
  return digest.hexdigest()


@functools.cache
def _state(config: str) -> dict[str, Any]:
  """Returns the form of a run's state; the argument is its config as JSON."""
  fields = ml_collections.ConfigDict(json.loads(config))
  stage = registry.make(fields)
  optimizer = optimizer_lib.make(fields.optimizer, fields.steps, stage.no_decay)
  return state_lib.abstract(stage, optimizer, mesh.make(fields.mesh)).fields()


def read_world(folder: pathlib.Path) -> str:
  """Returns a digest of a world's weights, manifest and prompts."""
  world = genie_jax.load_world(folder)
  digest = hashlib.sha256(json.dumps(world.manifest, sort_keys=True).encode())
  for name in sorted(world.parts):
    _add(digest, world.parts[name].params)
  for prompt in world.prompts:
    digest.update(pathlib.Path(prompt).read_bytes())
  return digest.hexdigest()


def read_cache(folder: pathlib.Path) -> str:
  """Returns what a program computes that another process has compiled."""
  done = subprocess.run(
    [sys.executable, "-m", "tests.faults.flips", str(folder)],
    cwd=pathlib.Path(__file__).parents[2],
    env=jobs.environment(folder),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(f"code {done.returncode}: {done.stderr[-300:]}")
  return done.stdout


def compute(folder: pathlib.Path) -> None:
  """Prints the result of a program, which is compiled or read from a cache."""
  cache.use_checksums()
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

  @jax.jit
  def program(x):
    step = lambda carry, _: (jax.numpy.tanh(carry @ carry.T) + 0.1, None)
    return jax.lax.scan(step, x, None, length=4)[0]

  result = program(np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8))
  print(np.asarray(result).tobytes().hex())


def _add(digest: Any, tree: Any) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    values = np.asarray(leaf)
    form = f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}"
    digest.update(form.encode())
    digest.update(values.tobytes())


def flip(path: pathlib.Path, bit: int) -> None:
  """Flips a bit of a file in place."""
  with path.open("r+b") as file:
    file.seek(bit // 8)
    old = file.read(1)[0]
    file.seek(bit // 8)
    file.write(bytes([old ^ 1 << bit % 8]))


def damage(
  files: list[pathlib.Path], read: Callable[[], str], rng: random.Random
) -> str | None:
  """Flips a random bit, reads, and flips it back; returns what went wrong."""
  path = rng.choice(files)
  bit = rng.randrange(8 * path.stat().st_size)
  if files[0] not in _undamaged:
    _undamaged[files[0]] = read()
  flip(path, bit)
  try:
    if read() == _undamaged[files[0]]:
      return None
    return f"bit {bit} of {path.name} changed what was read, and no error"
  except _DETECTED as error:
    if len(str(error).splitlines()) == 1:
      return None
    return f"bit {bit} of {path.name}: several lines of {error!r:.300}"
  except Exception as error:
    return f"bit {bit} of {path.name}: {error!r:.300}"
  finally:
    flip(path, bit)


def _trial(
  name: str,
  source: pathlib.Path,
  read: Callable[[pathlib.Path], str],
  pattern: str,
  flips: int,
  scratch: pathlib.Path,
  number: int,
) -> trials.Outcome:
  """Flips some bits, one after the other, in a copy of a folder."""
  copy = scratch / name
  if not copy.exists():
    if name == "flips-caches":
      copy.mkdir(parents=True)
      read(copy)
    else:
      shutil.copytree(source, copy)
  files = sorted(
    path
    for path in copy.rglob(pattern)
    if path.is_file() and path.stat().st_size and not path.is_symlink()
  )
  rng = random.Random(f"{name} {number}")
  found = [damage(files, lambda: read(copy), rng) for _ in range(flips)]
  return trials.Outcome(flips, tuple(one for one in found if one))


def campaigns(
  base: pathlib.Path, scratch: pathlib.Path
) -> dict[str, trials.Campaign]:
  """Returns the campaigns: 2,000 flips over all kinds of files."""
  kinds = {
    "clips": ("clips", read_data, "*.array_record", 400, "of clips"),
    "tokens": ("tokens", read_data, "*.array_record", 400, "of tokens"),
    "manifests": ("clips", read_data, "manifest.json", 400, "of a manifest"),
    "checkpoints": (
      *("dynamics", read_checkpoint, "checkpoints/**/*", 400),
      "of a checkpoint",
    ),
    "worlds": ("world", read_world, "*", 250, "of a world"),
    "caches": ("cache", read_cache, "*-cache", 150, "of compiled programs"),
  }
  return {
    f"flips-{kind}": trials.Campaign(
      f"a flipped bit {what}",
      "detected, or without effect",
      faults,
      functools.partial(
        _trial,
        f"flips-{kind}",
        base / folder,
        read,
        pattern,
        10 if kind == "caches" else _TRIAL,
        scratch,
      ),
    )
    for kind, (folder, read, pattern, faults, what) in kinds.items()
  }


if __name__ == "__main__":
  compute(pathlib.Path(sys.argv[1]))
