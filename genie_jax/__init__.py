"""Genie-style world models in JAX: from game videos to a playable world.

    import genie_jax
    world = genie_jax.load_world("world")  # or an address: https, gs, s3
    state = world.reset(picture)
    state, frame = world.step(state, 3)

Importing this package loads no accelerator library; `load_world` and the
sub-packages do.
"""

__version__ = "0.1.0"


def load_world(folder_or_url, *, dtype=None, mesh=None):
  """Loads a world to play: weights checked, memory-mapped, and placed.

  No training code is imported. What is downloaded is kept in the user's cache
  folder, checked against the world's manifest.

  Args:
    folder_or_url: A folder that `genie export` wrote, or its address:
      https://..., gs://... or s3://...
    dtype: Of the matrices and their products: "float32", "bfloat16", or
      "int8" to hold matrices as integers; by device when left out, bfloat16
      on accelerators and float32 on a CPU.
    mesh: A `jax.sharding.Mesh` (see `genie_jax.sharding.mesh.make`) to spread
      a large world over; the default device when left out.

  Returns:
    A `genie_jax.worlds.world.World`, which also keeps `.manifest`, `.name` and
    `.prompts`.

  Raises:
    genie_jax.core.errors.UserError: There is no world, or it is damaged.
  """
  # Late imports: JAX takes seconds, which `import genie_jax` must not.
  from genie_jax.sampling import prepare
  from genie_jax.worlds import download, world_folder

  return download.read(
    folder_or_url,
    lambda folder: (
      world_folder.load(
        folder, dtype=dtype or prepare.default_dtype(), mesh=mesh
      ).world
    ),
  )
