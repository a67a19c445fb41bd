"""A world with its prompts, and the group sizes for which it is compiled.

Knows nothing of players, sessions or connections.
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
from genie_jax.serve import likeness as likeness_lib
from genie_jax.worlds import buttons as buttons_lib
from genie_jax.worlds import world as world_lib


@dataclasses.dataclass(frozen=True)
class Description:
  """The properties of a world that the page needs.

  Attributes:
    name: The world's name.
    fingerprint: Of configs and weights; names of buttons are stored under it.
    replay: Digest of everything that determines the frames of a seed and a
      sequence of actions.
    num_actions: Number of buttons.
    buttons: What each button was measured to do.
    height: Rows of a frame.
    width: Columns of a frame.
    fps: Frames per second at which the world was recorded.
  """

  name: str
  fingerprint: str
  replay: str
  num_actions: int
  buttons: tuple[buttons_lib.Button, ...]
  height: int
  width: int
  fps: int


class Engine:
  """A world, its prompts, and the group sizes that are compiled.

  Attributes:
    world: The world.
    prompts: uint8 [H, W, C] each.
    description: The properties that the page needs.
    state_bytes: Size of one player's state; 0 before `warm_up`.
    least_psnr: The least PSNR of the prompts as the world shows them, see
      serve/likeness.py; None without prompts and before `warm_up`.
    sizes: Sizes of groups of players whose step is compiled, in ascending
      order; grows while `warm_batches` compiles.
    most: The largest group that will be compiled.
  """

  def __init__(
    self,
    world: world_lib.World,
    prompts: Sequence[np.ndarray],
    *,
    name: str,
    rules: Mapping[str, Any],
    batches: Sequence[int] | None = None,
    on_mesh: bool = False,
  ):
    """Creates an engine; nothing is compiled yet.

    Args:
      world: The world.
      prompts: Its prompts.
      name: The world's name.
      rules: Everything else that determines a frame, as JSON values: sampling
        and slide.
      batches: Sizes of groups of players that one call may step, 1 among them.
        By default all sizes in `world.BATCHES`, but only 1 on a CPU: there a
        group is not faster than its players one by one, and the last bit of a
        player's pixels would depend on the size of the group.
      on_mesh: Whether the world is sharded over several devices.
    """
    self.world = world
    self.prompts = list(prompts)
    self.state_bytes = 0
    self.least_psnr: float | None = None
    if batches is None:
      on_cpu = jax.default_backend() == "cpu"
      batches = (1,) if on_cpu else world_lib.BATCHES
    self._batches = sorted(batches)
    self.most = self._batches[-1]
    self._on_mesh = on_mesh
    self.sizes: tuple[int, ...] = (1,)
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
      buttons=world.buttons,
      height=height,
      width=width,
      fps=world.fps,
    )

  def warm_up(self) -> None:
    """Compiles everything that one player needs, by playing two frames.

    On several devices all group sizes are compiled now. Compiling a size later
    would run it in a second thread; programs that two threads send to the same
    devices may arrive in different orders and then wait for each other forever.
    """
    if self._on_mesh:
      self.sizes = tuple(self._batches)
    self.world.warm_up(batches=self.sizes)
    state = self.world.reset(np.zeros(self.world.frame_shape, np.uint8), seed=0)
    images.to_png(self.world.show(state))
    kept = self.world.fork(state)
    self.state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
    for _ in range(2):
      (state,), _ = self.world.step_many([state], [0])
    self.least_psnr = likeness_lib.least(self.world, self.prompts)

  def likeness(
    self, picture: np.ndarray, shown: np.ndarray
  ) -> likeness_lib.Likeness | None:
    """Compares a picture with the first frame; None without prompts."""
    if self.least_psnr is None:
      return None
    return likeness_lib.Likeness(
      likeness_lib.psnr(picture, shown), self.least_psnr
    )

  def warm_batches(self) -> threading.Thread:
    """Compiles larger groups in a thread; each is used once it is ready."""

    def compile_all():
      for size in self._batches[1:]:
        if self._ended.is_set():
          return
        if size in self.sizes:
          continue
        self.world.warm_up(batches=(size,))
        self.sizes = (*self.sizes, size)
      logging.getLogger(__name__).debug("all group sizes are compiled")

    thread = threading.Thread(target=compile_all, name="compile", daemon=True)
    thread.start()
    return thread

  def end(self) -> None:
    """Stops `warm_batches` after the size that it is compiling."""
    self._ended.set()


def open_world(
  folder_or_url: files.PathLike,
  *,
  refinements: int | None = None,
  slide: str | None = None,
  dtype: str | None = None,
  mesh: Mesh | None = None,
) -> Engine:
  """Loads a world and its prompts.

  Args:
    folder_or_url: As in `genie_jax.load_world`.
    refinements: Passes per frame, for samplers with such a field; the world's
      when left out.
    slide: What happens when the window is full; the world's when left out.
    dtype: As in `genie_jax.load_world`.
    mesh: As in `genie_jax.load_world`.

  Raises:
    UserError: It is not a world, the world is damaged, or a number is out of
      range.
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
    world, prompts, name=world.name, rules=rules, on_mesh=mesh is not None
  )
