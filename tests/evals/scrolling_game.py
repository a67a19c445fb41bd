"""A game whose counterfactuals are known, and worlds with known faults.

The picture is a window of a random texture, centred on a white player. Keys:
0 left, 1 nothing, 2 right, 3 up, 4 the same as 1. Every third moment has a wall
to the left, where key 0 does nothing, and every fourth one is in the air, where
all keys fall and key 3 does nothing.

A token is a pixel's brightness, so that nothing is lost.
"""

import dataclasses
import pathlib

import numpy as np

from genie_jax.data import counterfactuals, manifest, shards
from genie_jax.evals import evaluated_world

SIDE, FRAMES, HISTORY, KEYS = 32, 8, 3, 5
# Keys -> motion in pixels per frame, to the right and upwards.
MOVES = ((-2, 0), (0, 0), (2, 0), (0, 3), (0, 0))
FALL = (0, -2)
GROUPS = [[0], [1, 4], [2], [3]]
NAMES = {0: "left", 1: "nothing", 2: "right", 3: "jump"}
LEVELS, PER_LEVEL = 10, 3


def picture(texture: np.ndarray, right: int, up: int) -> np.ndarray:
  """Returns the frame of a player who moved, uint8 [32, 32, 3]."""
  row, column = 40 - up, 40 + right
  frame = texture[row : row + SIDE, column : column + SIDE].copy()
  frame[14:18, 14:18] = 255
  return np.repeat(frame[..., None], 3, -1)


def moment(number: int) -> counterfactuals.Moment:
  """Returns one moment."""
  rng = np.random.default_rng(number)
  # Coarse, as the platforms of a game are.
  texture = rng.integers(0, 200, (30, 30), np.uint8).repeat(4, 0).repeat(4, 1)
  wall, air = number % 3 == 0, number % 4 == 0

  def velocity(key: int) -> np.ndarray:
    moved = np.array(MOVES[key])
    if wall and key == 0:
      moved[0] = 0
    if air:
      moved[1] = FALL[1]
    return moved

  own = rng.integers(0, KEYS, FRAMES)
  keys = np.repeat(np.arange(KEYS + 1)[:, None], FRAMES, 1)
  keys[-1] = own
  places = np.stack(
    [np.cumsum([velocity(key) for key in row], 0) for row in keys]
  )  # [R, F, 2]
  futures = np.stack(
    [[picture(texture, *place) for place in path] for path in places]
  )
  distinct, future_of = counterfactuals.merge_equal(futures)
  states = np.zeros((KEYS + 1, FRAMES, 5), np.float32)
  states[..., :2] = places
  still = picture(texture, 0, 0)
  return counterfactuals.Moment(
    level=100 + number // PER_LEVEL,
    step=10 + number % PER_LEVEL,
    history=np.repeat(still[None], HISTORY, 0),
    history_keys=np.ones(HISTORY - 1, np.int32),
    history_states=np.zeros((HISTORY, 5), np.float32),
    keys=keys.astype(np.int32),
    distinct=distinct,
    future_of=future_of,
    states=states,
  )


MOMENTS = [moment(number) for number in range(LEVELS * PER_LEVEL)]


def write(folder: pathlib.Path, split: str = "test") -> pathlib.Path:
  """Writes the moments as counterfactuals of a clips folder."""
  episodes = []
  with shards.ShardWriter(folder / split / shards.shard_name(0, 1)) as writer:
    for record, found in enumerate(MOMENTS):
      writer.write(counterfactuals.pack(found, 10))
      episodes.append([found.level, record, found.step, found.num_frames])
  manifest.Manifest(
    kind=counterfactuals.KIND,
    name="scrolling",
    fps=10,
    frame_shape=(SIDE, SIDE, 3),
    frames_per_record=MOMENTS[0].num_frames,
    splits={
      split: manifest.split_summary(
        [{**writer.entry, "episodes": episodes}],
        sum(row[3] for row in episodes),
      )
    },
    num_actions=KEYS,
    action_aliases={4: 1},
    made_by={
      counterfactuals.KIND: counterfactuals.made_by(HISTORY, FRAMES, KEYS)
    },
  ).write(folder)
  return folder


def encode(frames: np.ndarray) -> np.ndarray:
  return frames[..., 0].astype(np.int32)


def decode(tokens: np.ndarray) -> np.ndarray:
  return np.repeat(tokens[..., None], 3, -1).astype(np.uint8)


def _of(prompt: np.ndarray) -> counterfactuals.Moment:
  """Returns the moment of a prompt's last frame."""
  shown = [encode(found.history[-1]) for found in MOMENTS]
  (number,) = [n for n, x in enumerate(shown) if np.array_equal(x, prompt)]
  return MOMENTS[number]


def world(draw, num_buttons: int = KEYS - 1) -> evaluated_world.Subject:
  """Returns a world of latent buttons.

  Args:
    draw: (moment, button, clip id) -> uint8 [F, H, W, C].
    num_buttons: A.
  """

  def rollout(prompt, buttons, clip_ids, seed):
    del seed
    # The button is held after the prompt.
    assert (buttons[:, prompt.shape[1] - 1 :] == buttons[:, -1:]).all()
    drawn = [
      encode(draw(_of(last), int(button), int(clip)))
      for last, button, clip in zip(
        prompt[:, -1], buttons[:, -1], clip_ids, strict=True
      )
    ]
    return np.concatenate([prompt, np.stack(drawn)], 1)

  return evaluated_world.Subject(
    encode=encode,
    decode=decode,
    infer=lambda frames: np.zeros((len(frames), frames.shape[1] - 1), np.int32),
    rollout=rollout,
    next_frame=lambda tokens, buttons, seed: tokens[:, -1],
    num_frames=6,
    frame_shape=(SIDE, SIDE, 3),
    token_patch=1,
    num_codes=256,
    num_buttons=num_buttons,
    fps=10,
    sampling={},
    fingerprint="f" * 64,
  )


def perfect(keys: tuple[int, ...]) -> evaluated_world.Subject:
  """Returns a world whose button b does exactly what key keys[b] does."""
  return world(lambda found, button, _: found.future(keys[button]), len(keys))


def always(key: int) -> evaluated_world.Subject:
  """Returns a world that does the same under all buttons."""
  return world(lambda found, *_: found.future(key))


def still() -> evaluated_world.Subject:
  """Returns a world that repeats the last frame."""
  return world(lambda found, *_: np.repeat(found.history[-1:], FRAMES, 0))


def noisy(seed: int, obeys: float, num_buttons: int = 4):
  """Returns a world that obeys in some moments, and guesses in the others.

  Args:
    seed: Of the guesses and of the noise in its frames.
    obeys: Share of moments and buttons in which it obeys.
    num_buttons: A; button b is key b.
  """

  def draw(found, button, clip):
    rng = np.random.default_rng([seed, button, clip])
    key = button if rng.random() < obeys else int(rng.integers(KEYS))
    frames = found.future(key).astype(int)
    frames += rng.integers(-60, 61, (*frames.shape[:3], 1))
    return np.clip(frames, 0, 255).astype(np.uint8)

  return world(draw, num_buttons)


def true_world() -> evaluated_world.Subject:
  """Returns a perfect world whose buttons are the keys themselves."""
  subject = perfect((0, 1, 2, 3, 4))
  return dataclasses.replace(subject, infer=None)


def coarse(subject: evaluated_world.Subject, block: int):
  """Returns a world whose tokenizer blurs squares of `block` pixels."""

  def blur(tokens):
    count = SIDE // block
    mean = tokens.reshape(*tokens.shape[:-2], count, block, count, block)
    mean = mean.mean((-3, -1)).astype(np.int32)
    return decode(mean.repeat(block, -2).repeat(block, -1))

  return dataclasses.replace(subject, decode=blur)
