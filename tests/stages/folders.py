"""Small folders of clips and tokens for the stages."""

import pathlib

import flax.linen as nn
import jax
import numpy as np

from genie_jax.data import manifest, records, shards
from genie_jax.models import saved

_RECORD_FRAMES = 16


def frames_of(
    source: int, count: int, shape: tuple[int, ...]
) -> np.ndarray:
  """Returns frames [count, H, W, C] of a bright square that wanders."""
  rng = np.random.default_rng(source)
  frames = np.full((count, *shape), rng.integers(20, 80), np.uint8)
  side = max(2, shape[0] // 4)
  for t, frame in enumerate(frames):
    row = (source * 5 + t) % (shape[0] - side)
    column = (source * 3 + 2 * t) % (shape[1] - side)
    frame[row:row + side, column:column + side] = 220
  return frames


def write_clips(
    folder: pathlib.Path, shape: tuple[int, ...] = (64, 64, 3),
    length: int = 24,
) -> pathlib.Path:
  """Writes clips with two train levels and a validation level."""
  def pieces(source):
    frames = frames_of(source, length, shape)
    for start in range(0, length, _RECORD_FRAMES):
      part = frames[start:start + _RECORD_FRAMES]
      yield start, {
          "frames": part, "actions": np.arange(len(part), dtype=np.int32)}

  _write(folder, pieces, dict(
      kind="clips", fps=15, frame_shape=shape, num_actions=15,
      frames_per_record=_RECORD_FRAMES), length)
  return folder


def write_tokens(
    folder: pathlib.Path, shape: tuple[int, ...], *, grid: tuple[int, int],
    num_codes: int, num_frames: int = 8, tokenizer: saved.Part | None = None,
) -> pathlib.Path:
  """Writes token records with their frames, two train and one held-out.

  Args:
    folder: Where.
    shape: (H, W, C).
    grid: (h, w).
    num_codes: V.
    num_frames: T of a record.
    tokenizer: Saved beside the records when given, as what made them.
  """
  def pieces(source):
    rng = np.random.default_rng(source)
    for number in range(4):
      yield number * num_frames, {
          "tokens": rng.integers(
              0, num_codes, (num_frames, *grid), dtype=np.uint16),
          "frames": frames_of(source + number, num_frames, shape),
          "latent_actions": rng.integers(
              0, 6, num_frames - 1, dtype=np.int32),
          "actions": rng.integers(0, 15, num_frames - 1, dtype=np.int32)}

  _write(folder, pieces, dict(
      kind="tokens", fps=15, frame_shape=shape, num_actions=15,
      frames_per_record=num_frames, token_grid=grid, num_codes=num_codes,
      num_latent_actions=6, num_frames=num_frames, stride=num_frames,
      source_fingerprint="a", tokenizer_fingerprint="b",
      lam_fingerprint="c"), num_frames * 4, num_frames)
  if tokenizer is not None:
    saved.save(folder / "tokenizer", {"tokenizer": tokenizer})
  return folder


def _write(folder, pieces, fields, length, clip=None):
  splits = {}
  for split, sources in (("train", (0, 1)), ("validation", (2,))):
    episodes, number = [], 0
    path = folder / split / shards.shard_name(0, 1)
    with shards.ShardWriter(path) as writer:
      for source in sources:
        first = number
        for start, arrays in pieces(source):
          writer.write(records.pack(
              arrays, {"fps": 15, "source": source, "start": start}))
          if clip:
            episodes.append([source, number, start, clip])
          number += 1
        if not clip:
          episodes.append([source, first, 0, length])
    splits[split] = manifest.split_summary(
        [{**writer.entry, "episodes": episodes}], length * len(sources))
  manifest.Manifest(
      name="squares", splits=splits, action_aliases={}, made_by={},
      **fields).write(folder)


def random_part(name: str, config, seed: int = 0) -> saved.Part:
  """Returns a model of a config with random weights, without compiling."""
  made = saved.part(name, config, {})
  shapes = nn.unbox(saved.abstract_params(name, made.config))
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.1
  return saved.Part(made.module, made.config, jax.tree.map(draw, shapes))
