"""Tiny trained-looking models, their workdirs, and clips to feed them."""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genie_jax.data import manifest, records, shards
from genie_jax.models import saved
from genie_jax.train import checkpoint, state

SHAPE = (8, 12, 3)
WORLD = {
    "num_frames": 4, "height": 8, "width": 12, "channels": 3,
    "token_patch": 4, "num_codes": 13, "num_latent_actions": 5, "fps": 10}
_STACK = {
    "num_layers": 1, "width": 16, "num_heads": 2, "head_dim": 8,
    "mlp_dim": 16, "dtype": "float32"}
MODELS = {
    "tokenizer": {"code_dim": 4, "encoder": _STACK, "decoder": _STACK},
    "lam": {"code_dim": 4, "patch": 4, "encoder": _STACK, "decoder": _STACK},
    "dynamics": {"transformer": _STACK}}
RECORD_FRAMES = 16


def make_part(name: str, seed: int = 0, **world: Any) -> saved.Part:
  """Returns a model with random weights."""
  fields = {"world": {**WORLD, **world}, "model": MODELS[name]}
  module = saved.part(name, fields, {}).module
  if name == "dynamics":
    tokens = jnp.zeros((1, 2, 2, 3), jnp.int32)
    inputs = tokens, tokens[:, 1:, 0, 0], tokens > 0
  else:
    size = fields["world"]["height"], fields["world"]["width"]
    inputs = (jnp.zeros((1, 2, *size, 3)),)
  params = nn.unbox(jax.jit(module.init)(jax.random.key(seed), *inputs))
  return saved.part(
      name, fields, jax.tree.map(np.asarray, params["params"]))


@dataclasses.dataclass
class _Iterator:
  """What a checkpoint wants of the data."""

  def get_state(self):
    return {"next": 0}


def write_workdir(
    folder: pathlib.Path, stage: str, model: Any, params: Any,
    data: str = "", actions: str = "latent", **fields: Any,
) -> pathlib.Path:
  """Writes a workdir as `genie train` leaves it."""
  config = {
      "stage": stage, "seed": 0, "steps": 1, "world": WORLD, "model": model,
      "actions": actions, "init_from": "",
      "data": {"path": data, "split": "train", "batch_size": 2,
               "num_frames": 4},
      "optimizer": {"name": "adamw"},
      "sampling": {"refinements": 3, "temperature": 1.0}} | fields
  opened = checkpoint.Checkpoints(folder, keep=1)
  opened.save(
      state.TrainState(
          step=jnp.int32(1), params=jax.device_put(params), extra={},
          opt_state={}, rng=jax.random.key(0)),
      _Iterator(), {"config": config})
  opened.close()
  return folder


def write_clips(
    folder: pathlib.Path, splits: dict[str, list[int]], length: int = 25,
    actions: bool = True,
) -> pathlib.Path:
  """Writes clips of noise; `splits` lists each split's sources."""
  summaries = {}
  for split, numbers in splits.items():
    episodes, record = [], 0
    path = folder / split / shards.shard_name(0, 1)
    with shards.ShardWriter(path) as writer:
      for source in numbers:
        random = np.random.default_rng(source)
        frames = random.integers(0, 256, (length, *SHAPE), dtype=np.uint8)
        pressed = random.integers(0, 15, length, dtype=np.int32)
        episodes.append([source, record, 0, length])
        for start in range(0, length, RECORD_FRAMES):
          piece = slice(start, start + RECORD_FRAMES)
          arrays = {"frames": frames[piece]}
          if actions:
            arrays["actions"] = pressed[piece]
          writer.write(records.pack(
              arrays, {"fps": 10, "source": source, "start": start}))
          record += 1
    summaries[split] = manifest.split_summary(
        [{**writer.entry, "episodes": episodes}], length * len(numbers))
  manifest.Manifest(
      kind="clips", name="noise", fps=10, frame_shape=SHAPE,
      frames_per_record=RECORD_FRAMES, splits=summaries,
      num_actions=15 if actions else None, action_aliases={9: 4},
      made_by={"by": "a test"}).write(folder)
  return folder
