"""Starting from the weights of another model: `config.init_from`."""

import dataclasses
from typing import Any

import jax
from absl import logging

from genie_jax.checkpoints import reader
from genie_jax.core import buckets, errors
from genie_jax.train import optimizer as optimizer_lib
from genie_jax.train import state as state_lib
from genie_jax.weights import param_tree

_WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Report:
  """What a warm start did; names are "params/<path>" or "extra/<path>".

  Attributes:
    loaded: Arrays that were taken over.
    missing: Arrays of the new model that keep their fresh values, each with
      the reason.
    unused: Arrays of the source that the new model has no place for.
  """

  loaded: tuple[str, ...]
  missing: dict[str, str]
  unused: tuple[str, ...]


def apply(
  state: state_lib.TrainState,
  source: str,
  stage_name: str,
  optimizer: optimizer_lib.Optimizer,
  like: state_lib.TrainState,
) -> tuple[state_lib.TrainState, Report]:
  """Takes over every array of `source` that has the same name and shape.

  A model of several parts (joint) finds the parts that were trained alone,
  and a part finds itself in a model of several.

  Args:
    state: A freshly created state.
    source: A workdir of `genie train`, or the folder of a saved model.
    stage_name: Name of the stage of `state`.
    optimizer: Its state is made anew, as moments of other weights mislead.
    like: The abstract state.

  Returns:
    The state at step 0, and what did and did not load.

  Raises:
    UserError: `source` holds no model, or nothing of it fits.
  """
  table, names = _read(source)
  new, loaded, missing, used = [], [], {}, set()
  paths, structure = jax.tree_util.tree_flatten_with_path(
    {"params": state.params, "extra": state.extra}
  )
  for tree_path, fresh in paths:
    new.append(fresh)
    name = param_tree.path_name(tree_path)
    group, path = name.split("/", 1)
    keys = [
      key for key in (name, f"{group}/{stage_name}/{path}") if key in table
    ]
    if not keys:
      missing[name] = "not in the source"
      continue
    # A part found in a joint model wins over a chance namesake at its root.
    value, origin = table[keys[-1]]
    if value.shape != fresh.shape:
      missing[name] = (
        f"the source has shape {list(value.shape)}, this model "
        f"{list(fresh.shape)}"
      )
      continue
    # Rounded weights of a bundle become the full ones of this state.
    new[-1] = jax.device_put(value.astype(fresh.dtype), fresh.sharding)
    loaded.append(name)
    used.add(origin)
  report = Report(tuple(loaded), missing, tuple(sorted(names - used)))
  if not any(name.startswith("params/") for name in loaded):
    raise errors.UserError(
      f"config.init_from={source}: none of its {len(names)} arrays fits a "
      f"parameter of the {stage_name} stage; give a model of the same kind."
    )
  logging.info(
    "Warm start from %s: %d arrays loaded, %d fresh, %d of the source "
    "unused; the optimizer starts again.",
    source,
    len(report.loaded),
    len(report.missing),
    len(report.unused),
  )
  _warn(report)
  tree = jax.tree.unflatten(structure, new)
  state = dataclasses.replace(state, **tree)
  return state_lib.reset_optimizer(state, optimizer, like), report


def _read(source: str) -> tuple[dict[str, tuple[Any, str]], set[str]]:
  """Returns name -> (array, own name) with aliases, and the own names."""
  folder = buckets.run_folder(source)
  if (folder / _WEIGHTS).is_file():
    tree, _ = param_tree.load(folder / _WEIGHTS)
    flat = {f"params/{n}": x for n, x in param_tree.flatten(tree).items()}
    return {name: (x, name) for name, x in flat.items()}, set(flat)
  if not reader.valid_steps(folder):
    raise errors.UserError(
      f"config.init_from={source} is neither a workdir with a finished "
      f"checkpoint nor a folder with {_WEIGHTS}."
    )
  params, extra, config = reader.load_params(folder)
  flat = param_tree.flatten({"params": params, "extra": extra})
  table = {name: (x, name) for name, x in flat.items()}
  for name, x in flat.items():
    group, path = name.split("/", 1)
    table.setdefault(f"{group}/{config['stage']}/{path}", (x, name))
  return table, set(flat)


def _warn(report: Report) -> None:
  for name, why in report.missing.items():
    logging.warning("Warm start: %s keeps its fresh value: %s.", name, why)
  for name in report.unused:
    logging.warning("Warm start: the source's %s is not used.", name)
