"""Writes the golden clips: a square on a dark floor that actions move.

Actions 0 to 3 move the square up, down, left and right; action 4 does the same
as action 3. Level 1 has two episodes. Uses only `genie_jax.data`, as a data
pipeline of a user would. The same frames as H.264 have no actions, as clips of
videos.
"""

import pathlib

import numpy as np

from genie_jax.data import manifest, records, shards, stored_frames

SHAPE = (8, 12, 3)
NUM_ACTIONS = 5
FPS = 10
# Shorter than a level, so that windows cross from record to record.
FRAMES_PER_RECORD = 6
# Split -> the levels of each shard.
SPLITS = {"train": ([0, 1], [2]), "validation": ([7],)}
# Level -> lengths of its episodes.
LENGTHS = {0: (20,), 1: (9, 11), 2: (20,), 7: (20,)}
MOVES = np.array([[-2, 0], [2, 0], [0, -2], [0, 2], [0, 2]])
SIDE = 4


def play(level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns frames [t, H, W, C], actions [t], and where episodes begin [t]."""
  rng = np.random.default_rng(level)
  first = np.concatenate([np.arange(n) == 0 for n in LENGTHS[level]])
  actions = rng.integers(0, NUM_ACTIONS, len(first), dtype=np.int32)
  colour = rng.integers(150, 256, 3)
  frames = np.zeros((len(first), *SHAPE), np.uint8)
  frames[:, :, :, 2] = 40  # A dark blue floor.
  room = np.array(SHAPE[:2]) - SIDE
  place = room // 2
  for t, frame in enumerate(frames):
    if first[t]:
      place = rng.integers(0, room + 1)
    row, column = place
    frame[row : row + SIDE, column : column + SIDE] = colour
    place = np.clip(place + MOVES[actions[t]], 0, room)
  return frames, actions, first


def write(folder: pathlib.Path, codec: str | None = None) -> None:
  """Writes the clips folder; with a codec, without actions."""
  splits = {}
  for split, groups in SPLITS.items():
    entries, total = [], 0
    for index, levels in enumerate(groups):
      episodes, record = [], 0
      path = folder / split / shards.shard_name(index, len(groups))
      with shards.ShardWriter(path) as writer:
        for level in levels:
          frames, actions, first = play(level)
          episodes += manifest.episodes_of(level, record, first)
          total += len(frames)
          for start in range(0, len(frames), FRAMES_PER_RECORD):
            piece = slice(start, start + FRAMES_PER_RECORD)
            arrays = {
              **stored_frames.store(frames[piece], codec),
              "first": first[piece],
            }
            meta = {"fps": FPS, "source": level, "start": start}
            if codec is None:
              arrays["actions"] = actions[piece]
            else:
              meta["num_frames"] = len(frames[piece])
            writer.write(records.pack(arrays, meta))
            record += 1
      entries.append({**writer.entry, "episodes": episodes})
    splits[split] = manifest.split_summary(entries, total)
  manifest.Manifest(
    kind="clips",
    name="square",
    fps=FPS,
    frame_shape=SHAPE,
    frames_per_record=FRAMES_PER_RECORD,
    splits=splits,
    num_actions=NUM_ACTIONS if codec is None else None,
    action_aliases={4: 3} if codec is None else {},
    frames_codec=codec,
    made_by={"maker": "tests.golden.clips"},
  ).write(folder)
