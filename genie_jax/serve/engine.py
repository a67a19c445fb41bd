"""The model as the server uses it: frames in, states and pictures out.

One thread owns it. Nothing here knows players.
"""

import dataclasses
import hashlib
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import genie_jax
from genie_jax.core import files, images
from genie_jax.sampling import prepare, samplers
from genie_jax.sampling import slide as slide_lib
from genie_jax.worlds import world as world_lib

BATCHES = tuple(sorted(world_lib.BATCHES))


@dataclasses.dataclass(frozen=True)
class Description:
  """What a page needs to know of a world.

  Attributes:
    name: Of the world.
    fingerprint: Of configs and weights; names of buttons are kept under it.
    replay: Of all that decides what a seed and actions lead to.
    num_actions: Buttons.
    height: Rows of a frame.
    width: Columns of a frame.
    fps: Frames a second at which the world was recorded.
  """

  name: str
  fingerprint: str
  replay: str
  num_actions: int
  height: int
  width: int
  fps: int


class Engine:
  """A world, its prompts, and which sizes of batches are compiled.

  Attributes:
    world: The world.
    prompts: uint8 [H, W, C] each.
    description: What a page needs to know.
    state_bytes: Size of one player's state; known once warm.
    most: Players that may be stepped together.
  """

  def __init__(
    self,
    world: world_lib.World,
    prompts: Sequence[np.ndarray],
    *,
    name: str,
    rules: Mapping[str, Any],
    batches: Sequence[int] | None = None,
    split: bool = False,
  ):
    """Puts a world behind the server.

    Args:
      world: The world.
      prompts: Its gallery.
      name: Of the world.
      rules: JSON of whatever else decides a frame: sampling, slide.
      batches: How many players may be stepped by one call, 1 among them. When
        left out, all that `World.step_many` compiles, but on a CPU only 1: it
        steps several no faster together, and a player's pixels would depend in
        their last bit on who else is there.
      split: Whether the world lies on several devices.
    """
    self.world = world
    self.prompts = list(prompts)
    self.state_bytes = 0
    if batches is None:
      batches = (1,) if jax.default_backend() == "cpu" else BATCHES
    self._batches = sorted(batches)
    self.most = self._batches[-1]
    self._split = split
    self._warm = {1}
    self._ended = threading.Event()
    height, width = world.frame_shape[:2]
    digest = hashlib.sha256(
      json.dumps([world.fingerprint, dict(rules)], sort_keys=True).encode()
    )
    for prompt in self.prompts:
      digest.update(prompt.tobytes())
    self.description = Description(
      name=name,
      fingerprint=world.fingerprint,
      replay=digest.hexdigest()[:16],
      num_actions=world.num_actions,
      height=height,
      width=width,
      fps=world.fps,
    )

  def warm_up(self) -> None:
    """Compiles what one player needs, by playing two frames.

    Of a world on several devices all batches: programs that two threads send
    to the same devices may reach them in different orders, and then wait for
    each other for ever, so that nothing may be compiled beside the game.
    """
    if self._split:
      self._warm = set(self._batches)
    self.world.warm_up(batches=sorted(self._warm))
    state, _ = self.start(np.zeros(self.world.frame_shape, np.uint8), 0)
    kept = self.world.fork(state)
    self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    for _ in range(2):
      state, frame = self.world.step(state, 0)
    images.to_png(frame)

  def warm_batches(self) -> threading.Thread:
    """Compiles larger batches beside the game; each is used when ready."""

    def compile_all():
      for size in self._batches[1:]:
        if self._ended.is_set():
          return
        if size in self._warm:
          continue
        self.world.warm_up(batches=(size,))
        self._warm = self._warm | {size}
      logging.getLogger(__name__).debug("all batches are compiled")

    thread = threading.Thread(target=compile_all, name="compile", daemon=True)
    thread.start()
    return thread

  def end(self) -> None:
    """Stops compiling after the batch that is being compiled."""
    self._ended.set()

  def start(self, frame: np.ndarray, seed: int) -> tuple[Any, bytes]:
    """Returns the state after a prompt, and how the world shows the prompt.

    Args:
      frame: uint8 [H, W, C].
      seed: Fixes all noise.
    """
    state = self.world.reset(frame, seed=seed)
    return state, images.to_png(np.asarray(self.world.show(state)))

  def fork(self, state: Any) -> Any:
    """Returns a copy of a state, which steps do not consume."""
    return self.world.fork(state)

  def step(
    self, states: Sequence[Any], actions: Sequence[int]
  ) -> list[tuple[Any, bytes]]:
    """Steps players together; consumes their states.

    Args:
      states: One a player.
      actions: One a player.

    Returns:
      For each player the new state and its frame as PNG.
    """
    done, begin = [], 0
    while begin < len(states):
      left = len(states) - begin
      size = max(size for size in self._warm if size <= left)
      chunk = slice(begin, begin + size)
      begin += size
      if size == 1:
        state, frame = self.world.step(states[chunk][0], actions[chunk][0])
        found, frames = [state], [frame]
      else:
        found, frames = self.world.step_many(
          list(states[chunk]), list(actions[chunk])
        )
      done += [
        (state, images.to_png(np.asarray(frame)))
        for state, frame in zip(found, frames, strict=True)
      ]
    return done


def open_world(
  folder_or_url: files.PathLike,
  *,
  refinements: int | None = None,
  slide: str | None = None,
  dtype: str | None = None,
  mesh: Mesh | None = None,
) -> Engine:
  """Loads a world and its gallery.

  Args:
    folder_or_url: As `genie_jax.load_world` takes it.
    refinements: For samplers with such a field: steps a frame; the world's
      when left out.
    slide: What happens when the window is full; the world's when left out.
    dtype: As `genie_jax.load_world` takes it.
    mesh: The same.

  Raises:
    UserError: It is no world, it is damaged, or a number is out of range.
  """
  world = genie_jax.load_world(folder_or_url, dtype=dtype, mesh=mesh)
  sampling, sliding = world.sampling, world.slide
  if refinements is not None:
    sampling = samplers.replace(sampling, {"refinements": refinements})
  if slide is not None:
    sliding = slide_lib.Slide(slide)
  world = world.with_options(sampling=sampling, slide=sliding)
  prompts = [
    images.load_prompt(path, *world.frame_shape[:2]) for path in world.prompts
  ]
  rules: dict[str, Any] = {
    "sampling": samplers.to_config(sampling),
    "slide": vars(sliding),
  }
  if dtype not in (None, prepare.default_dtype()):
    rules["dtype"] = dtype  # Links made without the flag stay as they are.
  return Engine(
    world, prompts, name=world.name, rules=rules, split=mesh is not None
  )
