"""A trivial game whose figures are known, and worlds with known faults.

A frame is 2 x 2 grey squares, one per token. An action adds to the brightness
of the top right square. It is also written to the first pixel of the next
frame, from which a perfect action model reads it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from genie_jax.data import (
  manifest,
  records,
  shards,
  stored_frames,
  video_codec,
)
from genie_jax.evals import evaluated_world, metric

SIDE, PATCH, NUM_CODES, NUM_ACTIONS = 16, 8, 16, 5
LENGTH = 40  # Frames of a level.
OPTIONS = metric.Options(
  num_clips=24,
  num_levels=6,
  num_action_clips=48,
  num_prompts=3,
  num_free=4,
  train_patches=400,
  train_clips=8,
)


def level(number: int, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
  """Returns a level's frames [length, 16, 16, 3] and actions [length]."""
  rng = np.random.default_rng(number)
  actions = rng.integers(0, NUM_ACTIONS + 1, length, dtype=np.int32)
  merged = np.where(actions == NUM_ACTIONS, 2, actions)  # An alias.
  tokens = np.zeros((length, 2, 2), np.int32)
  tokens[:] = rng.integers(0, NUM_CODES, (2, 2))
  tokens[1:, 0, 1] = (tokens[0, 0, 1] + np.cumsum(merged[:-1])) % NUM_CODES
  frames = decode(tokens[None])[0]
  frames[1:, 0, 0, 0] = merged[:-1]
  return frames, actions


def decode(tokens: np.ndarray) -> np.ndarray:
  """Returns a frame of 2 x 2 grey squares for each 2 x 2 tokens."""
  grey = (tokens * 16 + 8).astype(np.uint8)
  grey = grey.repeat(PATCH, -2).repeat(PATCH, -1)
  return np.repeat(grey[..., None], 3, -1)


def encode(frames: np.ndarray) -> np.ndarray:
  return (
    frames[..., PATCH // 2 :: PATCH, PATCH // 2 :: PATCH, 0] // 16
  ).astype(np.int32)


def infer(frames: np.ndarray) -> np.ndarray:
  # Lossy frames may be a little outside.
  return frames[:, 1:, 0, 0, 0].astype(np.int32).clip(0, NUM_ACTIONS - 1)


def world(obeys_buttons: bool, noise: bool = True) -> evaluated_world.Subject:
  """Returns a world that obeys its buttons, or ignores them."""

  def follow(last, pressed, clip_ids, number, seed):
    drawn = last.copy()
    if obeys_buttons:
      drawn[:, 0, 1] = (drawn[:, 0, 1] + pressed) % NUM_CODES
    if noise:
      # One token depends only on clip, frame and seed, so draws are paired.
      drawn[:, 1, 1] = [
        np.random.default_rng([seed, clip, number]).integers(NUM_CODES)
        for clip in clip_ids
      ]
    return drawn

  def rollout(prompt, buttons, clip_ids, seed):
    frames = list(prompt.swapaxes(0, 1))
    for number in range(len(frames) - 1, buttons.shape[1]):
      frames.append(
        follow(frames[-1], buttons[:, number], clip_ids, number, seed)
      )
    return np.stack(frames, 1)

  def next_frame(tokens, buttons, seed):
    return follow(
      tokens[:, -2], buttons[:, -1], np.arange(len(tokens)), 0, seed
    )

  return evaluated_world.Subject(
    encode=encode,
    decode=decode,
    infer=infer,
    rollout=rollout,
    next_frame=next_frame,
    num_frames=6,
    frame_shape=(SIDE, SIDE, 3),
    token_patch=PATCH,
    num_codes=NUM_CODES,
    num_buttons=NUM_ACTIONS,
    fps=10,
    sampling={
      "refinements": 3,
      "schedule": "cosine",
      "order": "random",
      "temperature": 1.0,
      "choice_temperature": 4.5,
    },
    fingerprint="f" * 64,
  )


def true_world() -> evaluated_world.Subject:
  """Returns an obedient world whose buttons are the true actions."""
  return dataclasses.replace(world(True), infer=None, num_buttons=6)


def write_clips(
  folder: pathlib.Path,
  lengths: Mapping[int, Sequence[int]] | None = None,
  codec: str | None = None,
) -> pathlib.Path:
  """Writes the game's train and test levels as a clips folder.

  Args:
    folder: Where to write.
    lengths: Test level -> frames of each of its episodes; by default seven
      levels of one episode.
    codec: How frames are stored; with a codec, clips have no actions, like
      those of videos.
  """
  lengths = lengths or {number: [LENGTH] for number in range(50, 57)}
  levels = {
    "train": {number: [LENGTH] for number in range(5)},
    "test": lengths,
  }
  splits = {}
  for split, every in levels.items():
    episodes, record = [], 0
    path = folder / split / shards.shard_name(0, 1)
    with shards.ShardWriter(path) as writer:
      for number, parts in every.items():
        whole = level(number, sum(parts))
        begin = 0
        for length in parts:
          frames, actions = (x[begin : begin + length] for x in whole)
          begin += length
          episodes.append([number, record, 0, length])
          for start in range(0, length, 16):
            piece = slice(start, start + 16)
            arrays = stored_frames.store(
              frames[piece], codec, video_codec.H264Options(crf=1)
            )
            if codec is None:
              arrays["actions"] = actions[piece]
            meta = {"fps": 10, "source": number, "start": start}
            meta["num_frames"] = len(frames[piece])
            writer.write(records.pack(arrays, meta))
            record += 1
    splits[split] = manifest.split_summary(
      [{**writer.entry, "episodes": episodes}],
      sum(map(sum, every.values())),
    )
  manifest.Manifest(
    kind="clips",
    name="grey",
    fps=10,
    frame_shape=(SIDE, SIDE, 3),
    frames_per_record=16,
    splits=splits,
    num_actions=6 if codec is None else None,
    action_aliases={5: 2} if codec is None else {},
    frames_codec=codec,
    made_by={"by": "a test"},
  ).write(folder)
  return folder
