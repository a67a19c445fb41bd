"""Genie-style world models in JAX: from game videos to a playable world.

    import genie_jax
    genie_jax.worlds()                       # names of the worlds that ship
    world = genie_jax.load_world("coinrun")  # or a folder, or its address
    state = world.reset()                    # or world.reset(picture)
    state, frame = world.step(state, 3)

Importing this package loads no accelerator library; `load_world` and the
sub-packages do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# A package that can be called: `genie_jax.worlds()`.
from genie_jax import worlds as worlds

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from genie_jax.core import files
  from genie_jax.worlds.world import World

__version__ = "0.1.0"


def load_world(
  name_or_folder: files.PathLike,
  *,
  dtype: str | None = None,
  mesh: Mesh | None = None,
  cache: bool = False,
) -> World:
  """Loads a world to play: weights checked, memory-mapped, and placed.

  No training code is imported. What is downloaded is kept in the user's cache
  folder, checked against the world's manifest.

  Args:
    name_or_folder: The name of a world that ships (see `genie_jax.worlds`); a
      folder that `genie export` wrote, which comes first where both exist; or
      its address: https://..., gs://..., s3://... or hf://owner/name[@revision]
    dtype: Of the matrices and their products: "float32", "bfloat16", or
      "int8" to hold matrices as integers; by device when left out, bfloat16
      on accelerators and float32 on a CPU.
    mesh: A `jax.sharding.Mesh` (see `genie_jax.sharding.mesh.make`) to spread
      a large world over; the default device when left out.
    cache: Keeps all programs that this process compiles from here on for later
      starts, as `genie play` does, in the user's cache folder or in
      JAX_COMPILATION_CACHE_DIR.

  Returns:
    A `genie_jax.worlds.world.World`, which also keeps `.manifest`, `.name` and
    `.prompts`.

  Raises:
    genie_jax.core.errors.UserError: There is no world, it is damaged, or JAX
      is not installed.
  """
  # Late imports: JAX takes seconds, which `import genie_jax` must not.
  from genie_jax.core import errors

  try:
    import jax  # noqa: F401  To say so in one line where it is missing.
  except ModuleNotFoundError as error:
    if error.name not in ("jax", "jaxlib"):
      raise
    raise errors.UserError(
      "genie_jax.load_world needs JAX, which is not installed; `pip install "
      "jax`, or play the world in PyTorch with "
      "genie_jax.ports.torch.load_world."
    ) from error
  from genie_jax.sampling import prepare
  from genie_jax.worlds import download, program_cache, world_folder

  if cache:
    program_cache.enable()
  return download.read(
    name_or_folder,
    lambda folder: (
      world_folder.load(
        folder, dtype=dtype or prepare.default_dtype(), mesh=mesh
      ).world
    ),
  )
