"""Golden files with the layout of each config's state and batches.

A change of a logical axis or of the rules changes a line in a golden file. To
accept the change, run

  python -m tests.sharding.layouts
"""

import json
import pathlib

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from genie_jax.core import config as config_lib
from genie_jax.sharding import mesh as mesh_lib
from genie_jax.stages import registry
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.train import step

GOLDEN = pathlib.Path(__file__).parent / "golden"
ROOT = pathlib.Path(__file__).parent.parent.parent
MANY = dict(data=2, fsdp=4, tensor=2, frame=2)

# Config -> changes of its mesh, and number of chips. Most meshes here use all
# axes but data. All sizes of scaling/dynamics have the same layout.
CASES = {
  **{
    f"{world}/{stage}": (dict(MANY, data=1), 16)
    for world in ("coinrun", "platformers")
    for stage in ("tokenizer", "lam", "dynamics", "joint")
  },
  "coinrun/tokenizer_images:tiny": ({}, 8),
  "platformers/classifier": (dict(MANY, data=1), 16),
  "scaling/dynamics": ({}, 64),
  "scaling/miniature": ({}, 8),
  **{
    f"videos/{stage}:gpu": ({}, 8)
    for stage in ("tokenizer_images", "tokenizer", "lam", "dynamics")
  },
}
# Configs that are also laid out on their own mesh -> number of chips.
OWN = {
  "platformers/tokenizer": 128,
  "platformers/lam": 256,
  "platformers/dynamics": 256,
  "platformers/joint": 256,
}


def mesh_of(config, chips: int) -> AbstractMesh:
  """Returns a config's mesh as an abstract mesh, without devices."""
  sizes = mesh_lib.sizes(config.mesh, chips)
  return AbstractMesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


def describe(name: str, changes: dict[str, int], chips: int) -> dict:
  """Returns shape, dtype and layout of every array of a config's train step.

  Args:
    name: Name of the config in experiments/.
    changes: Mesh axes that differ from the config's.
    chips: Number of devices of the mesh.
  """
  file, _, mode = name.partition(":")
  config = config_lib.load(f"{ROOT}/experiments/{file}.py:{mode}").unlock()
  if "start" in config:
    config.start = "random"  # Other values need a folder with a tokenizer.
  config.mesh.update(changes)
  config.optimizer.accumulate = 1
  size = config.data.batch_size = max(config.data.batch_size, chips)
  stage = registry.make(config)
  mesh = mesh_of(config, chips)
  sizes = dict(mesh.shape)
  optimizer = optimizer_lib.make(config.optimizer, config.steps, stage.no_decay)
  state = state_lib.abstract(stage, optimizer, mesh)
  line = lambda shape, dtype, spec: (
    f"{np.dtype(dtype).name}{list(shape)} {spec}"
    if shape
    else f"{np.dtype(dtype).name} {spec}"
  )
  arrays = {
    "/".join(map(_key, path)): line(x.shape, x.dtype, x.sharding.spec)
    for path, x in jax.tree_util.tree_leaves_with_path(
      (state.params, state.extra)
    )
  }
  layouts = step.batch_shardings(stage, mesh, size, 1)
  # Most arrays of the optimizer have the layout of a parameter; list the rest.
  wanted = {x.sharding.spec for x in jax.tree.leaves(state.params)}
  other = [
    x.sharding.spec
    for x in jax.tree.leaves(state.opt_state)
    if x.ndim and x.sharding.spec not in wanted
  ]
  return {
    "mesh": sizes,
    "batch": {
      feature: line(
        (size, *stage.features[feature].shape),
        stage.features[feature].dtype,
        layout.spec,
      )
      for feature, layout in layouts.items()
    },
    "state": arrays,
    "optimizer_state_of_another_layout": [str(spec) for spec in other],
  }


def all_of(name: str) -> list[dict]:
  """Returns the layouts of a config on each of its meshes."""
  changes, chips = CASES[name]
  found = [describe(name, changes, chips)]
  if name in OWN:
    found.append(describe(name, {}, OWN[name]))
  return found


def path_of(name: str) -> pathlib.Path:
  """Returns the golden file of a config."""
  file = name.partition(":")[0]
  return GOLDEN / f"{file.replace('/', '_')}.json"


def _key(entry) -> str:
  return str(getattr(entry, "key", getattr(entry, "idx", entry)))


def main() -> None:
  """Overwrites all golden files."""
  for name in CASES:
    path_of(name).write_text(json.dumps(all_of(name), indent=1) + "\n")
    print(path_of(name))


if __name__ == "__main__":
  main()
