"""Pictures of what a stage makes, while it trains.

They are drawn where the parameters lie, by all devices together: no process
could hold a large model alone. A run never ends for its pictures: where they
do not fit beside it, or cannot be shown, it goes on without them.
"""

import io
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from genie_jax.core import errors, files, images
from genie_jax.sharding import compiler_options, hosts, rules
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.train import metrics
from genie_jax.train import stage as stage_lib
from genie_jax.train import state as state_lib

# Of the memory that is free on a device. The rest is room for what the
# allocator cannot use, as it lies in pieces.
_SHARE = 0.9
_GIB = 2**30
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Pictures:
  """Draws the first held-out clip and keeps the strips."""

  def __init__(
    self,
    stage: stage_lib.Stage,
    mesh: Mesh,
    like: state_lib.TrainState,
    workdir: epath.Path,
  ):
    """Prepares; nothing is compiled yet.

    Args:
      stage: Draws and shows.
      mesh: The device mesh.
      like: The abstract state.
      workdir: Pictures go to its folder "previews".
    """
    self._stage = stage
    self._folder = workdir / "previews"
    self._mesh = mesh_lib.without_frames(mesh)
    self._layout = jax.tree.map(
      lambda x: NamedSharding(self._mesh, x.sharding.spec),
      (like.params, like.extra),
    )
    self._program = None
    self._stopped = False

  def draw(
    self,
    step: int,
    state: state_lib.TrainState,
    clip: Mapping[str, np.ndarray],
    rng: jax.Array,
    writer: metrics.Writer,
  ) -> None:
    """Draws, and writes on process 0; call it on every process.

    Args:
      step: Number of the step, for names.
      state: Only read.
      clip: The stage's arrays of one clip, each with a leading 1; the same
        on all processes.
      rng: Key of what is random.
      writer: Gets the pictures too.
    """
    if self._stopped:
      return
    why = self._try(step, state, clip, rng, writer)
    if hosts.agree(why is None):
      return
    self._stopped = True
    if jax.process_index() == 0:
      logging.warning(
        "step %d: no more pictures from this start on: %s",
        step,
        why or "another process cannot draw them; see its log.",
      )

  def _try(self, step, state, clip, rng, writer) -> str | None:
    """Returns why nothing was drawn, None where all went well."""
    try:
      # A zero-copy change of names, but for a mesh of both tensor and frame.
      params, extra = jax.device_put((state.params, state.extra), self._layout)
      inputs = params, extra, dict(clip), rng
      if self._program is None:
        self._program = hosts.together(lambda: self._compile(*inputs))
      drawn = jax.device_get(self._program(*inputs))
      if jax.process_index() == 0:
        self._keep(step, drawn, writer)
    except (errors.UserError, OSError) as error:
      return str(error)
    except jax.errors.JaxRuntimeError as error:
      if _OUT_OF_MEMORY not in str(error):
        raise
      return f"they do not fit a device ({str(error).splitlines()[0]})"
    return None

  def _keep(self, step, drawn, writer) -> None:
    for name, rows in self._stage.show(drawn).items():
      picture = images.strip(rows)
      _save_png(self._folder / f"{name}_{step:08d}.png", picture)
      writer.image(step, name, picture)

  def _compile(self, *inputs):
    """Returns the program, where it fits beside the run.

    Raises:
      UserError: It does not.
    """
    mesh, whole = self._mesh, mesh_lib.replicated(self._mesh)

    def draw(params, extra, clip, rng):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        drawn = self._stage.preview(
          params, extra, _on_each(clip, mesh_lib.batch_ways(mesh)), rng
        )
        return jax.tree.map(lambda x: x[0], drawn)

    lowered = jax.jit(
      draw,
      in_shardings=(*self._layout, whole, whole),
      out_shardings=whole,
      compiler_options=compiler_options.options(mesh),
    ).lower(*inputs)
    try:
      program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if _OUT_OF_MEMORY not in str(error):
        raise
      raise errors.UserError(
        f"they do not fit a device ({str(error).splitlines()[0]})"
      ) from error
    free, stats = free_bytes(mesh), program.memory_analysis()
    assert stats is not None  # Every backend of JAX reports it.
    needed = (
      stats.temp_size_in_bytes
      + stats.output_size_in_bytes
      + stats.generated_code_size_in_bytes
    )
    if free is not None and needed > _SHARE * free:
      raise errors.UserError(
        f"they take {needed / _GIB:.3g} GiB a device, of which "
        f"{free / _GIB:.3g} GiB are free beside the run."
      )
    return program


def free_bytes(mesh: Mesh) -> int | None:
  """Returns the least free memory of this process's devices.

  None where devices do not know, as those of a CPU.
  """
  found = [device.memory_stats() for device in mesh.local_devices]
  return min(
    (
      stats["bytes_limit"] - stats["bytes_in_use"]
      for stats in found
      if stats and "bytes_limit" in stats
    ),
    default=None,
  )


def _on_each(clip: Any, ways: int) -> Any:
  """Returns one copy of a clip for each group of devices that takes clips.

  Each takes part in any case, as it holds a share of the parameters.
  """
  return {
    name: rules.constrain(
      jnp.broadcast_to(x, (ways, *x.shape[1:])),
      ("act_batch", *(None,) * (x.ndim - 1)),
    )
    for name, x in clip.items()
  }


def _save_png(path: files.PathLike, picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] to a disk or a bucket."""
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, "PNG")
  files.write_atomic(path, buffer.getvalue())
