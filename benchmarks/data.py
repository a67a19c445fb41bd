r"""Measures clips per second and bytes on disk, against a common recipe.

Run:       python benchmarks/data.py --json data.json
Recipe:    160-frame chunks of raw pixels, pickled, one per ArrayRecord record;
           a random 16-frame window is cut from each chunk that is read.
Ours:      windows that may start at any frame of an episode, from adjacent
           16-frame zstd records; and token records of 16 x 16 codes.
Targets:   2.2 times the recipe's clips per second with a tenth of its bytes,
           lossless; token records at 3 times the clips per second of windows;
           a mixture of three sets at 0.9 of the clips per second of one.

All readers take turns several times in one process, with one reading thread
each. The results are medians, and medians of the ratios within each turn. The
recipe is also measured with ArrayRecord's own compression.
"""

import argparse
import json
import pathlib
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from data_pipelines.procgen import collect
from genie_jax.core import files
from genie_jax.data import (
  loader,
  manifest,
  mixtures,
  records,
  shards,
  sources,
)

_CHUNK_FRAMES = 160
_CLIP_FRAMES = 16
_TOKEN_GRID = (16, 16)
_NUM_CODES = 1024
_WARM_BATCHES = 4
_SETS = 3


def _read_level(
  found: manifest.Manifest,
  split: str,
) -> Iterator[np.ndarray]:
  """Yields the frames of each level of a split: [n, H, W, C] uint8."""
  for path, entry in found.shards(split):
    reader = shards.ShardReader(path, entry)
    level, pieces = None, []
    for number in range(len(reader)):
      arrays, meta = reader.read([number])[0]
      if meta["source"] != level and pieces:
        yield np.concatenate(pieces)
        pieces = []
      level = meta["source"]
      pieces.append(arrays["frames"])
    yield np.concatenate(pieces)


def write_recipe(
  folder: pathlib.Path,
  found: manifest.Manifest,
  options: str,
) -> tuple[pathlib.Path, int]:
  """Writes a split as pickled chunks; returns the file and its frame count."""
  path, frames = folder / "recipe.array_record", 0
  folder.mkdir(parents=True)
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  for level in _read_level(found, "train"):
    for start in range(0, len(level) - _CHUNK_FRAMES + 1, _CHUNK_FRAMES):
      chunk = level[start : start + _CHUNK_FRAMES]
      writer.write(
        pickle.dumps(
          {"raw_video": chunk.tobytes(), "sequence_length": len(chunk)}
        )
      )
      frames += len(chunk)
  writer.close()
  return path, frames


def read_recipe(path: pathlib.Path, batch_size: int) -> Any:
  """Returns the recipe's iterator of {"frames": [B, 16, H, W, C]}."""
  shape = (_CHUNK_FRAMES, 64, 64, 3)

  def window(record: bytes, rng: np.random.Generator) -> dict[str, Any]:
    chunk = pickle.loads(record)  # noqa: S301  This program wrote it.
    frames = np.frombuffer(chunk["raw_video"], np.uint8).reshape(shape)
    start = rng.integers(0, chunk["sequence_length"] - _CLIP_FRAMES + 1)
    return {"frames": frames[start : start + _CLIP_FRAMES]}

  source = array_record_data_source.ArrayRecordDataSource(str(path))
  dataset = grain.MapDataset.source(source).seed(0).shuffle().repeat()
  dataset = dataset.random_map(window).batch(batch_size, drop_remainder=True)
  return iter(
    dataset.to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    )
  )


def write_tokens(folder: pathlib.Path, count: int) -> None:
  """Writes `count` token records of random codes."""
  rng = np.random.default_rng(0)
  with shards.ShardWriter(
    folder / "train" / shards.shard_name(0, 1), shards.TOKENS_OPTIONS
  ) as writer:
    for source in range(count):
      writer.write(
        records.pack(
          {
            "tokens": rng.integers(
              0, _NUM_CODES, (_CLIP_FRAMES, *_TOKEN_GRID), dtype=np.uint16
            ),
            "latent_actions": rng.integers(
              0, 6, _CLIP_FRAMES - 1, dtype=np.int32
            ),
          },
          {"fps": 15, "source": source, "start": 0},
        )
      )
  entry = {**writer.entry, "episodes": []}
  manifest.Manifest(
    kind="tokens",
    name="random",
    fps=15,
    frame_shape=(64, 64, 3),
    frames_per_record=_CLIP_FRAMES,
    splits={"train": manifest.split_summary([entry], count * _CLIP_FRAMES)},
    num_actions=None,
    action_aliases={},
    made_by={"by": "benchmark"},
    token_grid=_TOKEN_GRID,
    num_codes=_NUM_CODES,
    num_latent_actions=6,
    num_frames=_CLIP_FRAMES,
    stride=_CLIP_FRAMES,
  ).write(folder)


def check_lossless(
  path: pathlib.Path,
  found: manifest.Manifest,
) -> None:
  """Compares every frame of the recipe's chunks with ours."""
  reader = array_record_module.ArrayRecordReader(str(path))
  number = 0
  for level in _read_level(found, "train"):
    for start in range(0, len(level) - _CHUNK_FRAMES + 1, _CHUNK_FRAMES):
      chunk = reader.read([number])[0]
      raw = pickle.loads(chunk)["raw_video"]  # noqa: S301  As above.
      assert raw == level[start : start + _CHUNK_FRAMES].tobytes(), number
      number += 1
  assert number == reader.num_records()


def measure(iterator: Any, batch_size: int, seconds: float) -> dict[str, float]:
  """Returns clips per second of wall time and of CPU time."""
  clips, wall, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - wall < seconds:
    next(iterator)
    clips += batch_size
  return {
    "wall": clips / (time.perf_counter() - wall),
    "cpu": clips / (time.process_time() - cpu),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--json", metavar="F", help="also write the result")
  parser.add_argument("--levels", type=int, default=30)
  parser.add_argument("--frames-per-level", type=int, default=960)
  parser.add_argument("--batch-size", type=int, default=32)
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--seconds", type=float, default=1.5, help="per turn")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    result = run(pathlib.Path(name), args)
  print(json.dumps(result, indent=2))
  if args.json:
    files.write_json(args.json, result)


def run(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
  """Writes the data, measures all readers in turns, returns the figures."""
  collect.collect(
    folder / "clips",
    collect.Options(
      levels=args.levels,
      validation_levels=0,
      test_levels=0,
      frames_per_level=args.frames_per_level,
    ),
  )
  # The sets of a mixture: as many windows in all, played by other seeds.
  thirds = [folder / f"third{number}" for number in range(_SETS)]
  for number, third in enumerate(thirds):
    collect.collect(
      third,
      collect.Options(
        levels=args.levels // _SETS,
        validation_levels=0,
        test_levels=0,
        frames_per_level=args.frames_per_level,
        policy_seed=number + 1,
      ),
    )
  found = manifest.Manifest.read(folder / "clips")
  raw, raw_frames = write_recipe(
    folder / "raw", found, "group_size:1,uncompressed"
  )
  zstd, zstd_frames = write_recipe(folder / "zstd", found, "group_size:1")
  check_lossless(raw, found)
  windows_of = lambda folder: sources.WindowSource(
    folder, "train", _CLIP_FRAMES, keys=("frames",)
  )
  windows = windows_of(folder / "clips")
  mixture = mixtures.Mixture(
    [(windows_of(third), number + 1) for number, third in enumerate(thirds)]
  )
  write_tokens(folder / "tokens", len(windows))
  tokens = sources.TokenSource(folder / "tokens", "train")
  size = args.batch_size
  readers = {
    "recipe": read_recipe(raw, size),
    "recipe_zstd": read_recipe(zstd, size),
    "windows": loader.make_iterator(windows, size, 0),
    "mixture": loader.make_iterator(mixture, size, 0),
    "tokens": loader.make_iterator(tokens, size, 0),
  }
  turns = {name: [] for name in readers}
  for reader in readers.values():
    for _ in range(_WARM_BATCHES):
      next(reader)
  for _ in range(args.rounds):
    for name, reader in readers.items():
      turns[name].append(measure(reader, size, args.seconds))
  for reader in readers.values():
    reader.close()

  def ratio(ours: str, theirs: str, clock: str) -> float:
    return statistics.median(
      mine[clock] / other[clock]
      for mine, other in zip(turns[ours], turns[theirs], strict=True)
    )

  ours = found.splits["train"]
  size_of = lambda path, frames: path.stat().st_size / frames
  bytes_per_frame = {
    "recipe": size_of(raw, raw_frames),
    "recipe_zstd": size_of(zstd, zstd_frames),
    "windows": sum(entry["bytes"] for entry in ours["shards"]) / ours["frames"],
  }
  return {
    "machine": f"{platform.machine()}, Python {platform.python_version()}",
    "clips_per_second": {
      name: {
        clock: statistics.median(turn[clock] for turn in measured)
        for clock in ("wall", "cpu")
      }
      for name, measured in turns.items()
    },
    "bytes_per_frame": bytes_per_frame,
    "lossless": True,  # Otherwise check_lossless has raised.
    "windows_over_recipe": {
      clock: ratio("windows", "recipe", clock) for clock in ("wall", "cpu")
    },
    "windows_over_recipe_zstd": {
      clock: ratio("windows", "recipe_zstd", clock) for clock in ("wall", "cpu")
    },
    "tokens_over_windows": {
      clock: ratio("tokens", "windows", clock) for clock in ("wall", "cpu")
    },
    "mixture_over_windows": {
      clock: ratio("mixture", "windows", clock) for clock in ("wall", "cpu")
    },
    "bytes_over_recipe": (
      bytes_per_frame["windows"] / bytes_per_frame["recipe"]
    ),
    "targets": {
      "windows_over_recipe": 2.2,
      "tokens_over_windows": 3,
      "mixture_over_windows": 0.9,
      "bytes_over_recipe": 0.1,
    },
  }


if __name__ == "__main__":
  main()
