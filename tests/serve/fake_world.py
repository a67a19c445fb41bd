"""A fake world that steps in microseconds and detects mixed-up states.

A frame shows a number that depends on the prompt, the seed and all actions so
far. As in a real world, a step consumes the state.
"""

import time
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from genie_jax.serve import engine
from genie_jax.worlds import buttons as buttons_lib
from genie_jax.worlds import world

SHAPE = (16, 24, 3)
NUM_ACTIONS = 4


class State(NamedTuple):
  """State of one player; `alive` is False after it was stepped."""

  digest: np.ndarray
  alive: np.ndarray


class FakeWorld:
  """The part of `World` that the server uses."""

  frame_shape = SHAPE
  num_actions = NUM_ACTIONS
  fps = 15
  fingerprint = "f" * 64

  def __init__(self, seconds: float = 0.0, buttons=()):
    self.buttons = buttons_lib.of({"buttons": buttons}, NUM_ACTIONS)
    self.seconds = seconds  # Duration of a step.
    self.batches: list[int] = []  # Sizes of the steps so far.
    self.resets = 0

  def reset(self, frame, *, seed=0):
    assert frame.shape == SHAPE and frame.dtype == np.uint8
    self.resets += 1
    return self._state(zlib.crc32(frame.tobytes(), seed))

  def step(self, state, action):
    states, frames = self._step([state], [action])
    return states[0], frames[0]

  def step_many(self, states, actions, *, sizes=world.BATCHES):
    after, frames = [], []
    for group in world.split(len(states), sizes):
      several, shown = self._step(states[group], actions[group])
      after += several
      frames += list(shown)
    return after, frames

  def fork(self, state):
    assert state.alive[0], "a state was copied after it was stepped"
    return self._state(int(state.digest))

  def show(self, state):
    assert state.alive[0]
    return picture(int(state.digest))

  def warm_up(self, batches=(1,)):
    pass

  def _state(self, digest):
    return State(np.uint32(digest), np.array([True]))

  def _step(self, states, actions):
    if self.seconds:
      time.sleep(self.seconds)
    self.batches.append(len(states))
    after = []
    for state, action in zip(states, actions, strict=True):
      assert state.alive[0], "a state was stepped twice"
      assert 0 <= action < NUM_ACTIONS
      state.alive[0] = False
      after.append(self._state(zlib.crc32(bytes([action]), int(state.digest))))
    return after, np.stack([self.show(state) for state in after])


class SquaresWorld(FakeWorld):
  """A fake world whose first frame shows the prompt as squares of 4 x 4 pixels.

  Its tokenizer, so to speak, knows pictures like those of `picture` only.
  """

  def __init__(self):
    super().__init__()
    self._first: dict[int, np.ndarray] = {}

  def reset(self, frame, *, seed=0):
    state = super().reset(frame, seed=seed)
    squares = frame.reshape(4, 4, 6, 4, 3).mean((1, 3)).round()
    self._first[int(state.digest)] = (
      squares.astype(np.uint8).repeat(4, 0).repeat(4, 1)
    )
    return state

  def show(self, state):
    shown = super().show(state)
    return self._first.get(int(state.digest), shown)


def picture(digest: int) -> np.ndarray:
  """Returns an image of coloured squares, different for each number."""
  random = np.random.default_rng(digest)
  squares = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
  return squares.repeat(4, 0).repeat(4, 1)


def solo(frame: np.ndarray, seed: int, actions: list[int]) -> list[np.ndarray]:
  """Returns the frames of a run that is played alone."""
  alone = FakeWorld()
  state = alone.reset(frame, seed=seed)
  frames = [alone.show(state)]
  for action in actions:
    state, shown = alone.step(state, action)
    frames.append(shown)
  return frames


def prompts() -> list[np.ndarray]:
  """Returns the prompts of the gallery."""
  return [picture(number) for number in range(3)]


def make_engine(
  seconds: float = 0.0,
  batches: tuple[int, ...] = world.BATCHES,
  buttons: Sequence[dict] = (),
  made_of: FakeWorld | None = None,
  gallery: Sequence[np.ndarray] | None = None,
) -> engine.Engine:
  """Returns a warm engine over a new fake world.

  Args:
    seconds: Duration of a step.
    batches: As in `engine.Engine`.
    buttons: What the buttons were measured to do, as in a manifest.
    made_of: Another fake world.
    gallery: Other prompts than `prompts()`.
  """
  made = engine.Engine(
    made_of or FakeWorld(seconds, buttons),
    prompts() if gallery is None else gallery,
    name="squares",
    rules={},
    batches=batches,
  )
  made.warm_up()
  return made
