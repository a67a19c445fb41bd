"""Writes golden counterfactuals: the square of `clips.py`, held each way.

From a frame of level 7 each of the five actions is held for three frames;
action 4 does the same as action 3, so one future is stored once for both.
"""

import pathlib

import numpy as np

from genie_jax.data import counterfactuals, manifest, shards
from tests.golden import clips

STEPS = (5, 11)  # Moments of the level.
HISTORY, FRAMES = 3, 3
LEVEL = 7


def moment(step: int) -> counterfactuals.Moment:
  """Returns what each action leads to from a frame of the level."""
  frames, actions, _ = clips.play(LEVEL)
  past = slice(step - HISTORY + 1, step + 1)
  keys = np.repeat(np.arange(clips.NUM_ACTIONS + 1)[:, None], FRAMES, 1)
  keys[-1] = actions[step : step + FRAMES]
  futures = np.stack([_hold(frames[step], row) for row in keys])
  distinct, future_of = counterfactuals.merge_equal(futures)
  number = np.arange(keys.size * 5, dtype=np.float32)
  return counterfactuals.Moment(
    level=LEVEL,
    step=step,
    history=frames[past],
    history_keys=actions[past][:-1],
    history_states=number[: HISTORY * 5].reshape(HISTORY, 5),
    keys=keys.astype(np.int32),
    distinct=distinct,
    future_of=future_of,
    states=number.reshape(*keys.shape, 5),
  )


def _hold(frame: np.ndarray, keys: np.ndarray) -> np.ndarray:
  """Returns the frames after actions, from one frame."""
  drawn = frame[..., 0] > 0
  place = np.argwhere(drawn).min(0)
  colour = frame[tuple(place)]
  room = np.array(clips.SHAPE[:2]) - clips.SIDE
  frames = []
  for key in keys:
    place = np.clip(place + clips.MOVES[key], 0, room)
    row, column = place
    after = np.zeros_like(frame)
    after[..., 2] = frame[~drawn][0, 2]
    after[row : row + clips.SIDE, column : column + clips.SIDE] = colour
    frames.append(after)
  return np.stack(frames)


def write(folder: pathlib.Path) -> None:
  """Writes the folder of counterfactuals."""
  path = folder / "validation" / shards.shard_name(0, 1)
  moments = [moment(step) for step in STEPS]
  with shards.ShardWriter(path) as writer:
    for found in moments:
      writer.write(counterfactuals.pack(found, clips.FPS))
  rows = [
    [LEVEL, record, found.step, found.num_frames]
    for record, found in enumerate(moments)
  ]
  manifest.Manifest(
    kind=counterfactuals.KIND,
    name="square",
    fps=clips.FPS,
    frame_shape=clips.SHAPE,
    frames_per_record=moments[0].num_frames,
    splits={
      "validation": manifest.split_summary(
        [{**writer.entry, "episodes": rows}], sum(row[3] for row in rows)
      )
    },
    num_actions=clips.NUM_ACTIONS,
    action_aliases={4: 3},
    made_by={
      "maker": "tests.golden.counterfactuals",
      counterfactuals.KIND: counterfactuals.made_by(
        HISTORY, FRAMES, clips.NUM_ACTIONS
      ),
    },
  ).write(folder)
