"""Previews: images of a stage's output during training.

All devices compute them together with the sharded parameters, because a single
process could not hold a large model. Previews never stop a run: if they do not
fit into memory next to the run, or cannot be shown, the run continues without
them.
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

# Share of the free memory of a device that previews may use. The rest allows
# for fragmentation.
_USABLE_SHARE = 0.9
_GIB = 2**30
_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Pictures:
  """Draws previews of the first held-out clip and writes them as strips."""

  def __init__(
    self,
    stage: stage_lib.Stage,
    mesh: Mesh,
    like: state_lib.TrainState,
    workdir: epath.Path,
  ):
    """Prepares the layout; nothing is compiled yet.

    Args:
      stage: The stage, with `preview` and `show`.
      mesh: The device mesh.
      like: The abstract state.
      workdir: Images are written to its folder "previews".
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
    """Draws on all devices and writes on process 0; call it on all processes.

    Args:
      step: Number of the step, for file names.
      state: The current state.
      clip: The stage's arrays of one clip, each with a leading axis of 1; the
        same on all processes.
      rng: Key for sampling.
      writer: Writes the images, in addition to the files.
    """
    if self._stopped:
      return
    why = self._try_to_draw(step, state, clip, rng, writer)
    if hosts.agree(why is None):
      return
    self._stopped = True
    if jax.process_index() == 0:
      logging.warning(
        "step %d: no more previews until the next start: %s",
        step,
        why or "another process cannot draw them; see its log.",
      )

  def _try_to_draw(self, step, state, clip, rng, writer) -> str | None:
    """Returns the reason if nothing could be drawn, else None."""
    try:
      # Changes only axis names, without a copy, except on a mesh with both
      # tensor and frame axes.
      params, extra = jax.device_put((state.params, state.extra), self._layout)
      inputs = params, extra, dict(clip), rng
      if self._program is None:
        self._program = hosts.together(lambda: self._compile(*inputs))
      drawn = jax.device_get(self._program(*inputs))
      if jax.process_index() == 0:
        self._write(step, drawn, writer)
    except (errors.UserError, OSError) as error:
      return str(error)
    except jax.errors.JaxRuntimeError as error:
      if _OUT_OF_MEMORY not in str(error):
        raise
      return f"they do not fit a device ({str(error).splitlines()[0]})"
    return None

  def _write(self, step, drawn, writer) -> None:
    for name, rows in self._stage.show(drawn).items():
      picture = images.strip(rows)
      _save_png(self._folder / f"{name}_{step:08d}.png", picture)
      writer.image(step, name, picture)

  def _compile(self, *inputs):
    """Compiles the program.

    Raises:
      UserError: It does not fit into memory next to the run.
    """
    mesh = self._mesh
    lowered = make_program(self._stage, mesh, self._layout).lower(*inputs)
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
    if free is not None and needed > _USABLE_SHARE * free:
      raise errors.UserError(
        f"they need {needed / _GIB:.3g} GiB on each device, of which "
        f"{free / _GIB:.3g} GiB are free next to the run."
      )
    return program


def make_program(
  stage: stage_lib.Stage, mesh: Mesh, layout: tuple[Any, Any]
) -> Any:
  """Returns the jitted `(params, extra, clip, rng) -> arrays` of a preview.

  Args:
    stage: The stage, with `preview`.
    mesh: The mesh, from `mesh.without_frames`.
    layout: Layouts of the parameters and of the stage's own state on it.
  """
  whole = mesh_lib.replicated(mesh)

  def draw(params, extra, clip, rng):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      drawn = stage.preview(
        params,
        extra,
        _copy_to_each_group(clip, mesh_lib.batch_ways(mesh)),
        rng,
      )
      return jax.tree.map(lambda x: x[0], drawn)

  return jax.jit(
    draw,
    in_shardings=(*layout, whole, whole),
    out_shardings=whole,
    compiler_options=compiler_options.options(mesh),
  )


def free_bytes(mesh: Mesh) -> int | None:
  """Returns the smallest free memory of this process's devices, in bytes.

  None if the devices do not report it, as on a CPU.
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


def _copy_to_each_group(clip: Any, ways: int) -> Any:
  """Returns one copy of a clip for each group of devices along the batch axes.

  All groups have to take part, since each holds a share of the parameters.
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
