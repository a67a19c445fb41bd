"""Small clips and token folders in which every frame is unique."""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from genie_jax.data import manifest, records, shards

SHAPE = (6, 8, 3)
RECORD_FRAMES = 16


def frames_of(source: int, start: int, count: int) -> np.ndarray:
  """Returns frames [count, H, W, C] that differ by source and position."""
  rng = np.random.default_rng(source)
  noise = rng.integers(0, 256, (1, *SHAPE), dtype=np.uint8)
  place = np.arange(start, start + count, dtype=np.uint8)
  return noise + place[:, None, None, None]


def actions_of(source: int, start: int, count: int) -> np.ndarray:
  """Returns the actions taken at frames from `start` on: [count] int32."""
  return (np.arange(start, start + count, dtype=np.int32) * 7 + source) % 15


Lengths = Mapping[int, Sequence[int]]  # Source -> lengths of its episodes.
LENGTHS: Lengths = {3: (40, 25, 5), 4: (16,), 7: (33, 30)}


def write_clips(
  folder: pathlib.Path,
  lengths: Lengths = LENGTHS,
  per_shard: int = 2,
) -> manifest.Manifest:
  """Writes a clips folder with one split, train."""
  numbers = list(lengths)
  groups = [
    numbers[i : i + per_shard] for i in range(0, len(numbers), per_shard)
  ]
  entries = []
  for index, group in enumerate(groups):
    episodes, record = [], 0
    path = folder / "train" / shards.shard_name(index, len(groups))
    with shards.ShardWriter(path) as writer:
      for source in group:
        first = np.concatenate(
          [np.arange(length) == 0 for length in lengths[source]]
        )
        episodes += manifest.episodes_of(source, record, first)
        for start in range(0, len(first), RECORD_FRAMES):
          count = min(RECORD_FRAMES, len(first) - start)
          writer.write(
            records.pack(
              {
                "frames": frames_of(source, start, count),
                "actions": actions_of(source, start, count),
                "first": first[start : start + count],
              },
              {"fps": 10, "source": source, "start": start},
            )
          )
          record += 1
    entries.append({**writer.entry, "episodes": episodes})
  made = manifest.Manifest(
    kind="clips",
    name="counted",
    fps=10,
    frame_shape=SHAPE,
    frames_per_record=RECORD_FRAMES,
    splits={
      "train": manifest.split_summary(entries, sum(map(sum, lengths.values())))
    },
    num_actions=15,
    action_aliases={9: 4},
    made_by={"by": "a test"},
  )
  made.write(folder)
  return manifest.Manifest.read(folder)


def write_tokens(
  folder: pathlib.Path,
  *,
  count: int = 7,
  keep_frames: bool = False,
) -> manifest.Manifest:
  """Writes a token folder whose record i encodes source i from frame 2 i."""
  length, grid, entries = 10, (2, 3), []
  for shard in range(2):
    numbers = range(shard * count // 2, (shard + 1) * count // 2)
    path = folder / "train" / shards.shard_name(shard, 2)
    with shards.ShardWriter(path, shards.TOKENS_OPTIONS) as writer:
      for number in numbers:
        arrays = {
          "tokens": np.random.default_rng(number).integers(
            0, 50, (length, *grid), dtype=np.uint16
          ),
          "latent_actions": np.arange(length - 1, dtype=np.int32) % 6,
          "actions": actions_of(number, 2 * number, length - 1),
        }
        if keep_frames:
          arrays["frames"] = frames_of(number, 2 * number, length)
        writer.write(
          records.pack(
            arrays, {"fps": 10, "source": number, "start": 2 * number}
          )
        )
    entries.append(
      {
        **writer.entry,
        "episodes": [[n, i, 2 * n, length] for i, n in enumerate(numbers)],
      }
    )
  manifest.Manifest(
    kind="tokens",
    name="counted",
    fps=10,
    frame_shape=SHAPE,
    frames_per_record=length,
    splits={"train": manifest.split_summary(entries, count * length)},
    num_actions=15,
    action_aliases={},
    made_by={},
    token_grid=grid,
    num_codes=50,
    num_latent_actions=6,
    num_frames=length,
    stride=2,
    source_fingerprint="a",
    tokenizer_fingerprint="b",
    lam_fingerprint="c",
  ).write(folder)
  return manifest.Manifest.read(folder)


@pytest.fixture
def make_clips(tmp_path) -> Callable[..., manifest.Manifest]:
  """Returns `write_clips` for a new folder with the given name."""
  return lambda name="clips", *args, **options: write_clips(
    tmp_path / name, *args, **options
  )


@pytest.fixture
def make_tokens(tmp_path) -> Callable[..., manifest.Manifest]:
  """Returns `write_tokens` for a new folder."""
  return lambda **options: write_tokens(tmp_path / "tokens", **options)


@pytest.fixture
def expected() -> Callable[[int, int, int], np.ndarray]:
  """Returns `frames_of`."""
  return frames_of


@pytest.fixture
def expected_actions() -> Callable[[int, int, int], np.ndarray]:
  """Returns `actions_of`."""
  return actions_of


@pytest.fixture
def lengths() -> Lengths:
  """Returns the episode lengths of each source of `make_clips`."""
  return LENGTHS
